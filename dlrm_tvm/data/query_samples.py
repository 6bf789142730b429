"""MLPerf's query samples, each a query of 100 to 700 user-item pairs ("items"), in shared memory.

    sample s  =  items begins[s] .. begins[s + 1] of the library,  their number drawn from MLPerf's quantiles

    quantiles  100 x2  200 x12  300 x2  400  500  600  700     twenty in all; mean 270
    (recommendation/dlrm/pytorch/tools/dist_quantile.txt of the mlcommons/inference repository)

Items come from a file in its order, each in one sample, so all samples together are the file; or they are random rows
of whole tables. Indices are int32, so an item of 26 tables takes 156 bytes and 204,800 samples take 8.6 GB.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..console import progress_bar
from ..errors import UserError
from ..machine.shared_memory import Layout, SharedArrays, layout_bytes
from .reference_data import open_reference
from .workload import draw_items

if TYPE_CHECKING:
    from ..model.card import ModelCard

MLPERF_QUANTILES = (*[100] * 2, *[200] * 12, *[300] * 2, 400, 500, 600, 700)
MLPERF_SAMPLES = 204_800  # dlrm.*.performance_sample_count_override of LoadGen's mlperf.conf

_SEED = 20_201_119
_CHUNK_ITEMS = 65_536
_LARGEST_TABLE = 2**31


@dataclass(frozen=True)
class SampleSpec:
    """The content of a library, convertible to JSON. ref_data None: random rows of tables of `table_rows`."""

    samples: int
    items: int
    num_dense: int
    table_rows: tuple[int, ...]
    ref_data: str | None
    has_labels: bool
    max_ind_range: int | None = None  # of ref_data

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
        """[samples + 1] int64: where each sample's items begin. The last sample of a file may be short."""
        ends = np.cumsum(sample_lengths(self.samples))
        return np.minimum(np.concatenate([[0], ends]), self.items)

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_json(fields: dict) -> SampleSpec:
        return SampleSpec(**fields | {"table_rows": tuple(fields["table_rows"])})


def sample_lengths(samples: int) -> np.ndarray:
    """[samples] int64, drawn from MLPerf's quantiles; always the same, and a prefix of a longer draw."""
    picked = np.random.default_rng(_SEED).integers(0, len(MLPERF_QUANTILES), samples)
    return np.array(MLPERF_QUANTILES)[picked]


def plan_samples(
    card: ModelCard, samples: int, ref_data: str | None, *, max_ind_range: int | None = None
) -> SampleSpec:
    """The first `samples` samples of a file, its indices modulo `max_ind_range` if given, or `samples` random ones.

    Raises UserError for a file that does not fit the model, for bags, and for tables with rows beyond int32.
    """
    if max(card.table_rows) >= _LARGEST_TABLE:
        raise UserError(f"--scenario takes tables of up to {_LARGEST_TABLE - 1:,} rows; this model has a larger one.")
    shape = {"num_dense": card.num_dense, "table_rows": card.table_rows}
    if ref_data is None:
        return SampleSpec(samples, int(sample_lengths(samples).sum()), ref_data=None, has_labels=False, **shape)
    data = open_reference(ref_data, card, outputs_wanted=False, max_ind_range=max_ind_range)
    if data.indices_per_bag != 1:
        raise UserError(f"{ref_data}: holds bags; MLPerf's samples have one index per table. Leave --scenario out.")
    ends = np.cumsum(sample_lengths(min(samples, -(-data.num_items // min(MLPERF_QUANTILES)))))
    whole = int(np.searchsorted(ends, data.num_items))  # the sample in which the file ends
    samples = min(whole + 1, len(ends))
    items = min(int(ends[samples - 1]), data.num_items)
    file = {"ref_data": ref_data, "has_labels": data.has_labels, "max_ind_range": max_ind_range}
    return SampleSpec(samples, items, **file, **shape)


class SampleLibrary:
    """The samples' items: dense [items, D] float32, indices [items, T] int32, labels [items] uint8."""

    def __init__(self, spec: SampleSpec, descriptor: int) -> None:
        arrays = SharedArrays(descriptor, spec.layout)
        self.spec = spec
        self.begins = spec.begins
        self.dense, self.indices, self.labels = arrays["dense"], arrays["indices"], arrays["labels"]

    def load(self, card: ModelCard, threads: int) -> None:
        """Fill the memory, random rows by `threads` threads. Raises UserError for bad values in a file."""
        with progress_bar("loading samples", self.spec.items, " items") as bar:
            for items in self._filled(card, threads):
                bar.update(items)

    def _filled(self, card: ModelCard, threads: int) -> Iterator[int]:
        if self.spec.ref_data is None:
            with ThreadPoolExecutor(threads) as pool:
                yield from pool.map(self._draw, range(0, self.spec.items, _CHUNK_ITEMS))
            return
        at, part = 0, {"max_items": self.spec.items, "max_ind_range": self.spec.max_ind_range}
        for chunk in open_reference(self.spec.ref_data, card, outputs_wanted=False, **part):
            part = slice(at, at + len(chunk.dense))
            self.dense[part], self.indices[part] = chunk.dense, chunk.indices
            if chunk.labels is not None:
                self.labels[part] = chunk.labels
            at = part.stop
            yield len(chunk.dense)

    def _draw(self, begin: int) -> int:
        """Draw one chunk of random items; gives their number."""
        part = slice(begin, min(begin + _CHUNK_ITEMS, self.spec.items))
        generator = np.random.default_rng([_SEED, begin])
        draw_items(generator, self.dense[part], self.indices[part], self.spec.table_rows)
        return part.stop - begin
