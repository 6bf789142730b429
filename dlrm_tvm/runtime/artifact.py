"""A compiled model on disk: NAME.so, NAME.json (manifest), NAME.params (weights and copied tables), opened.

The three belong together by `build`, a random name that the manifest and the parameters carry, and by the library's
own hash in the manifest; tables used in place are known by their file's size, times and inode, or by a sample of its
bytes. Opening checks the manifest and the CPU, maps the files, and checks by hash whatever they hold besides tables, in
milliseconds. The checksum with the tables is for whoever copies them (sha256 over header JSON and parameters, gaps left
out), not read here. Knows nothing of TVM.

A file that becomes shorter while it is mapped ends the process at the next access (SIGBUS): replace libraries and
models by renaming (`mv`, as compile.py does), never by `cp` over them or by truncating.
"""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..machine.address_range import AddressRange
from ..machine.cpu import check_host_runs
from ..machine.memory import available_bytes
from ..paths import COMPILE_COMMAND
from .manifest import HEADER_BYTES, TABLES, Manifest, Parameter, Piece, check_table_info
from .parameters import HUGE_PAGE, rest_sha256
from .table_files import SINGLE_ROWS, sample_sha256
from .typed_json import parse

_MOST_BYTES = 64 << 20  # of a library, and of a manifest: those of the largest models have MB


@dataclass(frozen=True)
class SharedCopies:
    """Descriptors of shared memory that holds the weights already, to be mapped in place of the files; None: the file.

    tables: laid out as the range of tables is; parameters: as the parameter file from `rest_offset` on.
    """

    tables: int | None = None
    parameters: int | None = None


@dataclass(frozen=True, eq=False)
class Artifact:
    """An opened library. parameters: main's arguments after the inputs, read-only memory that all processes share:
    tables (float32, one range over all files), table_info, mlp. tables: that range.
    """

    library: Path
    manifest: Manifest
    tables: AddressRange
    parameters: tuple[np.ndarray, ...]


def open_artifact(
    library: str | Path, *, copies: SharedCopies = SharedCopies(), whole_tables: bool | None = None
) -> Artifact:
    """Open NAME.so with its manifest and parameters, in milliseconds and copying nothing.

    whole_tables: whether they are to be held in memory as a whole, in huge pages where the kernel has them, rather
    than read row by row; None: if they fit. Raises UserError when a file is missing, they do not belong together, or
    this CPU lacks an instruction.
    """
    library = Path(library)
    if not library.is_file():
        found = "a folder, not the .so of a library" if library.is_dir() else "no such file"
        raise UserError(f"{library}: {found}. Make it with: {COMPILE_COMMAND}")
    if library.stat().st_size > _MOST_BYTES:
        raise UserError(f"{library} is larger than any library of this program. Compile again.")
    manifest = _read_manifest(library)
    check_host_runs(library.name, manifest.cpu_features)
    if hashlib.sha256(library.read_bytes()).hexdigest() != manifest.library_sha256:
        raise UserError(
            f"{library} is not the library that {library.with_suffix('.json').name} describes. Compile again."
        )
    _check_parameters(library, manifest)
    if whole_tables is None:
        whole_tables = manifest.model.table_bytes <= available_bytes()
    tables = _map_tables(library, manifest, copies.tables, whole_tables)
    rest = _map_rest(library, manifest, copies.parameters)
    if copies.parameters is None:  # else they were checked before they were copied
        _check_rest(library, manifest, rest)
    return Artifact(library, manifest, tables, (tables.array.view(np.float32), *rest))


def files_of_library(library: Path, onnx_model: Path | None = None) -> list[Path | str]:
    """All files that a run of it may read: its own three, and those that lie elsewhere, as far as its manifest says."""
    own = [library.with_suffix(suffix) for suffix in (".so", ".json", ".params") if library.name] + [library]
    try:
        return own + files_of_model(_read_manifest(library) if library.name else None, onnx_model)
    except (UserError, OSError):  # told when it is opened
        return own + files_of_model(None, onnx_model)


def files_of_model(manifest: Manifest | None, onnx_model: Path | None) -> list[Path | str]:
    """The ONNX file with its external data, tables that are used in place."""
    graphs = [str(path) for path in (onnx_model, manifest and manifest.onnx_model) if path]
    pieces = manifest.table_range.pieces if manifest else ()
    return [*graphs, *(f"{path}.data" for path in graphs), *(piece.file for piece in pieces if piece.is_in_place)]


def _read_manifest(library: Path) -> Manifest:
    path = library.with_suffix(".json")
    if not path.is_file():
        raise UserError(f"{path}: no such file; a library needs its manifest beside it. Compile again.")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("larger than any")
        return Manifest.from_json(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not a manifest of this version ({error}). Compile again.") from None


def rest_offset(manifest: Manifest) -> int:
    """Where in the parameter file begins what is not tables, from its page on."""
    return min(entry.offset for entry in _rest(manifest)) // HUGE_PAGE * HUGE_PAGE


def _rest(manifest: Manifest) -> list[Parameter]:
    return [entry for entry in manifest.parameters if entry.name != TABLES]


def _map_rest(library: Path, manifest: Manifest, shared: int | None) -> list[np.ndarray]:
    """What the parameter file holds besides tables: main's last arguments."""
    first = rest_offset(manifest)
    memory = AddressRange(manifest.parameter_bytes - first)
    if shared is not None:
        memory.map_file(shared, 0, memory.nbytes, at=0)
    else:
        with library.with_name(manifest.parameter_file).open("rb") as file:
            memory.map_file(file.fileno(), first, memory.nbytes, at=0)
    memory.advise(mmap.MADV_HUGEPAGE)
    return [_view(memory.array, entry, first) for entry in _rest(manifest)]


def _check_rest(library: Path, manifest: Manifest, rest: list[np.ndarray]) -> None:
    path = library.with_name(manifest.parameter_file)
    try:
        check_table_info(manifest, rest[0])
    except ValueError as error:
        raise UserError(f"{path} does not hold the tables of its manifest: {error}. Compile again.") from None
    if manifest.rest_sha256 not in (None, rest_sha256(path, manifest.parameters)):
        raise UserError(f"{path} was changed or damaged since it was written. Copy it anew or compile again.")


def _view(memory: np.ndarray, entry: Parameter, first: int) -> np.ndarray:
    at = entry.offset - first
    return memory[at : at + entry.nbytes].view(entry.dtype).reshape(entry.shape)


def _check_parameters(library: Path, manifest: Manifest) -> None:
    path = library.with_name(manifest.parameter_file)
    if not path.is_file():
        raise UserError(f"{path}: no such file; {library.name} needs its parameters beside it. Compile again.")
    size = path.stat().st_size
    if size != manifest.parameter_bytes:
        raise UserError(f"{path} has {size} bytes, {manifest.parameter_bytes} were wanted. Compile again.")
    with path.open("rb") as file:
        if _build_of(file.read(HEADER_BYTES)) != manifest.build:
            raise UserError(
                f"{path} does not belong to {library.name}: it was written by another build. Compile again."
            )


def piece_path(library: Path, piece: Piece) -> Path:
    return library.parent / piece.file  # an absolute path stays as it is


def _map_tables(library: Path, manifest: Manifest, shared: int | None, whole: bool) -> AddressRange:
    """The range of tables. Raises UserError for a file used in place that is gone or was changed."""
    memory = AddressRange(manifest.table_range.nbytes)
    if shared is not None:
        memory.map_file(shared, 0, memory.nbytes, at=0)
        memory.advise(mmap.MADV_HUGEPAGE)
        return memory
    # A huge page is read in whole at the first touch: right for what is to be in memory, ruin for what does not fit.
    advices = (mmap.MADV_HUGEPAGE,) if whole else SINGLE_ROWS
    for piece in manifest.table_range.pieces:
        path = piece_path(library, piece)
        if piece.is_in_place:
            check_in_place(path, piece)
        with path.open("rb") as file:
            memory.map_file(file.fileno(), piece.offset, piece.nbytes, at=piece.at)
        for advice in advices:
            memory.advise(advice, at=piece.at, nbytes=piece.nbytes)
    return memory


def check_in_place(path: Path, piece: Piece) -> None:
    """Raises UserError unless the file holds what it held when the library was compiled."""
    remedy = "Put it back, or compile again (--copy-tables makes a library that does without it)."
    if not path.is_file():
        raise UserError(f"{path}: no such file; the library reads its tables from it where they lie. {remedy}")
    status = path.stat()
    if status.st_size != piece.file_bytes:
        raise UserError(f"{path} has {status.st_size} bytes, {piece.file_bytes} when it was compiled. {remedy}")
    # Another time or inode alone proves nothing: copying and unpacking set them anew. Nor does the same time of the
    # content, which tools can set; that of the inode they cannot.
    known = (piece.modified_ns, piece.changed_ns, piece.inode)
    if known == (status.st_mtime_ns, status.st_ctime_ns, status.st_ino):
        return
    if known == (status.st_mtime_ns, None, None):  # a manifest of an older program
        return
    if sample_sha256(path, piece.tables, small_whole=piece.inode is not None) != piece.sample_sha256:
        raise UserError(f"{path} was changed since the library was compiled from it. {remedy}")


def _build_of(header: bytes) -> str | None:
    try:
        return parse(header.rstrip(b"\0").decode())["build"]
    except (ValueError, KeyError, TypeError):
        return None
