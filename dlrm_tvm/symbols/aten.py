"""ATen nodes: PyTorch's own operators, exported as such where ONNX has none (torch 1.5 and 1.6, opset 9).

    embedding_bag(weight, indices, offsets[, per_sample_weights])   attributes as torch.nn.functional.embedding_bag's
    index(data, index of dimension 0, ...)                          "" for a whole dimension

(torch/onnx/symbolic_opset9.py of torch 1.6; torch 1.13 and later put them into the domain org.pytorch.aten.)
"""

from __future__ import annotations

import numpy as np

from .computations import Computations, Value
from .expressions import Symbols
from .lookups import BagsDifferError

DOMAINS = ("", "ai.onnx", "org.pytorch.aten")

_POOLINGS = {0: "sum", 1: "mean"}


def run_aten(computations: Computations, inputs: list[Value], *, operator: bytes, **attributes: object) -> Value:
    """Raises ValueError for operators and attributes that no DLRM needs."""
    attributes.pop("overload_name", None)
    if operator == b"embedding_bag":
        return _embedding_bag(computations, *inputs, **attributes)
    if operator == b"index":
        return _index(*inputs, **attributes)
    raise ValueError(f"is PyTorch's {operator.decode(errors='replace')!r}; embedding_bag and index are read")


def _embedding_bag(
    computations: Computations,
    weight: Value,
    indices: Value,
    offsets: Value,
    factors: Value = None,
    *,
    mode: int = 0,
    include_last_offset: int = 0,
    padding_idx: int = -1,
    scale_grad_by_freq: int = 0,  # this and the next one matter in training only
    sparse: int = 0,
) -> Symbols:
    computations.demand_values(offsets)
    if mode not in _POOLINGS:
        raise ValueError(f"pools bags in mode {mode}; 0 (sum) and 1 (mean) are read")
    if isinstance(offsets, Symbols) or not isinstance(indices, Symbols) or {indices.ids.ndim, offsets.ndim} != {1}:
        raise ValueError("takes other inputs than indices [n] and offsets [batch]")
    rows = computations.lookup(weight, indices)
    if rows.ids.ndim != 2:
        raise ValueError(f"has a table of shape {weight.shape}; [rows, dim] is wanted")
    if factors is not None:
        rows = _weighted(computations, rows, _column(factors, len(rows.ids)))
    if padding_idx >= 0:
        rows = _without(computations, rows, indices, padding_idx)
    starts = offsets[:-1] if include_last_offset else offsets
    ends = offsets[1:] if include_last_offset else np.append(offsets[1:], len(rows.ids))
    _check_offsets(starts, ends, len(rows.ids))
    if padding_idx >= 0 and mode == 1 and (ends - starts > 1).any():
        raise BagsDifferError(f"makes of the mean of rows other than the one of padding_idx {padding_idx}")
    return Symbols(computations.expressions.bags(_POOLINGS[mode], rows.ids, starts, ends), True)


def _weighted(computations: Computations, rows: Symbols, factors: Value) -> Symbols:
    found = computations.lookups.apply("Mul", [rows, factors])
    if found is None:
        raise ValueError("multiplies rows by what depends on other indices")
    return found


def _without(computations: Computations, rows: Symbols, indices: Symbols, padding_idx: int) -> Symbols:
    """Rows of zeros where the index is the padding index: in sums they count for nothing."""
    lookups = computations.lookups
    is_padding = lookups.apply("Equal", [indices, np.int64(padding_idx)])
    column = Symbols(is_padding.ids[:, None], is_padding.real)
    return lookups.apply("Where", [column, np.float32(0), rows])


def _check_offsets(starts: np.ndarray, ends: np.ndarray, count: int) -> None:
    if not (starts[:1] == 0).all() or (np.diff(np.append(starts, ends[-1:])) < 0).any() or (ends > count).any():
        raise ValueError("has offsets that do not start at 0 and ascend")


def _column(factors: Value, count: int) -> Value:
    """Per-sample weights [n] as [n, 1]."""
    array = factors.ids if isinstance(factors, Symbols) else factors
    if array.shape != (count,):
        raise ValueError(f"has per-sample weights of shape {array.shape} for {count} indices")
    return Symbols(array[:, None], factors.real) if isinstance(factors, Symbols) else array[:, None]


def _index(data: Value, *indices: Value) -> Value:
    if not isinstance(data, Symbols) or any(isinstance(index, Symbols) for index in indices):
        raise ValueError("indexes by an input's values, or into constants")
    given = [place for place, index in enumerate(indices) if index is not None]
    if not given or given != list(range(given[0], given[-1] + 1)):
        raise ValueError("indexes dimensions that are not neighbours")
    if any(index.dtype != np.int64 for index in indices if index is not None):
        raise ValueError("indexes by values that are not int64")
    return Symbols(data.ids[tuple(slice(None) if index is None else index for index in indices)], data.real)
