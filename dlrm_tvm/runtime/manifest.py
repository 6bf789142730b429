"""The JSON beside a library: what the model is, how it was compiled, where its weights lie. Knows nothing of TVM."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import printable
from ..machine.address_range import HUGE_PAGE
from ..model.card import ModelCard, NumericsCard
from ..model.precision import BYTES
from .typed_json import parse, read_as

FORMAT_VERSION = 3
HEADER_BYTES = 4096  # of the parameter file
ALIGNMENT = 64
TABLES = "tables"
_MOST_ITEMS = 1 << 31
PLAIN_KERNELS = ("default code generation",)  # as untuned_kernels: TVM's own code, no kernel of ours


@dataclass(frozen=True)
class Parameter:
    """One part of the parameter file: `tables` (those copied into it), or an argument of main by its name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Piece:
    """A part of a file that holds tables, and where it is mapped in the range of addresses that the library reads.

    file: the parameter file's name, or the absolute path of a file that is used in place, such as an ONNX model's
    external data; offset: bytes into it; at: bytes from the beginning of the range. Both are multiples of 2 MiB.
    file_bytes, modified_ns, changed_ns, inode, sample_sha256: by which a file used in place is known again; None for
    the parameter file. tables: (offset in the file, nbytes) of each of its tables, of which the sample is taken.
    """

    file: str
    offset: int
    nbytes: int
    at: int
    file_bytes: int | None = None
    modified_ns: int | None = None
    sample_sha256: str | None = None
    tables: tuple[tuple[int, int], ...] = ()
    changed_ns: int | None = None
    inode: int | None = None

    @property
    def is_in_place(self) -> bool:
        return self.file_bytes is not None


@dataclass(frozen=True)
class Part:
    """A part of a call that the library's function `profile` times; what it costs at least, per item.

    what: a layer's widths, or what else it does; flops: of the model's formulas; nbytes: that come from beyond the
    core's own caches: weights, once per tile or block of items that share them, and rows. peak_share: of the library's
    peak that its instruction can reach, below 1 for a layer that stays wider than the others. With bags, which are
    pooled when rows are located, a part of rows takes bag_nbytes, and index_nbytes for each index of an item; None: as
    without.
    """

    name: str
    what: str
    flops: int
    nbytes: float
    peak_share: float = 1.0
    bag_nbytes: float | None = None
    index_nbytes: float = 0.0


@dataclass(frozen=True)
class Peak:
    """A loop of multiply-adds of a family of instructions, as the function peak_name(precision) of the library."""

    precision: str
    family: str
    flops_per_round: int


def peak_name(precision: str) -> str:
    return f"peak_{precision}"


@dataclass(frozen=True)
class TableRange:
    """All tables as the library's `tables` argument: nbytes of addresses, some of which belong to no piece."""

    nbytes: int
    pieces: tuple[Piece, ...]

    @property
    def piece_bytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)


@dataclass(frozen=True)
class Manifest:
    """The JSON beside the library; everything that a reader of the library needs.

    family: of instructions, as kernels/isa.py names it.
    inputs: of its function `main`, one index per table and item; bag_inputs: of `bags`; parameters follow in both.
    profile: the parts that its function `profile` times, in the order of its second output's columns; none where the
    library has no such function. onnx_model: absolute path of the file that it was compiled from.
    directory: where the command was typed, which its relative paths start from; None in manifests of older programs.
    options: compile.py's flags that make the same library for another batch size, by name (None or false: not given),
    paths absolute; None where something else than compile.py built it.
    machine: what its blocks were chosen by, caches in bytes and rates of one core; None where they were given.
    numerics: None for float32 throughout. rest_sha256: of the parameter file's header and what it holds besides tables.
    other_peaks: of the other precisions that the CPU has instructions for; the function peak_fma is the library's own.
    """

    format_version: int
    build: str
    model: ModelCard
    batch_size: int
    precision: str
    family: str
    target_cpu: str
    cpu_features: tuple[str, ...]
    inputs: tuple[str, ...]
    bag_inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    library_sha256: str
    parameter_file: str
    parameter_bytes: int
    parameter_sha256: str
    parameters: tuple[Parameter, ...]
    table_range: TableRange
    peak_flops_per_round: int
    tuned_kernels: tuple[str, ...]
    untuned_kernels: tuple[str, ...]
    tvm_version: str
    command: str
    created: str
    profile: tuple[Part, ...] = ()  # from here on what libraries compiled earlier lack
    onnx_model: str | None = None
    directory: str | None = None
    numerics: NumericsCard | None = None
    options: dict[str, Any] | None = None
    machine: dict[str, Any] | None = None
    rest_sha256: str | None = None
    other_peaks: tuple[Peak, ...] = ()

    def peak_of(self, precision: str | None) -> Peak:
        """The one of this precision, else the library's own."""
        own = Peak(self.precision, self.family, self.peak_flops_per_round)
        return next((each for each in self.other_peaks if each.precision == precision), own)

    @property
    def is_plain(self) -> bool:
        return not self.tuned_kernels and self.untuned_kernels == PLAIN_KERNELS

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Raises ValueError on anything that is not a manifest of this version, or describes no library."""
        fields = parse(text)
        version = fields.get("format_version") if isinstance(fields, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(f"format version {version}, this program reads {FORMAT_VERSION}")
        manifest = read_as(Manifest, fields, "manifest")
        check_manifest(manifest)
        names = tuple(map(printable, manifest.model.table_names))
        return replace(manifest, model=replace(manifest.model, name=printable(manifest.model.name), table_names=names))


def check_manifest(manifest: Manifest) -> None:
    """Raises ValueError where its numbers do not fit together, or lead out of the files and addresses they are of."""
    model, mapped = manifest.model, manifest.table_range
    tables, rows = len(model.table_rows), _row_bytes(manifest)
    _require((manifest.precision == "fp32") == (manifest.numerics is None), f"{manifest.precision} without numerics")
    _require(0 < manifest.batch_size < _MOST_ITEMS, f"batch size {manifest.batch_size}")
    _require(len(model.table_names) == len(model.pooling) == tables > 0, "tables of different numbers")
    _require(min(model.table_rows) > 0 and model.dim > 0, "tables without rows or columns")
    _require(
        (model.bottom[:1], model.bottom[-1:], model.top[-1:]) == ((model.num_dense,), (model.dim,), (1,))
        and min(model.bottom + model.top) > 0,
        "layers that do not fit together",
    )
    _require(
        Path(manifest.parameter_file).name == manifest.parameter_file != "", f"file name {manifest.parameter_file!r}"
    )
    names = [entry.name for entry in manifest.parameters]
    _require(names[-2:] == ["table_info", "mlp"] and names[:-2] in ([], [TABLES]), f"parameters {', '.join(names)}")
    *others, info, mlp = manifest.parameters
    copied = others[0] if others else None
    _require(copied is None or (copied.dtype == "float32" and min(copied.shape, default=0) > 0), "tables of no float32")
    _require((info.dtype, info.shape) == ("int64", (2, tables)), "table_info of another shape")
    _require(mlp.dtype == "float32" and len(mlp.shape) == 1 and mlp.shape[0] > 0, "mlp of another shape")
    for entry in manifest.parameters:
        inside = HEADER_BYTES <= entry.offset <= manifest.parameter_bytes - entry.nbytes
        _require(inside and entry.offset % ALIGNMENT == 0, f"{entry.name} at byte {entry.offset} of its file")
    end, in_place = 0, 0
    for number, piece in enumerate(mapped.pieces):
        what = f"piece {number} of {piece.nbytes} bytes, at {piece.at} from byte {piece.offset} of its file"
        fits = end <= piece.at <= mapped.nbytes - piece.nbytes and piece.nbytes > 0 <= piece.offset
        _require(fits and piece.offset % HUGE_PAGE == piece.at % HUGE_PAGE == 0, what)
        end = piece.at + piece.nbytes
        if piece.is_in_place:
            _require(piece.sample_sha256 is not None and piece.modified_ns is not None, what)
            _require(Path(piece.file).is_absolute() and piece.offset + piece.nbytes <= piece.file_bytes, what)
            for at, nbytes in piece.tables:
                _require(piece.offset <= at <= piece.offset + piece.nbytes - nbytes and nbytes > 0, what)
                in_place += nbytes
        else:
            place = None if copied is None else (copied.offset, copied.nbytes)
            _require(piece.file == manifest.parameter_file and (piece.offset, piece.nbytes) == place, what)
    _require(mapped.nbytes == end, f"a range of {mapped.nbytes} bytes for pieces of {end}")
    stored = sum(model.table_rows) * rows
    held = in_place + (0 if copied is None else copied.nbytes)
    _require(stored == held, f"tables of {stored} bytes in {held}")


def check_table_info(manifest: Manifest, info: np.ndarray) -> None:
    """info: [2, T] int64, as the library takes it. Raises ValueError where it is not that of the manifest's tables, or
    leads outside of what is mapped."""
    starts, rows = info * np.int64([[4], [1]])
    _require(rows.tolist() == list(manifest.model.table_rows), "other numbers of rows")
    for start, end in zip(starts.tolist(), (starts + rows * _row_bytes(manifest)).tolist()):
        inside = any(piece.at <= start and end <= piece.at + piece.nbytes for piece in manifest.table_range.pieces)
        _require(inside, f"a table at byte {start} of {manifest.table_range.nbytes}")


def _row_bytes(manifest: Manifest) -> int:
    """Of a stored row: whole vectors."""
    if manifest.precision not in BYTES:
        raise ValueError(f"precision {manifest.precision!r}")
    return -(-manifest.model.dim * BYTES[manifest.precision] // ALIGNMENT) * ALIGNMENT


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"it describes {what}")
