"""MLPerf's query samples: each a query of 100 to 700 user-item pairs ("items"), all of them in shared memory.

    sample s  =  items begins[s] .. begins[s + 1] of the library,  their number drawn from MLPerf's quantiles

    quantiles  100 x2  200 x12  300 x2  400  500  600  700     of twenty; 270 in the mean
    (recommendation/dlrm/pytorch/tools/dist_quantile.txt of the mlcommons/inference repository)

Items come from a file in its order, each in one sample, so that going through all samples is going through the file;
or they are random rows of whole tables. Indices are kept as int32, 156 bytes an item for 26 tables: what 204,800
samples take is 8.6 GB.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from .errors import UserError
from .reference_data import open_reference
from .shared_arrays import Layout, SharedArrays, layout_bytes
from .workload import draw_items

if TYPE_CHECKING:
    from .manifest import ModelCard

MLPERF_QUANTILES = (*[100] * 2, *[200] * 12, *[300] * 2, 400, 500, 600, 700)
MLPERF_SAMPLES = 204_800  # dlrm.*.performance_sample_count_override of LoadGen's mlperf.conf

_SEED = 20_201_119
_CHUNK_ITEMS = 65_536
_LARGEST_TABLE = 2**31


@dataclass(frozen=True)
class SampleSpec:
    """What the library holds; JSON-able by asdict. ref_data None: random rows of tables of `table_rows`."""

    samples: int
    items: int
    num_dense: int
    table_rows: tuple[int, ...]
    ref_data: str | None
    has_labels: bool

    @property
    def layout(self) -> Layout:
        return {
            "dense": ("float32", (self.items, self.num_dense)),
            "indices": ("int32", (self.items, len(self.table_rows))),
            "labels": ("uint8", (self.items,)),
        }

    @property
    def nbytes(self) -> int:
        return layout_bytes(self.layout)

    @property
    def begins(self) -> np.ndarray:
        """[samples + 1] int64: where each sample's items begin. The last sample of a file may be a short one."""
        ends = np.cumsum(sample_lengths(self.samples))
        return np.minimum(np.concatenate([[0], ends]), self.items)

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_json(fields: dict) -> SampleSpec:
        return SampleSpec(**fields | {"table_rows": tuple(fields["table_rows"])})


def sample_lengths(samples: int) -> np.ndarray:
    """[samples] int64, drawn from MLPerf's quantiles; always the same ones, and a prefix of a longer draw."""
    picked = np.random.default_rng(_SEED).integers(0, len(MLPERF_QUANTILES), samples)
    return np.array(MLPERF_QUANTILES)[picked]


def plan_samples(card: ModelCard, samples: int, ref_data: str | None) -> SampleSpec:
    """The first `samples` samples of a file, or as many random ones.

    Raises UserError for a file that does not fit the model, for bags, and for tables beyond int32.
    """
    if max(card.table_rows) >= _LARGEST_TABLE:
        raise UserError(f"--scenario takes tables of up to {_LARGEST_TABLE - 1:,} rows; this model has a larger one.")
    shape = {"num_dense": card.num_dense, "table_rows": card.table_rows}
    if ref_data is None:
        return SampleSpec(samples, int(sample_lengths(samples).sum()), ref_data=None, has_labels=False, **shape)
    data = open_reference(ref_data, card, outputs_wanted=False)
    if data.indices_per_bag != 1:
        raise UserError(f"{ref_data}: holds bags; MLPerf's samples have one index per table. Leave --scenario out.")
    ends = np.cumsum(sample_lengths(min(samples, -(-data.num_items // min(MLPERF_QUANTILES)))))
    whole = int(np.searchsorted(ends, data.num_items))  # the sample in which the file ends
    samples = min(whole + 1, len(ends))
    return SampleSpec(
        samples, min(int(ends[samples - 1]), data.num_items), ref_data=ref_data, has_labels=data.has_labels, **shape
    )


class SampleLibrary:
    """The samples' items: dense [items, D] float32, indices [items, T] int32, labels [items] uint8."""

    def __init__(self, spec: SampleSpec, descriptor: int) -> None:
        arrays = SharedArrays(descriptor, spec.layout)
        self.spec = spec
        self.begins = spec.begins
        self.dense, self.indices, self.labels = arrays["dense"], arrays["indices"], arrays["labels"]

    def load(self, card: ModelCard, threads: int) -> None:
        """Fill the memory; `threads` at a time draw random rows. Raises UserError for bad values in a file."""
        with tqdm(total=self.spec.items, unit=" items", desc="loading samples", disable=None) as bar:
            for items in self._filled(card, threads):
                bar.update(items)

    def _filled(self, card: ModelCard, threads: int) -> Iterator[int]:
        if self.spec.ref_data is None:
            with ThreadPoolExecutor(threads) as pool:
                yield from pool.map(self._draw, range(0, self.spec.items, _CHUNK_ITEMS))
            return
        at = 0
        for chunk in open_reference(self.spec.ref_data, card, max_items=self.spec.items, outputs_wanted=False):
            part = slice(at, at + len(chunk.dense))
            self.dense[part], self.indices[part] = chunk.dense, chunk.indices
            if chunk.labels is not None:
                self.labels[part] = chunk.labels
            at = part.stop
            yield len(chunk.dense)

    def _draw(self, begin: int) -> int:
        """One chunk of random items; how many."""
        part = slice(begin, min(begin + _CHUNK_ITEMS, self.spec.items))
        generator = np.random.default_rng([_SEED, begin])
        draw_items(generator, self.dense[part], self.indices[part], self.spec.table_rows)
        return part.stop - begin
