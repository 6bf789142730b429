"""Where the tensors of a PyTorch checkpoint lie in its file. No value is read, no object is made, PyTorch is not used.

    .pt, .pth      a zip: NAME/data.pkl says which tensors there are, NAME/data/KEY holds the bytes of a storage, plain
    .safetensors   length of the header, header in JSON, bytes
    .index.json    {"weight_map": {tensor: file}} of several such files beside it, as Hugging Face's libraries save

A pickle runs what it names. Of all names the few in `_KNOWN` are known here, each with a stand-in of our own that only
notes shapes and places; any other is refused. (torch.save since PyTorch 1.6: torch/serialization.py; safetensors: its
README, "Format".)
"""

from __future__ import annotations

import io
import json
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, NamedTuple

from ..errors import UserError
from .npz import is_npz as is_zip
from .npz import members_of, stored_at

_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # the pickled magic number before PyTorch 1.6's zips
_MOST_VALUES = 1_000_000  # of a checkpoint: tensors, numbers, dicts
_LONGEST_HEADER = 100_000_000  # of safetensors, by its own definition
_SAVE = "Give what torch.save(model.state_dict(), FILE) or safetensors writes."
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1}
_SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_STORAGES = {
    "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16", "DoubleStorage": "float64",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
_OPERATIONS = {
    "PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NONE",
    "NEWTRUE", "NEWFALSE", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "BINPUT", "LONG_BINPUT",
    "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID",
}  # fmt: skip
_BROKEN = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OverflowError, RecursionError, NotImplementedError),
    *(AttributeError, IndexError, KeyError, MemoryError, TypeError, ValueError),
)


class TorchTensor(NamedTuple):
    """A tensor of the file: its first value is at byte `offset`; is_whole: its values lie in C order without gaps;
    file: the one of several that it is in, from the folder of `files_of_index` on."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    is_whole: bool = True
    file: str = ""


def is_index(path: Path) -> bool:
    return path.name.endswith(".index.json")


def torch_tensors(path: Path) -> dict[str, TorchTensor]:
    """All tensors of a checkpoint by name; those in dicts within dicts by "outer.inner".

    Raises UserError for a file that is damaged or truncated, is no checkpoint, is one of before PyTorch 1.6, or pickles
    other things than tensors in dicts, and names what it found.
    """
    if path.is_dir():
        again = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} {path.name}.pt"
        raise UserError(f"{path}: a folder; one file was wanted. Of a distributed checkpoint PyTorch makes it: {again}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; PyTorch weights were wanted. Check --torch-weights.")
    with path.open("rb") as file, _damage_named(path):
        head = file.read(len(_LEGACY))
        if is_index(path):
            return _of_several(path)
        if is_zip(path):
            return _of_zip(path, file)
        if not head.startswith(_LEGACY) and head[8:9] == b"{":
            return _of_safetensors(path, file)
    if head.startswith(_LEGACY):
        again = f'torch.save(torch.load("{path.name}", map_location="cpu"), "new.pt")'
        raise UserError(
            f"{path}: in PyTorch's format of before 1.6, which is not read in place. Type in Python: {again}"
        )
    raise UserError(f"{path}: neither a zip as torch.save writes it nor safetensors, or truncated. {_SAVE}")


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except _BROKEN as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{path}: damaged or truncated ({found}). Copy or save it again.") from None


def files_of_index(path: Path) -> tuple[Path, dict[str, str]]:
    """A folder, and of each file that the index names the place within it, links followed. The folder is that of the
    file that the index links to, as in Hugging Face's cache; where not all are in it, that of the index's own name.

    Raises UserError where they are in neither.
    """
    with _damage_named(path):
        files = {name: path.with_name(name).resolve() for name in sorted(set(_places(path).values()))}
    for folder in (path.resolve().parent, path.parent.resolve()):
        outside = [name for name, file in files.items() if not file.is_relative_to(folder)]
        if not outside:
            return folder, {name: str(file.relative_to(folder)) for name, file in files.items()}
    raise UserError(f"{path}: {outside[0]} leads out of {folder}, where the index is. Put all files there.")


def _places(path: Path) -> dict[str, str]:
    """By tensor the file, without a folder: `with_name` takes none."""
    with path.open("rb") as file:
        return json.loads(file.read(_LONGEST_HEADER), object_pairs_hook=_unique)["weight_map"]


def _of_several(path: Path) -> dict[str, TorchTensor]:
    places, tensors = _places(path), {}
    for name in sorted(set(places.values())):
        part = path.with_name(name)
        if is_index(part):
            raise ValueError(f"an index in an index, {name}")
        tensors |= {key: each for key, each in torch_tensors(part).items() if places.get(key) == name}
    if missing := sorted(places.keys() - tensors.keys()):
        raise UserError(f"{path}: {missing[0]} is not in {places[missing[0]]}. Copy all of them again.")
    _, files = files_of_index(path)
    return {key: each._replace(file=files[places[key]]) for key, each in tensors.items()}


# --- torch.save


class _Storage(NamedTuple):
    dtype: str
    offset: int
    count: int


class _Dict(dict):
    """In place of an OrderedDict; what else was saved of it (`_metadata`) is left out."""

    def __setstate__(self, state: object) -> None:
        pass


class _Number:
    """In place of a NumPy number, such as an accuracy beside the weights."""

    def __init__(self, *parts: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _tensor(storage: _Storage, start: int, shape: tuple, stride: tuple, *others: object) -> TorchTensor:
    """torch._utils._rebuild_tensor_v2. Raises ValueError for a tensor that is not within its storage."""
    numbers = (start, *shape, *stride)
    if len(shape) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"a tensor of shape {shape} and stride {stride}")
    reach = sum((size - 1) * step for size, step in zip(shape, stride)) + 1 if all(shape) else 0
    if start + reach > storage.count:
        raise ValueError(f"a tensor of shape {shape} in a storage of {storage.count} values")
    steps = [math.prod(shape[at + 1 :]) for at in range(len(shape))]
    is_whole = all(size == 1 or step == wanted for size, step, wanted in zip(shape, stride, steps))
    return TorchTensor(storage.dtype, shape, storage.offset + start * _size(storage.dtype), is_whole or not all(shape))


def _size(dtype: str) -> int:
    return _BYTES.get(dtype, 1)


_KNOWN: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): _Dict,
    ("torch", "Size"): lambda sizes=(): tuple(sizes),
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *others: tensor,
    # facebookresearch/dlrm saves its accuracies beside the weights as NumPy numbers.
    ("numpy.core.multiarray", "scalar"): _Number,
    ("numpy._core.multiarray", "scalar"): _Number,
    ("numpy", "dtype"): _Number,
    ("_codecs", "encode"): _Number,
}


class _Unpickler(pickle.Unpickler):
    """storage: (dtype, key, count) -> _Storage"""

    def __init__(self, path: Path, pickled: IO[bytes], storage: Callable[[str, str, int], _Storage]) -> None:
        super().__init__(pickled)
        self._path = path
        self._storage = storage

    def find_class(self, module: str, name: str) -> object:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) not in _KNOWN:
            raise UserError(
                f"{self._path}: pickles {f'{module}.{name}'!r}, and only dicts of tensors are read. {_SAVE}"
            )
        return _KNOWN[module, name]

    def persistent_load(self, pid: tuple) -> _Storage:
        kind, dtype, key, _, count = pid
        if kind != "storage" or dtype not in _STORAGES.values() or type(key) is not str or type(count) is not int:
            raise ValueError(f"a storage given as {pid!r}")
        return self._storage(dtype, key, count)


def _check_operations(path: Path, pickled: bytes) -> None:
    """Raises UserError for operations that torch.save has no use for, ValueError for one that takes up memory: the
    unpickler makes room for as many values as a damaged number says."""
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name not in _OPERATIONS:
            raise UserError(f"{path}: pickles by {operation.name}, and only dicts of tensors are read. {_SAVE}")
        if operation.name.endswith("PUT") and argument > len(pickled):
            raise ValueError(f"value number {argument} in a pickle of {len(pickled)} bytes")


def _of_zip(path: Path, file: IO[bytes]) -> dict[str, TorchTensor]:
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in members_of(archive)}
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise UserError(f"{path}: a zip, but none that torch.save wrote: data.pkl is not in it. {_SAVE}")
        root = pickles[0].removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in members else b"little"
        if order != b"little":
            raise UserError(f"{path}: saved with {order.decode(errors='replace')!r} byte order; 'little' is read.")

        def storage(dtype: str, key: str, count: int) -> _Storage:
            member = members.get(f"{root}data/{key}")
            if member is None or count < 0 or member.file_size < count * _size(dtype):
                raise ValueError(f"{count} values of {dtype} in {root}data/{key}, which is not there or shorter")
            return _Storage(dtype, stored_at(path, file, member), count)

        stored_at(path, file, members[pickles[0]])  # which torch.save never compresses: it could unpack to anything
        pickled = archive.read(pickles[0])
        _check_operations(path, pickled)
        content = _Unpickler(path, io.BytesIO(pickled), storage).load()
    return _unique(list(_named(content, "", count())))


def _named(content: object, prefix: str, seen: Iterator[int]) -> Iterator[tuple[str, TorchTensor]]:
    """seen: counts all values: dicts that hold each other twice are a few bytes and endless."""
    if next(seen) > _MOST_VALUES:
        raise ValueError(f"more than {_MOST_VALUES:,} values")
    if isinstance(content, TorchTensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _named(value, f"{prefix}{key}.", seen)


# --- safetensors


def _of_safetensors(path: Path, file: IO[bytes]) -> dict[str, TorchTensor]:
    size = path.stat().st_size
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > min(_LONGEST_HEADER, size - 8):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    entries = json.loads(file.read(length), object_pairs_hook=_unique)
    entries.pop("__metadata__", None)
    tensors, parts = {}, []
    for name, entry in entries.items():
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        dtype = _SAFETENSORS.get(dtype, str(dtype))
        if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            raise ValueError(f"{name} has shape {shape} from {begin} to {end}")
        wanted = math.prod(shape) * _BYTES[dtype] if dtype in _BYTES else end - begin
        if end - begin != wanted or 8 + length + end > size:
            raise ValueError(f"{name} of shape {shape} from {begin} to {end}, {size - 8 - length} bytes are there")
        tensors[name] = TorchTensor(dtype, shape, 8 + length + begin)
        parts.append((begin, end, name))
    _check_whole(parts, size - 8 - length)
    return tensors


def _check_whole(parts: list[tuple[int, int, str]], size: int) -> None:
    """That the tensors' bytes follow each other, without overlaps and gaps, as the format has it."""
    at = 0
    for begin, end, name in sorted(parts):
        if begin != at:
            raise ValueError(f"{name} begins at byte {begin}, where {at} was wanted")
        at = end
    if at != size:
        raise ValueError(f"{size} bytes of tensors, {at} are used")


def _unique(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that comes twice")
    return found
