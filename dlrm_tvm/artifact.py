"""A compiled model on disk: NAME.so, NAME.json (manifest), NAME.params (weights and tables, to be memory-mapped).

    NAME.params    4096 bytes of header (JSON: format, build), then each parameter from its own offset, 64-byte aligned;
                   those of 2 MiB and more from a multiple of 2 MiB, so that the kernel can map huge pages

The three belong together by `build`, a random name that the manifest and the parameters carry, and by the library's
own hash in the manifest. Opening reads the manifest and the header, checks them and the CPU, and maps the rest; the
parameters' checksum is for whoever copies them (sha256 over header JSON and parameters, gaps left out), not read here.
Knows nothing of TVM.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from .cpu import check_host_runs
from .errors import UserError
from .model import Dlrm, GraphInputs

FORMAT_VERSION = 1
HEADER_BYTES = 4096
ALIGNMENT = 64
HUGE_PAGE = 2 << 20
_MAP_NORESERVE = 0x4000  # Linux; Python's mmap module has the name from 3.13 on
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class ModelCard:
    """What a reader needs to know of the model without having it. Widths run from input to output."""

    name: str
    num_dense: int
    table_names: tuple[str, ...]
    table_rows: tuple[int, ...]
    dim: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    interaction: str
    macs_per_item: int
    gather_bytes_per_item: int
    mlp_bytes: int
    table_bytes: int
    fingerprint: str
    graph_inputs: GraphInputs

    @property
    def num_tables(self) -> int:
        return len(self.table_rows)

    @property
    def flops_per_item(self) -> int:
        return 2 * self.macs_per_item


def describe(model: Dlrm) -> ModelCard:
    interaction = model.interaction.kind + ("_self" if model.interaction.with_self else "")
    return ModelCard(
        name=model.name,
        num_dense=model.num_dense,
        table_names=tuple(table.name for table in model.tables),
        table_rows=tuple(table.num_rows for table in model.tables),
        dim=model.dim,
        bottom=(model.num_dense, *(layer.outputs for layer in model.bottom)),
        top=(model.top_inputs, *(layer.outputs for layer in model.top)),
        interaction=interaction,
        macs_per_item=model.macs_per_item,
        gather_bytes_per_item=model.gather_bytes_per_item,
        mlp_bytes=model.mlp_bytes,
        table_bytes=model.table_bytes,
        fingerprint=model.fingerprint,
        graph_inputs=model.graph_inputs,
    )


@dataclass(frozen=True)
class Parameter:
    """One argument of the library's main function after the inputs: where it lies in the parameter file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Manifest:
    """The JSON beside the library; everything that a reader of the library needs."""

    format_version: int
    build: str
    model: ModelCard
    batch_size: int
    precision: str
    target_cpu: str
    cpu_features: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    library_sha256: str
    parameter_file: str
    parameter_bytes: int
    parameter_sha256: str
    parameters: tuple[Parameter, ...]
    peak_flops_per_round: int
    tuned_kernels: tuple[str, ...]
    untuned_kernels: tuple[str, ...]
    tvm_version: str
    command: str
    created: str

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Raises ValueError, KeyError or TypeError on anything that is not a manifest of this version."""
        fields = json.loads(text)
        if fields["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {fields['format_version']}, this program reads {FORMAT_VERSION}")
        card = _tuples(fields["model"])
        card["graph_inputs"] = GraphInputs(**_tuples(card["graph_inputs"]))
        fields["parameters"] = tuple(Parameter(**_tuples(entry)) for entry in fields["parameters"])
        return Manifest(**_tuples(fields | {"model": ModelCard(**card)}))


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


@dataclass(frozen=True, eq=False)
class Artifact:
    """An opened library: parameters are memory maps of one file that all processes share."""

    library: Path
    manifest: Manifest
    parameters: tuple[np.ndarray, ...]


def open_artifact(library: str | Path) -> Artifact:
    """Open NAME.so with its manifest and parameters, in milliseconds and copying nothing.

    Raises UserError when a file is missing, they do not belong together, or this CPU lacks an instruction.
    """
    library = Path(library)
    if not library.is_file():
        raise UserError(f"{library}: no such file. Make it with: python compile.py")
    manifest = _read_manifest(library)
    check_host_runs(library.name, manifest.cpu_features)
    if hashlib.sha256(library.read_bytes()).hexdigest() != manifest.library_sha256:
        raise UserError(
            f"{library} is not the library that {library.with_suffix('.json').name} describes. Compile again."
        )
    return Artifact(library, manifest, _map_parameters(library, manifest))


def _read_manifest(library: Path) -> Manifest:
    path = library.with_suffix(".json")
    if not path.is_file():
        raise UserError(f"{path}: no such file; a library needs its manifest beside it. Compile again.")
    try:
        return Manifest.from_json(path.read_text())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a manifest of this version ({error}). Compile again.") from None


def _map_parameters(library: Path, manifest: Manifest) -> tuple[np.ndarray, ...]:
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
        # Private, because TVM takes no read-only memory; pages that nobody writes stay the file's own, shared by all.
        # Without reserving swap for them, or a file larger than memory could not be mapped.
        flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
        mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            mapped.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(mapped, dtype=np.uint8)
    return tuple(
        whole[entry.offset : entry.offset + entry.nbytes].view(entry.dtype).reshape(entry.shape)
        for entry in manifest.parameters
    )


def _build_of(header: bytes) -> str | None:
    try:
        return json.loads(header.rstrip(b"\0"))["build"]
    except (ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True, eq=False)
class ParameterSource:
    """A parameter to be written: its parts, each C-contiguous when copied, follow one another without a gap."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[np.ndarray, ...]
    row_columns: int | None = None  # 2-d parts are widened with zero columns to this many

    def chunks(self) -> Iterator[np.ndarray]:
        """The data piece by piece, so that tables of any size pass through little memory."""
        for part in self.parts:
            rows = part if self.row_columns is None else part.reshape(-1, part.shape[-1])
            step = max(1, _CHUNK_BYTES // max(1, rows[:1].nbytes))
            for at in range(0, len(rows), step):
                chunk = np.ascontiguousarray(rows[at : at + step], dtype=self.dtype)
                if self.row_columns is not None and chunk.shape[1] != self.row_columns:
                    chunk = np.pad(chunk, ((0, 0), (0, self.row_columns - chunk.shape[1])))
                yield chunk


def lay_out(sources: list[ParameterSource]) -> tuple[tuple[Parameter, ...], int]:
    """Offsets of the parameters and the size of their file."""
    entries, end = [], HEADER_BYTES
    for source in sources:
        plain = Parameter(source.name, source.dtype, source.shape, 0)
        alignment = HUGE_PAGE if plain.nbytes >= HUGE_PAGE else ALIGNMENT
        offset = -(-end // alignment) * alignment
        entries.append(Parameter(source.name, source.dtype, source.shape, offset))
        end = offset + plain.nbytes
    return tuple(entries), end


def write_parameters(path: Path, build: str, sources: list[ParameterSource], entries: tuple[Parameter, ...]) -> str:
    """Write the parameter file and return its sha256 (over header and parameters, gaps left out).

    Written in pieces that fill whole huge pages where they can: the page cache then keeps them as such.
    """
    digest = hashlib.sha256()
    header = json.dumps({"format": "dlrm_tvm parameters", "version": FORMAT_VERSION, "build": build}).encode()
    with path.open("wb", buffering=0) as file:
        digest.update(header)
        _write_whole(file, memoryview(header.ljust(HEADER_BYTES, b"\0")))
        for source, entry in zip(sources, entries):
            file.seek(entry.offset)
            for block in _whole_blocks(source.chunks()):
                digest.update(block)
                _write_whole(file, block)
            if file.tell() != entry.offset + entry.nbytes:
                raise AssertionError(f"parameter {entry.name}: its parts do not fill its shape")
    return digest.hexdigest()


def _write_whole(file: FileIO, block: memoryview) -> None:
    """An unbuffered file writes as much as the disk takes, and raises OSError only when that is nothing."""
    while block:
        block = block[file.write(block) :]


def _whole_blocks(chunks: Iterator[np.ndarray]) -> Iterator[memoryview]:
    """The same bytes in pieces of a huge page's size, the last one as it comes."""
    buffer, filled = bytearray(HUGE_PAGE), 0
    for chunk in chunks:
        data = memoryview(chunk.reshape(-1).view(np.uint8))
        while data:
            size = min(HUGE_PAGE - filled, len(data))
            buffer[filled : filled + size] = data[:size]
            filled, data = filled + size, data[size:]
            if filled == HUGE_PAGE:
                yield memoryview(buffer)
                filled = 0
    if filled:
        yield memoryview(buffer)[:filled]
