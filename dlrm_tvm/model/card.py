"""What a library records of its model and its precision, for readers without the weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .dlrm import Dlrm, GraphInputs
from .precision import BYTES, Numerics, weight_bytes


@dataclass(frozen=True)
class ModelCard:
    """The model without its weights. bottom, top: widths from input to output; interaction: its kind's name;
    pooling: "sum" or "mean" per table; clamp: least and greatest prediction, None without a clamp; last_activation: the
    last layer's, None in manifests of older programs.
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
    last_activation: str | None = None

    @property
    def num_tables(self) -> int:
        return len(self.table_rows)

    @property
    def flops_per_item(self) -> int:
        return 2 * self.macs_per_item

    @property
    def gives_logits(self) -> bool:
        return self.last_activation == "none" and self.clamp is None


def describe(model: Dlrm, numerics: Numerics | None = None, parts: int = 1) -> ModelCard:
    """numerics, parts: how weights and rows are stored, by default as float32 (`weight_bytes`); bytes are counted
    accordingly."""
    values = 1 if numerics is None else 4 // BYTES[numerics.precision]
    return ModelCard(
        name=model.name,
        num_dense=model.num_dense,
        table_names=tuple(table.name for table in model.tables),
        table_rows=tuple(table.num_rows for table in model.tables),
        dim=model.dim,
        bottom=(model.num_dense, *(layer.outputs for layer in model.bottom)),
        top=(model.top_inputs, *(layer.outputs for layer in model.top)),
        interaction=model.interaction.name,
        macs_per_item=model.macs_per_item,
        gather_bytes_per_item=model.gather_bytes_per_item // values,
        mlp_bytes=_mlp_bytes(model, numerics, parts),
        table_bytes=model.table_bytes // values,
        fingerprint=model.fingerprint,
        graph_inputs=model.graph_inputs,
        pooling=tuple(table.pooling for table in model.tables),
        clamp=model.clamp,
        last_activation=model.top[-1].activation,
    )


def _mlp_bytes(model: Dlrm, numerics: Numerics | None, parts: int) -> int:
    if numerics is None:
        return model.mlp_bytes
    return weight_bytes(model, numerics, parts) + sum(layer.bias.nbytes for layer in model.layers)


def describe_numerics(numerics: Numerics) -> NumericsCard | None:
    if numerics.precision == "fp32":
        return None
    scales = None
    if numerics.activation_scales == "static":
        scales = tuple(_few(layer.scales) for layer in numerics.layers)
    return NumericsCard(
        layers=tuple(layer.precision for layer in numerics.layers),
        activation_scales=numerics.activation_scales,
        table_scales=None if numerics.table_scales is None else tuple(map(float, numerics.table_scales)),
        x_scale=numerics.x_scale,
        layer_scales=scales,
        calibration=numerics.calibration,
    )


def _few(scales: np.ndarray | None) -> float | tuple[float, ...] | None:
    """One number if all are the same."""
    if scales is None:
        return None
    return float(scales[0]) if (scales == scales[0]).all() else tuple(float(scale) for scale in scales)


@dataclass(frozen=True)
class NumericsCard:
    """The library's precision (model/precision.py). layers: precision of each layer, bottom first.

    Only for int8: activation_scales: "dynamic" or "static"; table_scales: one per table.
    Only if static: x_scale: of x in the interaction; layer_scales: of each layer's inputs, one number or one per
    input; calibration: where they come from.
    """

    layers: tuple[str, ...]
    activation_scales: str | None = None
    table_scales: tuple[float, ...] | None = None
    x_scale: float | None = None
    layer_scales: tuple[float | tuple[float, ...] | None, ...] | None = None
    calibration: str | None = None
