"""Model + numerics + schedules -> what the kernels are made from: a NetworkPlan and the packed weights it points into.

An int8 layer is packed as      W[n, k] * steps[k] = scale[n] * q[n, k],     surplus[n] = -zero point * sum_k q[n, k]
and where its outputs are bytes in given steps, scale and bias are divided by that step: ReLU does not mind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .kernels.dense import DenseSchedule, PackedDense
from .kernels.forms import Form
from .kernels.network_plan import NetworkPlan
from .kernels.packing import Packer, pack_bias, pack_numbers, pack_weight, plain_columns, top_columns, unit_padded
from .kernels.vectors import LANES, padded
from .model import Dense, Dlrm
from .numerics import LayerNumerics, Numerics, numerics_of
from .quantize import steps_of, to_bf16, to_int8
from .schedules import NetworkSchedule


@dataclass(frozen=True)
class LayerShape:
    """A layer as its kernel sees it; inputs: words of tiles, for the first top layer more than the model has;
    unit: how many vectors of outputs are packed together, of which a register tile holds a whole number.
    """

    activation: str
    inputs: int
    outputs: int
    precision: str = "fp32"
    unit: int = 1


ScheduleOf = Callable[[LayerShape], DenseSchedule]


@dataclass(frozen=True, eq=False)
class PlannedNetwork:
    """plan: what the network kernel is emitted from; mlp: flat float32 array of all packed weights and biases."""

    plan: NetworkPlan
    mlp: np.ndarray


def plan_network(
    model: Dlrm,
    batch: int,
    schedule: NetworkSchedule,
    dense_schedule: ScheduleOf,
    table_elements: int,
    numerics: Numerics | None = None,
) -> PlannedNetwork:
    """Pack the MLPs for these schedules, the first top layer's inputs in the order in which our interaction writes.

    numerics: float32 by default.
    """
    numerics = numerics or numerics_of(model, "fp32")
    packer = _LayerPacker(Packer(), dense_schedule)
    columns, grouping = layer_columns(model, numerics)
    shapes = layer_shapes(model, numerics)
    layers = []
    for at, (layer, shape) in enumerate(zip(model.layers, shapes)):
        out = numerics.output_step(at, len(model.bottom))
        layers.append(packer.pack(layer, columns[at], shape, numerics.layers[at], out))
    final = packer.pack_final(model.layers[-1], columns[-1])
    factors_at, units_at = 0, None
    if numerics.precision == "int8":
        factors_at = packer.add(pack_numbers(np.concatenate([[0], numerics.table_steps]).astype(np.float32)))
        steps = numerics.layers[len(model.bottom)].steps
        if steps is not None:
            units_at = packer.add(_dot_units(steps, columns[len(model.bottom)], model))
    mlp = packer.finish()
    form = table_form(numerics.precision)
    plan = NetworkPlan(
        batch=batch,
        num_dense=model.num_dense,
        num_tables=len(model.tables),
        dim=padded(model.dim),
        table_elements=table_elements,
        mlp_elements=mlp.size,
        bottom=tuple(layers[: len(model.bottom)]),
        grouping=grouping,
        top=tuple(layers[len(model.bottom) :]),
        final=final,
        mr=schedule.mr,
        block_tiles=schedule.block_tiles,
        fetch=schedule.fetch,
        skip_zeros=batch == 1,
        means=tuple(table.pooling == "mean" for table in model.tables),
        clamp=model.clamp,
        table_form=form,
        row_words=row_words(model.dim, numerics.precision),
        factors_at=factors_at,
        x_factor=numerics.x_step,
        units_at=units_at,
    )
    return PlannedNetwork(plan, mlp)


def form_of(layer: LayerNumerics) -> Form:
    """The form of a layer's inputs."""
    if layer.precision != "int8":
        return Form(layer.precision)
    return Form("int8", signed=layer.signed, by_row=layer.steps is None)


def table_form(precision: str) -> Form:
    """The form of rows, whose values may be negative."""
    return Form(precision, signed=precision == "int8")


def row_words(dim: int, precision: str) -> int:
    """Words of a row as it is stored."""
    return padded(table_form(precision).words(dim))


def layer_columns(model: Dlrm, numerics: Numerics) -> tuple[list[np.ndarray], object]:
    """Per layer which of the model's inputs each column of tiles holds (-1: none); the interaction's grouping."""
    first_top = len(model.bottom)
    columns = []
    for layer, each in zip(model.layers, numerics.layers):
        columns.append(plain_columns(layer.inputs, each.precision))
    row_columns = row_words(model.dim, numerics.precision) * table_form(numerics.precision).values
    columns[first_top], grouping = top_columns(model, numerics.layers[first_top].precision, row_columns)
    return columns, grouping


def layer_shapes(model: Dlrm, numerics: Numerics | None = None) -> list[LayerShape]:
    """Of all layers that dense kernels run: every one but the last, which is a dot product."""
    numerics = numerics or numerics_of(model, "fp32")
    columns, _ = layer_columns(model, numerics)
    units = [form_of(after).unit for after in numerics.layers[1:]]
    x = len(model.bottom) - 1
    units[x] = max(units[x], table_form(numerics.precision).unit)
    return [
        LayerShape(layer.activation, len(own) // form_of(each).values, layer.outputs, each.precision, unit)
        for layer, own, each, unit in zip(model.layers, columns, numerics.layers, units)
    ]


def _dot_units(steps: np.ndarray, columns: np.ndarray, model: Dlrm) -> np.ndarray:
    """Per lane of the interaction's output: 1 / the step that its dot is brought into, 0 for lanes of no dot."""
    dots = columns[unit_padded(padded(model.dim), "int8") :]
    return np.where(dots >= 0, 1 / steps[dots], 0).astype(np.float32)


class _LayerPacker:
    """Appends the arrays of layers to one array."""

    def __init__(self, packer: Packer, schedule_of: ScheduleOf) -> None:
        self._packer, self._schedule_of = packer, schedule_of
        self.add, self.finish = packer.add, packer.finish

    def pack(
        self,
        layer: Dense,
        columns: np.ndarray,
        shape: LayerShape,
        numerics: LayerNumerics,
        output_step: float | None,
    ) -> PackedDense:
        """output_step: what the outputs are in steps of, None where they are values as the model has them."""
        schedule, form = self._schedule_of(shape), form_of(numerics)
        weight, bias = layer.weight, layer.bias
        gain = 1.0
        if output_step is not None:
            if layer.activation == "sigmoid":
                gain = 1 / output_step
            else:
                weight, bias = weight / np.float32(output_step), bias / np.float32(output_step)
        arrays: dict[str, np.ndarray] = {}
        if form.precision == "bf16":
            weight = to_bf16(weight)
        elif form.precision == "int8":
            weight = weight if numerics.steps is None else weight * numerics.steps
            scale = steps_of(np.abs(weight).max(axis=1))
            weight = to_int8(weight, scale[:, None])
            surplus = -form.zero_point * weight.astype(np.int32).sum(axis=1, dtype=np.int32)
            arrays = {"scale_at": pack_numbers(scale), "surplus_at": pack_numbers(surplus)}
        weight_at = self.add(pack_weight(weight, schedule.nr, columns, form.precision))
        bias_at = self.add(pack_bias(bias, layer.activation))
        places = {name: self.add(array) for name, array in arrays.items()}
        return PackedDense(
            shape.inputs, layer.outputs, layer.activation, weight_at, bias_at, schedule, takes=form, gain=gain, **places
        )

    def pack_final(self, layer: Dense, columns: np.ndarray) -> PackedDense:
        """The layer of one output lies as one row, in whole vectors: it is a dot product, not a tile."""
        row = np.zeros(padded(len(columns)), np.float32)
        used = np.flatnonzero(columns >= 0)
        row[used] = layer.weight[0, columns[used]]
        weight_at = self.add(row)
        bias_at = self.add(np.resize(layer.bias, LANES).astype(np.float32))
        return PackedDense(len(columns), 1, layer.activation, weight_at, bias_at, DenseSchedule(LANES, 1))
