"""The JSON beside a library: what the model is, how it was compiled, where its weights lie. Knows nothing of TVM."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .model import Dlrm, GraphInputs
from .numerics import BYTES, Numerics

FORMAT_VERSION = 2
PLAIN_KERNELS = ("default code generation",)  # as untuned_kernels: TVM's own code, no kernel of ours


@dataclass(frozen=True)
class ModelCard:
    """What a reader needs to know of the model without having it. Widths run from input to output.

    pooling: of each table, "sum" or "mean"; clamp: least and greatest prediction, None where the model has no clamp.
    """

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
    pooling: tuple[str, ...]
    clamp: tuple[float, float] | None

    @property
    def num_tables(self) -> int:
        return len(self.table_rows)

    @property
    def flops_per_item(self) -> int:
        return 2 * self.macs_per_item


def describe(model: Dlrm, numerics: Numerics | None = None) -> ModelCard:
    """numerics: what its weights and rows are stored in, by default float32; bytes are counted in those."""
    interaction = model.interaction.kind + ("_self" if model.interaction.with_self else "")
    values = 1 if numerics is None else 4 // BYTES[numerics.precision]
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
        gather_bytes_per_item=model.gather_bytes_per_item // values,
        mlp_bytes=_mlp_bytes(model, numerics),
        table_bytes=model.table_bytes // values,
        fingerprint=model.fingerprint,
        graph_inputs=model.graph_inputs,
        pooling=tuple(table.pooling for table in model.tables),
        clamp=model.clamp,
    )


def _mlp_bytes(model: Dlrm, numerics: Numerics | None) -> int:
    if numerics is None:
        return model.mlp_bytes
    sizes = [BYTES[layer.precision] for layer in numerics.layers]
    return sum(layer.weight.size * size + layer.bias.nbytes for layer, size in zip(model.layers, sizes))


def describe_numerics(numerics: Numerics) -> NumericsCard | None:
    if numerics.precision == "fp32":
        return None
    steps = None
    if numerics.scales == "static":
        steps = tuple(_few(layer.steps) for layer in numerics.layers)
    return NumericsCard(
        layers=tuple(layer.precision for layer in numerics.layers),
        activation_scales=numerics.scales,
        table_steps=None if numerics.table_steps is None else tuple(map(float, numerics.table_steps)),
        x_step=numerics.x_step,
        layer_steps=steps,
        calibration=numerics.calibration,
    )


def _few(steps: np.ndarray | None) -> float | list[float] | None:
    """One number where all are the same."""
    if steps is None:
        return None
    return float(steps[0]) if (steps == steps[0]).all() else [float(step) for step in steps]


@dataclass(frozen=True)
class Parameter:
    """One part of the parameter file: `tables` (those copied into it), or an argument of main by its name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Piece:
    """A part of a file that holds tables, and where it is mapped in the range of addresses that the library reads.

    file: the parameter file's name, or the absolute path of a file that is used in place, such as an ONNX model's
    external data; offset: bytes into it; at: bytes from the beginning of the range. Both are multiples of 2 MiB.
    file_bytes, modified_ns, sample_sha256: by which a file used in place is known again; None for the parameter file.
    tables: (offset in the file, nbytes) of each of its tables, of which the sample is taken.
    """

    file: str
    offset: int
    nbytes: int
    at: int
    file_bytes: int | None = None
    modified_ns: int | None = None
    sample_sha256: str | None = None
    tables: tuple[tuple[int, int], ...] = ()

    @property
    def is_in_place(self) -> bool:
        return self.file_bytes is not None


@dataclass(frozen=True)
class Part:
    """A part of a call that the library's function `profile` times; what it costs at least, per item.

    what: a layer's widths, or what else it does; flops: of the model's formulas; nbytes: that come from beyond the
    core's own caches: weights, once per tile or block of items that share them, and rows. peak_share: of the library's
    peak that its instruction can reach, below 1 for a layer that stays wider than the others.
    """

    name: str
    what: str
    flops: int
    nbytes: float
    peak_share: float = 1.0


@dataclass(frozen=True)
class NumericsCard:
    """In which numbers the library computes (numerics.py). layers: precision of each, bottom first.

    Of int8: activation_scales: "dynamic", each row's own, or "static"; table_steps: of each table; x_step: of x in the
    interaction; layer_steps: of each layer's inputs, one number, or one per input; those two only where static;
    calibration: where static steps come from.
    """

    layers: tuple[str, ...]
    activation_scales: str | None = None
    table_steps: tuple[float, ...] | None = None
    x_step: float | None = None
    layer_steps: tuple | None = None
    calibration: str | None = None


@dataclass(frozen=True)
class TableRange:
    """All tables as the library's `tables` argument: nbytes of addresses, some of which belong to no piece."""

    nbytes: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Manifest:
    """The JSON beside the library; everything that a reader of the library needs.

    inputs: of its function `main`, one index per table and item; bag_inputs: of `bags`; parameters follow in both.
    profile: the parts that its function `profile` times, in the order of its second output's columns; none where the
    library has no such function. onnx_model: absolute path of the file that it was compiled from.
    directory: where the command was typed, which its relative paths start from; None in manifests of older programs.
    numerics: None for float32 throughout.
    """

    format_version: int
    build: str
    model: ModelCard
    batch_size: int
    precision: str
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

    @property
    def is_plain(self) -> bool:
        return not self.tuned_kernels and self.untuned_kernels == PLAIN_KERNELS

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
        pieces = tuple(_piece(piece) for piece in fields["table_range"]["pieces"])
        fields["profile"] = tuple(Part(**part) for part in fields.get("profile", ()))
        if fields.get("numerics") is not None:
            fields["numerics"] = NumericsCard(**_tuples(fields["numerics"]))
        fields["table_range"] = TableRange(fields["table_range"]["nbytes"], pieces)
        return Manifest(**_tuples(fields | {"model": ModelCard(**card)}))


def _piece(fields: dict[str, Any]) -> Piece:
    return Piece(**fields | {"tables": tuple((int(offset), int(nbytes)) for offset, nbytes in fields["tables"])})


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
