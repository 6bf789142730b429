"""Other engines, each by its fastest call, on the ONNX file that a library was compiled from.

    engine = open_engine(graph, threads=2, cores=(0, 1))
    bound = engine.prepare(dense, indices)          # once, before the clock runs
    engine.run(bound)                               # timed; the output stays in the engine's memory

They run in the graph's precision, on the given number of threads. An engine is imported where it is opened, so a
process holds only one. graph.py finds the inputs of a file; this module reads no graph.

    engine          fp32   bf16                        int8
    ONNX Runtime    yes    no kernels on CPUs          dynamic quantization of the layers' weights
    OpenVINO        yes    its own, with avx512_bf16   NNCF's post-training quantization
    torch.compile   yes    its own, with avx512_bf16   PT2E's post-training quantization by torchao
    zentorch        yes    its own, with avx512_bf16   only models quantized by AMD's Quark

An engine that would run in another precision than asked for is refused: its number would mean something else.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import numpy as np

from ..errors import UserError
from ..machine.cpu import BF16_FLAG, host_flags
from ..paths import packages_command

OURS = "ours"  # the library itself, by its executor
TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "torch.compile", "zentorch": "zentorch"}
ENGINES = tuple(TITLES)
EXTRAS = {"torch": "torch", "zentorch": "torch"}  # others: "engines"
_QUANTIZERS = {"openvino": ("nncf", "NNCF"), "torch": ("torchao", "torchao")}

FP32_TOLERANCE = 1e-4  # between two fp32 programs, which add in different orders
# Limits of the mean absolute error of a probability. Measured on the demo, 2026-11-25: OpenVINO bf16 0.0015, ONNX
# Runtime int8 0.005, OpenVINO int8 0.005; a wrong kernel is off by 0.1 and more.
MEAN_ERROR = {"fp32": 0.0, "bf16": 0.01, "int8": 0.02}
_STANDARD_ERRORS = 3


@dataclass(frozen=True)
class Feed:
    """One input of the graph. role: dense, indices, offsets or unused; shape: with the batch size; table: None for an
    input that stacks all tables; last_offset: whether offsets end with the end of the last bag; items_first: whether
    stacked indices are [batch, T]."""

    name: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    table: int | None = None
    last_offset: bool = False
    items_first: bool = False

    @property
    def takes_several(self) -> bool:
        """Whether it is indices [batch, number] of one table."""
        return self.table is not None and len(self.shape) == 2

    @property
    def batch_place(self) -> int:
        """Of the dimension that goes with the batch."""
        return 0 if self.role == "dense" or self.takes_several or self.items_first else len(self.shape) - 1

    def array(self, dense: np.ndarray, indices: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """This input's array for dense [batch, D], and indices [batch, T] in bags of one or, where the graph fixes
        their numbers, [batch * number] of each table; always a copy."""
        if self.role == "dense":
            values = dense
        elif self.role == "unused":
            values = np.zeros(self.shape)
        elif self.role == "offsets":
            values = np.broadcast_to(np.arange(self.shape[-1]), self.shape)
        elif isinstance(indices, list | tuple):
            values = indices[self.table]
        else:
            stacked = indices if self.items_first else indices.T
            values = stacked if self.table is None else indices[:, self.table]
        return np.array(values, self.dtype, order="C").reshape(self.shape)

    def resized(self, batch: int) -> Feed:
        """The same for batches of another size."""
        if self.role == "unused":
            return self
        shape = list(self.shape)
        shape[self.batch_place] = batch + self.last_offset
        return replace(self, shape=tuple(shape))


@dataclass(frozen=True)
class EngineGraph:
    """An ONNX file for one engine, batch size and precision.

    sizes: those of the dimensions that the file leaves open by name. quantized: at int8, the file that quantization.py
    made. calibration: a description of the items that set its activations' ranges; None where there are none.
    """

    engine: str
    version: str
    path: str
    batch_size: int
    feeds: tuple[Feed, ...]
    sizes: dict[str, int]
    precision: str = "fp32"
    quantized: str | None = None
    calibration: str | None = None

    @property
    def title(self) -> str:
        return f"{TITLES[self.engine]} {self.version}" + (f" at {self.precision}" if self.precision != "fp32" else "")

    @property
    def fixes_bags(self) -> bool:
        """Whether it takes a fixed number of indices per bag in place of offsets."""
        return any(feed.takes_several for feed in self.feeds)

    def first_items(self) -> tuple[np.ndarray, np.ndarray | list[np.ndarray]]:
        """dense and indices as `Feed.array` takes them, all zeros, which every model accepts."""
        (dense,) = (feed.shape for feed in self.feeds if feed.role == "dense")
        if self.fixes_bags:
            numbers = {feed.table: math.prod(feed.shape) for feed in self.feeds if feed.role == "indices"}
            return np.zeros(dense, np.float32), [np.zeros(numbers[table], np.int64) for table in sorted(numbers)]
        feeds = [feed for feed in self.feeds if feed.role == "indices"]
        tables = sum(feed.shape[1 - feed.batch_place] if feed.table is None else 1 for feed in feeds)
        return np.zeros(dense, np.float32), np.zeros((self.batch_size, tables), np.int64)


@dataclass(frozen=True)
class OpenEngine:
    """An opened engine. predictions: those of the last run, [batch] float32 in the engine's memory."""

    prepare: Callable[[np.ndarray, np.ndarray | list[np.ndarray]], Any]
    run: Callable[[Any], Any]
    predictions: Callable[[], np.ndarray]


def engine_version(engine: str) -> str:
    """Raises UserError where it is not installed."""
    if importlib.util.find_spec(engine) is None:
        raise UserError(f"{TITLES[engine]} is not installed. Type: {packages_command(EXTRAS.get(engine, 'engines'))}")
    try:
        return metadata.version(engine)
    except metadata.PackageNotFoundError:  # the package has another name than the module
        return "of unknown version"


def refusal(engine: str, precision: str, flags: Set[str] | None = None) -> str | None:
    """Why the engine cannot run in this precision here; None where it can. flags: the CPU's, as in /proc/cpuinfo."""
    if precision == "bf16" and engine == "onnxruntime":
        return "ONNX Runtime has no bf16 on CPUs."
    if precision == "bf16" and BF16_FLAG not in (host_flags() if flags is None else flags):
        title = TITLES[engine]
        return f"{title} at bf16 needs {BF16_FLAG}, which this CPU lacks: it would run at fp32 and not say so."
    if precision == "int8" and engine == "zentorch":
        return "zentorch at int8 takes models quantized by AMD's Quark, which this toolkit does not make."
    module, tool = _QUANTIZERS.get(engine, (None, None))
    if precision == "int8" and module and importlib.util.find_spec(module) is None:
        packages = packages_command(EXTRAS.get(engine, "engines"))
        return f"{TITLES[engine]} at int8 needs {tool}, which is not installed. Type: {packages}"
    return None


def check_precision(engine: str, precision: str, flags: Set[str] | None = None) -> None:
    """Raise UserError with the refusal, and what to type instead."""
    reason = refusal(engine, precision, flags)
    if reason is None:
        return
    if precision == "bf16":
        others = "fp32 or int8, or --engine openvino" if engine == "onnxruntime" else "fp32 or int8"
        reason += f" Give --engine-precision {others}."
    raise UserError(reason)


def mean_error_limit(items: int, *precisions: str) -> float:
    """The limit of the mean absolute difference over `items` between programs of these precisions.

    The mean of few items scatters, so three of its standard errors are added; an error's standard deviation is about
    its mean.
    """
    return sum(MEAN_ERROR[each] for each in precisions) * (1 + _STANDARD_ERRORS / math.sqrt(items))
