"""Shape and weights of the demo model, from a seed: MLPerf's DLRM with capped tables, the same bits everywhere.

Weights are raw PCG64 words (a stream NumPy guarantees) turned into float32 by exact integer steps, one correctly
rounded multiplication and one addition: no transcendental function and no NumPy `Generator` method, whose results
change over versions. One stream per tensor, so a table capped lower is the head of the same table capped higher.
Knows where each tensor lies in the data file, but no file and no ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .errors import UserError

# Distinct values per categorical feature of the Criteo Terabyte set, hashed to at most 40 million: MLPerf's tables.
CRITEO_TABLE_ROWS = (
    39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10,
    2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36,
)  # fmt: skip
DIM = 128
BOTTOM = (13, 512, 256, DIM)
TOP = (479, 1024, 1024, 512, 256, 1)

# Gains on the He-uniform bound sqrt(6 / inputs). Together with the table bound and the last bias they give logits of
# mean -2.0 and standard deviation 1.4 on `demo_inputs`: well-spread predictions, like a click model's.
_BOTTOM_GAINS = (0.5, 1.0, 0.25)
_TOP_GAINS = (1.0, 1.0, 1.0, 1.0, 1.5625)
_BIAS_BOUND = 0.0625
_LAST_BIAS = 1.0
_TABLE_BOUND = 0.5

_SEED = 20190606
_ALIGNMENT = 4096
_TABLES_ALIGNMENT = 2 << 20  # a huge page, so that the tables may be mapped with such
_CHUNK_VALUES = 1 << 20


@dataclass(frozen=True)
class DemoTensor:
    """One tensor of the data file: float32 in center ± bound from the stream of `seed`, at byte `offset`."""

    name: str
    shape: tuple[int, ...]
    seed: int
    offset: int
    bound: float
    center: float = 0.0

    @property
    def num_bytes(self) -> int:
        return 4 * math.prod(self.shape)

    @property
    def end(self) -> int:
        return self.offset + self.num_bytes

    @property
    def is_table(self) -> bool:
        return self.name.startswith("table.")

    def values(self) -> Iterator[np.ndarray]:
        """All values, flat, in chunks of at most `_CHUNK_VALUES` little-endian float32."""
        words = np.random.PCG64(self.seed)
        left = math.prod(self.shape)
        while left:
            count = min(left, _CHUNK_VALUES)
            halves = words.random_raw((count + 1) // 2).astype("<u8").view("<u4")[:count]
            integers = (halves >> 8).astype(np.int32) - (1 << 23)  # 24 bits: exact in float32
            scaled = integers.astype(np.float32) * np.float32(self.bound / (1 << 23))
            yield (scaled + np.float32(self.center)).astype("<f4")
            left -= count


def demo_tensors(table_rows: int) -> list[DemoTensor]:
    """Every tensor of the model in the order of the data file: bottom MLP, top MLP, tables."""
    if table_rows < 1:
        raise UserError(f"the demo model's tables are capped at {table_rows} rows; give at least 1.")
    tensors: list[DemoTensor] = []

    def add(name: str, shape: tuple[int, ...], bound: float, *, center: float = 0.0, align: int = _ALIGNMENT) -> None:
        offset = -(-tensors[-1].end // align) * align if tensors else 0
        tensors.append(DemoTensor(name, shape, _SEED + len(tensors), offset, bound, center))

    for prefix, widths, gains in (("bottom", BOTTOM, _BOTTOM_GAINS), ("top", TOP, _TOP_GAINS)):
        for i, (inputs, outputs, gain) in enumerate(zip(widths, widths[1:], gains)):
            # math.sqrt is correctly rounded (IEEE 754), so the bound is the same on every machine.
            add(f"{prefix}.{i}.weight", (outputs, inputs), gain * math.sqrt(6 / inputs))
            add(f"{prefix}.{i}.bias", (outputs,), _BIAS_BOUND, center=_LAST_BIAS if outputs == 1 else 0.0)
    for t, rows in enumerate(CRITEO_TABLE_ROWS):
        add(f"table.{t}", (min(rows, table_rows), DIM), _TABLE_BOUND, align=_ALIGNMENT if t else _TABLES_ALIGNMENT)
    return tensors


def mlp_end(tensors: list[DemoTensor]) -> int:
    """The byte of the data file where the MLP weights end and the padding up to the tables begins."""
    return max(tensor.end for tensor in tensors if not tensor.is_table)


def data_chunks(tensors: list[DemoTensor]) -> Iterator[bytes | memoryview]:
    """The data file's bytes in order, padding included."""
    end = 0
    for tensor in tensors:
        yield bytes(tensor.offset - end)
        for values in tensor.values():
            yield values.data.cast("B")
        end = tensor.end
