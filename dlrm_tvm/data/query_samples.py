"""MLPerf's query samples, each a query of 100 to 700 user-item pairs ("items"), in shared memory.

    sample s  =  items begins[s] .. begins[s + 1] of the library,  their number as in MLPerf's trace

    quantiles  100 x2  200 x12  300 x2  400  500  600  700     twenty in all; mean 270
    trace      quantiles drawn by NumPy's legacy generator from the seed 123; of 89,137,319 items the 330,067 samples of
               MLPerf's dlrm_trace_of_aggregated_samples.txt (MD5 3db90209564316f2506c99cc994ad0b2), v1's and v2's
    (recommendation/dlrm_v2/pytorch: README.md, tools/dist_quantile.txt, of the mlcommons/inference repository)

Items come from a file in its order, each in one sample, so all samples together are the file; or they are random rows
of whole tables. Indices are int32, those of all bags of an item side by side: an item of 26 tables takes 156 bytes and
204,800 samples take 8.6 GB; with DLRM-v2's 214 indices 50 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..machine.shared_memory import Layout, SharedArrays, layout_bytes
from ..model.bags import bags_of_one
from .reference_data import open_reference
from .workload import bag_lengths, draw_items

if TYPE_CHECKING:
    from ..model.card import ModelCard
    from .chunks import Chunk

MLPERF_QUANTILES = (*[100] * 2, *[200] * 12, *[300] * 2, 400, 500, 600, 700)
MLPERF_SAMPLES = 204_800  # dlrm.*.performance_sample_count_override of LoadGen's mlperf.conf

_SEED = 20_201_119
_TRACE_SEED = 123  # --numpy-rand-seed of MLPerf's reference
_CHUNK_ITEMS = 65_536
_LARGEST_TABLE = 2**31


@dataclass(frozen=True)
class SampleSpec:
    """The content of a library. ref_data None: random rows of tables of `table_rows`.

    lengths: indices in each bag of each table; None: one, and no bags.
    """

    samples: int
    items: int
    num_dense: int
    table_rows: tuple[int, ...]
    ref_data: str | None
    has_labels: bool
    max_ind_range: int | None = None  # of ref_data
    lengths: tuple[int, ...] | None = None

    @property
    def indices_per_item(self) -> int:
        return len(self.table_rows) if self.lengths is None else sum(self.lengths)

    @property
    def columns(self) -> list[slice]:
        """Of `indices`, those of each table."""
        ends = np.cumsum(self.lengths or (1,) * len(self.table_rows)).tolist()
        return [slice(begin, end) for begin, end in zip([0, *ends], ends)]

    @property
    def layout(self) -> Layout:
        return {
            "dense": ("float32", (self.items, self.num_dense)),
            "indices": ("int32", (self.items, self.indices_per_item)),
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


def sample_lengths(samples: int) -> np.ndarray:
    """[samples] int64, those of MLPerf's trace; fewer are the first of more."""
    picked = np.random.RandomState(_TRACE_SEED).randint(0, len(MLPERF_QUANTILES), samples)
    return np.array(MLPERF_QUANTILES)[picked]


def plan_samples(
    card: ModelCard,
    samples: int,
    ref_data: str | None,
    *,
    max_ind_range: int | None = None,
    indices_per_bag: Sequence[int] | None = None,
) -> SampleSpec:
    """The first `samples` samples of a file, its indices modulo `max_ind_range` if given, or `samples` random ones.

    indices_per_bag: of random bags, as workload.bag_lengths has it. Raises UserError for a file that does not fit the
    model, for tables with rows beyond int32, and for recorded bags of one table that differ in length.
    """
    if max(card.table_rows) >= _LARGEST_TABLE:
        raise UserError(f"--scenario takes tables of up to {_LARGEST_TABLE - 1:,} rows; this model has a larger one.")
    shape = {"num_dense": card.num_dense, "table_rows": card.table_rows}
    if ref_data is None:
        shape["lengths"] = bag_lengths(card, indices_per_bag)
        return SampleSpec(samples, int(sample_lengths(samples).sum()), ref_data=None, has_labels=False, **shape)
    data = open_reference(ref_data, card, outputs_wanted=False, max_ind_range=max_ind_range)
    first = next(iter(replace(data, items=data.items[:1])))
    if first.bags is not None:
        shape["lengths"] = tuple(map(len, first.bags.indices))
    ends = np.cumsum(sample_lengths(min(samples, -(-data.num_items // min(MLPERF_QUANTILES)))))
    whole = int(np.searchsorted(ends, data.num_items))  # the sample in which the file ends
    samples = min(whole + 1, len(ends))
    items = min(int(ends[samples - 1]), data.num_items)
    file = {"ref_data": ref_data, "has_labels": data.has_labels, "max_ind_range": max_ind_range}
    return SampleSpec(samples, items, **file, **shape)


class SampleLibrary:
    """The samples' items: dense [items, D] float32, indices [items, indices per item] int32, labels [items] uint8."""

    def __init__(self, spec: SampleSpec, descriptor: int) -> None:
        arrays = SharedArrays(descriptor, spec.layout)
        self.spec = spec
        self.begins = spec.begins
        self.dense, self.indices, self.labels = arrays["dense"], arrays["indices"], arrays["labels"]

    def load(self, card: ModelCard, threads: int) -> None:
        """Fill the memory, random rows by `threads` threads. Raises UserError for bad values in a file."""
        if self.spec.ref_data is None:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(self._draw, range(0, self.spec.items, _CHUNK_ITEMS)))
            return
        at, part = 0, {"max_items": self.spec.items, "max_ind_range": self.spec.max_ind_range}
        for chunk in open_reference(self.spec.ref_data, card, outputs_wanted=False, **part):
            part = slice(at, at + len(chunk.dense))
            self.dense[part] = chunk.dense
            if self.spec.lengths is None and chunk.bags is None:
                self.indices[part] = chunk.indices
            else:
                self._write_bags(part, chunk)
            if chunk.labels is not None:
                self.labels[part] = chunk.labels
            at = part.stop

    def _write_bags(self, part: slice, chunk: Chunk) -> None:
        bags = chunk.bags or bags_of_one(chunk.indices)
        for table, columns in enumerate(self.spec.columns):
            lengths, wanted = np.diff(bags.begins[table]), columns.stop - columns.start
            if (lengths != wanted).any():
                item = int((lengths != wanted).argmax())
                raise UserError(
                    f"{self.spec.ref_data}: item {part.start + item} has {lengths[item]} indices for table {table}, "
                    f"the first {wanted}; LoadGen's samples have bags of one length per table. Leave --scenario out."
                )
            self.indices[part, columns] = bags.indices[table].reshape(-1, wanted)

    def _draw(self, begin: int) -> None:
        """One chunk of random items."""
        part = slice(begin, min(begin + _CHUNK_ITEMS, self.spec.items))
        generator = np.random.default_rng([_SEED, begin])
        rows = np.repeat(self.spec.table_rows, self.spec.lengths or 1)
        draw_items(generator, self.dense[part], self.indices[part], rows)
