"""An ONNX file as a graph: its nodes, its inputs, its constants. Knows nothing of a DLRM.

Constants are read when asked for. One in a file of its own (external data) is a read-only memory map of that file and
is never loaded, so a graph with 100 GB of tables opens in milliseconds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError

from ..errors import UserError
from .names import label, names_read, single_assignment

_LARGEST_INPUT = 1 << 18
_LARGEST_MODEL = 1 << 31  # protobuf's own limit
ADVICE = "docs/compile.md tells which graphs are read."


@dataclass(frozen=True)
class Input:
    """One input of a graph; dims: sizes, None for one that the graph leaves open."""

    name: str
    dtype: np.dtype
    dims: tuple[int | None, ...]

    def batch_place(self, batch: int) -> int:
        """Of the dim that goes with the batch, which the file fixes: the first of floats and of indices
        [batch, number], else the last."""
        if self.dtype.kind == "f":
            return 0
        if len(self.dims) == 2 and self.dims[0] == batch:
            number = self.dims[1]
            return 0 if number is not None and (number < batch or number % batch > 1) else 1
        return len(self.dims) - 1

    def resized(self, sizes: Mapping[int, int]) -> Input:
        """With other sizes: {size in the file: size in its place}."""
        place = min(self.batch_place(batch) for batch in sizes)
        dims = [sizes.get(size, size) if at == place else size for at, size in enumerate(self.dims)]
        return replace(self, dims=tuple(dims))


class PooledRowsError(UserError):
    """What is computed from pooled rows is a table for bags of one index alone."""


class OnnxGraph:
    """The graph of the file at `path`. Raises UserError for a file that is missing, damaged or not ONNX."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        model = _parse(self.path)
        self.warnings = tuple(single_assignment(model.graph, self.path))
        self.proto = model.graph
        self.opset = max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=1)
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._tensors = self._initializers | dict(_constant_nodes(model.graph))
        self._arrays: dict[str, np.ndarray] = {}
        self._sizes: Mapping[int, int] = {}
        self.size_constants: frozenset[str] = frozenset()  # names of those that resizing changes

    def resized(self, sizes: Mapping[int, int]) -> OnnxGraph:
        """The graph for inputs of other sizes, {size in the file: size in its place}.

        Replaced are the last dim of whole-number inputs, the first dim of inputs [items, number], and whole-number
        constants that are a size or begin with one (`Reshape` to [2048, 27, 16]). At the file's own sizes it is the
        graph of the file, whichever constants were taken for sizes. So what it computes at all sizes, the file computes
        too.
        """
        other = copy.copy(self)
        other._sizes = sizes
        other.inputs = tuple(source.resized(sizes) for source in self.inputs)
        other.size_constants = frozenset(name for name, tensor in self._tensors.items() if other.holds_size(tensor))
        return other

    @property
    def is_resized(self) -> bool:
        return bool(self._sizes)

    def holds_size(self, tensor: onnx.TensorProto) -> bool:
        """Whether this resized graph changes the constant."""
        if not self._sizes or tensor.data_type not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
            return False
        return len(tensor.dims) <= 1 and math.prod(tensor.dims) > 0 and int(self._stored(tensor).flat[0]) in self._sizes

    @cached_property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes that the output depends on, in the file's order."""
        return live_nodes(self.proto.node, [self.output])

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs that a caller feeds. Old files list their weights as inputs too; those are left out."""
        return tuple(self._input(value) for value in self.proto.input if value.name not in self._initializers)

    @cached_property
    def used_names(self) -> set[str]:
        return {name for node in self.nodes for name in names_read(node)}

    @property
    def output(self) -> str:
        names = [value.name for value in self.proto.output]
        if len(names) != 1:
            raise UserError(f"{self.path}: the graph has outputs {names}; a DLRM has one, its prediction. {ADVICE}")
        return names[0]

    @property
    def most_rows(self) -> int:
        """Of the largest table."""
        return max((tensor.dims[0] for tensor in self._tensors.values() if len(tensor.dims) == 2), default=0)

    def producer(self, name: str) -> onnx.NodeProto | None:
        return next((node for node in self.nodes if name in node.output), None)

    def constant(self, name: str) -> np.ndarray | None:
        """The initializer or Constant node of that name, the same array each time; None where there is none."""
        if name not in self._arrays and name in self._tensors:
            self._arrays[name] = self._stored(self._tensors[name])
        if name in self.size_constants:
            return self._with_size(self._arrays[name])
        return self._arrays.get(name)

    def array(self, tensor: onnx.TensorProto) -> np.ndarray:
        """A tensor of this file as an array: a memory map (external data), or a view of the model's bytes."""
        stored = self._stored(tensor)
        return self._with_size(stored) if self.holds_size(tensor) else stored

    def _with_size(self, stored: np.ndarray) -> np.ndarray:
        changed = stored.copy()
        changed.flat[0] = self._sizes[int(stored.flat[0])]
        return changed

    def _stored(self, tensor: onnx.TensorProto) -> np.ndarray:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return self._external(tensor)
        return self._inline(tensor)

    def _external(self, tensor: onnx.TensorProto) -> np.ndarray:
        """Some writers keep the bytes in the model too (facebookresearch/dlrm issue 135): both must be equal."""
        if tensor.raw_data and not self._data_file(tensor).is_file():
            return self._inline(tensor)
        outside = self._memory_map(tensor)
        if tensor.raw_data and not _same_bytes(outside, tensor.raw_data):
            raise UserError(
                f"{self.path}: tensor {tensor.name} has other values in {self._data_file(tensor)} than in the model "
                "itself. Remove the one or the other."
            )
        return outside

    def _inline(self, tensor: onnx.TensorProto) -> np.ndarray:
        dtype, shape = self._dtype(tensor), tuple(tensor.dims)
        if not tensor.HasField("raw_data"):
            return _typed_data(tensor, self.path)
        data, wanted = tensor.raw_data, math.prod(shape) * dtype.itemsize
        if len(data) != wanted:
            raise UserError(
                f"{self.path}: tensor {tensor.name} of shape {shape} holds {len(data)} bytes, {wanted} wanted. "
                "Export the model again."
            )
        return np.frombuffer(data, dtype.newbyteorder("<")).reshape(shape)

    def refusal(self, node: onnx.NodeProto | None, reason: str) -> UserError:
        """The error for a graph that is not a DLRM, with the node and the reason."""
        where = f"node {label(node)} " if node is not None else ""
        return UserError(f"{self.path}: {where}{reason}. {ADVICE}")

    def of_long_bags(self, node: onnx.NodeProto, reason: str) -> PooledRowsError:
        return PooledRowsError(
            f"{self.path}: of bags of several indices no table tells what node {label(node)} {reason}."
        )

    def _data_file(self, tensor: onnx.TensorProto) -> Path:
        locations = [entry.value for entry in tensor.external_data if entry.key == "location"]
        return self.path.parent / (locations[0] if locations else "")

    def _memory_map(self, tensor: onnx.TensorProto) -> np.ndarray:
        fields = {entry.key: entry.value for entry in tensor.external_data}
        for key in ("offset", "length"):
            if not (fields.get(key) or "0").isdecimal():
                raise UserError(
                    f"{self.path}: tensor {tensor.name} has the {key} {fields[key]!r} in its external data, a number "
                    "of bytes was wanted. Export the model again."
                )
        if not fields.get("location") or "\0" in fields["location"]:
            raise UserError(
                f"{self.path}: tensor {tensor.name} names no file for its external data. Export the model again."
            )
        dtype, shape = self._dtype(tensor), tuple(tensor.dims)
        wanted = math.prod(shape) * dtype.itemsize
        offset, length = (int(fields.get(key) or default) for key, default in (("offset", 0), ("length", wanted)))
        data = self._data_file(tensor)
        # An ONNX file may come from anywhere: it may not name files outside its own folder.
        if not data.resolve().is_relative_to(self.path.parent.resolve()):
            raise UserError(
                f"{self.path}: tensor {tensor.name} lies in {data}, outside the model's folder. Move it in."
            )
        if not data.is_file():
            raise UserError(f"{self.path}: tensor {tensor.name} needs the file {data}, which is missing. Put it there.")
        if length != wanted or offset + wanted > data.stat().st_size:
            raise UserError(
                f"{data}: {min(length, max(data.stat().st_size - offset, 0))} bytes for tensor {tensor.name} of shape "
                f"{shape}, {wanted} wanted. Copy the file again, it may be truncated."
            )
        if wanted == 0:
            return np.empty(shape, dtype)
        return np.memmap(data, dtype=dtype.newbyteorder("<"), mode="r", offset=offset, shape=shape)

    def _dtype(self, tensor: onnx.TensorProto) -> np.dtype:
        return self._known_dtype("tensor", tensor.name, tensor.data_type)

    def _known_dtype(self, what: str, name: str, number: int) -> np.dtype:
        try:
            return onnx.helper.tensor_dtype_to_np_dtype(number)
        except (KeyError, TypeError):
            raise UserError(
                f"{self.path}: {what} {name} has the unknown type {number}. Export the model again."
            ) from None

    def _input(self, value: onnx.ValueInfoProto) -> Input:
        declared = value.type.tensor_type
        if not declared.HasField("shape") or not declared.elem_type:
            raise UserError(f"{self.path}: input {value.name} is no tensor of known rank. {ADVICE}")
        # Some tools write -1 or 0 for an open size.
        dims = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in declared.shape.dim)
        if max((size or 0 for size in dims), default=0) > _LARGEST_INPUT:
            raise UserError(f"{self.path}: input {value.name} has dims {list(dims)}; no batch is that large. {ADVICE}")
        return Input(value.name, self._known_dtype("input", value.name, declared.elem_type), dims)


def live_nodes(nodes: Iterable[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The `nodes` that `outputs` depend on, in their order."""
    wanted, live = set(outputs), []
    for node in reversed(list(nodes)):
        if wanted.intersection(node.output):
            live.append(node)
            wanted.update(names_read(node))
    return live[::-1]


def _parse(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise UserError(f"{path}: no such file; an ONNX model was wanted. Check --onnx-model.")
    if not path.is_file():
        raise UserError(f"{path}: not a file; an ONNX model was wanted. Name the .onnx file inside it.")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: an empty file; an ONNX model was wanted. Export or download it again.")
    if path.stat().st_size > _LARGEST_MODEL:
        raise UserError(f"{path}: more than 2 GiB, and no ONNX model is: tables lie beside it. Export it anew.")
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except DecodeError:
        raise UserError(f"{path}: not an ONNX model, or a truncated one. Export or download it again.") from None
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise UserError(f"{path}: holds no ONNX graph, or is truncated. Export or download it again.")
    return _without_functions(model, path)


def _without_functions(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model with its own functions inlined; torch.export wrote such functions up to torch 2.6."""
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:  # of no documented type
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: the model's own functions cannot be inlined: {reason}. {ADVICE}") from None


def _constant_nodes(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    for node in graph.node:
        if node.op_type == "Constant" and [attribute.name for attribute in node.attribute] == ["value"]:
            yield node.output[0], node.attribute[0].t


def _same_bytes(array: np.ndarray, data: bytes) -> bool:
    """Compared piece by piece: a memory map may be large."""
    flat = array.reshape(-1).view(np.uint8)
    if flat.size != len(data):
        return False
    piece = 2**24
    return all(flat[at : at + piece].tobytes() == data[at : at + piece] for at in range(0, len(data), piece))


def _typed_data(tensor: onnx.TensorProto, path: Path) -> np.ndarray:
    """The values of a tensor that keeps them in typed fields (float_data, int64_data) in place of raw bytes."""
    try:
        return onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: tensor {tensor.name} cannot be read: {reason}. Export the model again.") from None
