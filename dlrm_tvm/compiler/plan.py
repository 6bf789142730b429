"""Model + numerics + schedules -> a NetworkPlan, from which kernels are emitted, and the packed weights.

An int8 layer is packed as   W[n, k] * scales[k] = scale[n] * q[n, k],   compensation[n] = -zero point * sum_k q[n, k]
If its outputs have a static scale, its weights and bias are divided by it, as ReLU(y / scale) = ReLU(y) / scale.
An fp32 layer on tiles is packed in three parts of bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..kernels.dense import DenseSchedule, PackedDense
from ..kernels.embedding_bag import bag_prefetch
from ..kernels.isa import AVX512, Family, beside
from ..kernels.packing import Packer, pack_bias, pack_numbers, pack_weight, pack_weight_parts, plain_columns
from ..kernels.vectors import LANES, padded
from ..kernels.words import FP32, UNPACKED, Form, row_words, table_form
from ..model.dlrm import Dense, Dlrm
from ..model.precision import LayerNumerics, Numerics, int8_weights, numerics_of, to_bf16
from ..network.interaction import plan_of
from ..network.plan import NetworkPlan
from ..schedules.rules import LayerShape, NetworkSchedule

ScheduleOf = Callable[[LayerShape], DenseSchedule]


@dataclass(frozen=True, eq=False)
class PlannedNetwork:
    """plan: of the network's functions; mlp: flat float32 array of all packed weights and biases."""

    plan: NetworkPlan
    mlp: np.ndarray


def plan_network(
    model: Dlrm,
    batch: int,
    schedule: NetworkSchedule,
    dense_schedule: ScheduleOf,
    table_elements: int,
    numerics: Numerics | None = None,
    family: Family = AVX512,
) -> PlannedNetwork:
    """Pack the MLPs for these schedules, the first top layer's inputs in the order that the interaction writes.

    numerics: float32 by default; family: serves its precision.
    """
    numerics = numerics or numerics_of(model, "fp32")
    packer, forms = _LayerPacker(dense_schedule), forms_of(numerics, family)
    columns, shapes = layer_columns(model, numerics, family), layer_shapes(model, numerics, family)
    rows = layer_rows(model, numerics, forms)
    num_bottom, first_top, last = len(model.bottom), model.first_top, len(model.layers) - 1

    def pack(at: int) -> PackedDense:
        scale = numerics.output_scale(at, model)
        if isinstance(scale, np.ndarray):
            # Outputs are multiplied by values that come times UNPACKED.
            scale = np.where(rows[at] >= 0, scale[rows[at]], np.float32(1))[:, None] * np.float32(UNPACKED)
        layer = arranged(model.layers[at], rows[at])
        return packer.pack(layer, columns[at], shapes[at], forms[at], numerics.layers[at], scale)

    bottom = tuple(pack(at) for at in range(num_bottom))
    inner = tuple(pack(at) for at in range(num_bottom, first_top))
    between = forms[num_bottom : first_top + 1]
    interaction = plan_of(model).pack(model, numerics, packer, inner, between, family.tile_dots)
    top = tuple(pack(at) for at in range(first_top, last))
    final = packer.pack_final(model.layers[-1], columns[-1])
    factors_at = 0
    if numerics.precision == "int8":
        factors_at = packer.add(pack_numbers(np.concatenate([[0], numerics.vector_factors(model)]).astype(np.float32)))
    mlp, words = packer.finish(), row_words(model.dim, numerics.precision)
    plan = NetworkPlan(
        batch=batch,
        num_dense=model.num_dense,
        num_tables=len(model.tables),
        dim=padded(model.dim),
        table_elements=table_elements,
        mlp_elements=mlp.size,
        bottom=bottom,
        interaction=interaction,
        top=top,
        final=final,
        mr=schedule.mr,
        block_tiles=schedule.block_tiles,
        prefetch=schedule.prefetch,
        skip_zeros=batch == 1,
        means=tuple(table.pooling == "mean" for table in model.tables),
        clamp=model.clamp,
        table_form=table_form(numerics.precision, family),
        row_words=words,
        factors_at=factors_at,
        bag_prefetch=bag_prefetch(words, family.tiles),
        family=family,
    )
    return PlannedNetwork(plan, mlp)


def forms_of(numerics: Numerics, family: Family = AVX512) -> list[Form]:
    """Of each layer's inputs. family: of the network; of another precision where only layouts matter."""
    own = family if family.precision == numerics.precision else None
    return [*(_form_of(layer, own) for layer in numerics.layers[:-1]), FP32]  # the last is a dot product on vectors


def _form_of(layer: LayerNumerics, network: Family | None) -> Form:
    family = network and beside(network, layer.precision)
    takes = layer.precision if family is None else family.takes
    if takes == "fp32":
        return FP32
    if takes == "bf16":
        return Form("bf16", family=family)
    return Form(takes, signed=layer.signed, by_row=layer.scales is None, family=family)


def layer_columns(model: Dlrm, numerics: Numerics, family: Family = AVX512) -> list[np.ndarray]:
    """Per layer and column of its tiles, the model's input in that column (-1: none); on tiles whole k tiles."""
    forms, between = forms_of(numerics, family), slice(len(model.bottom), model.first_top + 1)
    columns = [plain_columns(layer.inputs, form.precision) for layer, form in zip(model.layers, forms)]
    columns[between] = plan_of(model).columns(model, numerics, forms[between], family.tile_dots)
    if family.tiles:
        widths = [LANES * form.values for form in forms]
        columns = [np.pad(own, (0, -len(own) % width), constant_values=-1) for own, width in zip(columns, widths)]
    return columns


def layer_rows(model: Dlrm, numerics: Numerics, forms: list[Form]) -> list[np.ndarray | None]:
    """Per layer and column of its outputs, the model's output in that column (-1: none); None for their own order."""
    rows: list[np.ndarray | None] = [None] * len(model.layers)
    between = forms[len(model.bottom) : model.first_top + 1]
    rows[len(model.bottom) : model.first_top] = plan_of(model).rows(model, numerics, between)
    return rows


def arranged(layer: Dense, rows: np.ndarray | None) -> Dense:
    """The layer with its outputs in this order; -1: zeros."""
    if rows is None:
        return layer
    used = (rows >= 0).astype(np.float32)
    return Dense(layer.weight[rows] * used[:, None], layer.bias[rows] * used, layer.activation)


def layer_shapes(model: Dlrm, numerics: Numerics | None = None, family: Family = AVX512) -> list[LayerShape]:
    """Of all layers that dense kernels compute: all but the last, which is a dot product."""
    numerics = numerics or numerics_of(model, "fp32")
    forms = forms_of(numerics, family)
    columns, rows = layer_columns(model, numerics, family), layer_rows(model, numerics, forms)
    outputs = [layer.outputs if own is None else len(own) for layer, own in zip(model.layers, rows)]
    units = [after.unit for after in forms[1:]]
    x = len(model.bottom) - 1
    units[x] = max(units[x], table_form(numerics.precision).unit)
    joined = forms[x + 1].unit  # of x0 and x_l, which W's outputs meet, also before a float32 layer
    units = [unit if own is None else max(unit, joined) for unit, own in zip(units, rows)]
    return [
        LayerShape(
            layer.activation, len(own) // form.values * form.parts, count, form.precision, unit, form.parts, form.by_row
        )
        for layer, own, count, form, unit in zip(model.layers, columns, outputs, forms, units)
    ]


class _LayerPacker(Packer):
    """Packs whole layers too."""

    def __init__(self, schedule_of: ScheduleOf) -> None:
        super().__init__()
        self._schedule_of = schedule_of

    def pack(
        self,
        layer: Dense,
        columns: np.ndarray,
        shape: LayerShape,
        form: Form,
        numerics: LayerNumerics,
        output_scale: float | np.ndarray | None,
    ) -> PackedDense:
        """form: of the inputs; output_scale: the static scale of the outputs, [outputs, 1] if each has its own,
        None if they stay as they are."""
        schedule = self._schedule_of(shape)
        weight, bias = layer.weight, layer.bias
        gain = 1.0
        if output_scale is not None:
            if layer.activation == "sigmoid":
                gain = 1 / output_scale
            else:
                scale = np.float32(output_scale)
                weight, bias = weight / scale, bias / scale.reshape(-1)
        arrays: dict[str, np.ndarray] = {}
        if form.precision == "bf16" and form.parts == 1:
            weight = to_bf16(weight)
        elif form.is_whole:
            assert form.family is None or numerics.largest_weight <= form.family.largest_weight
            weight = weight if numerics.scales is None else weight * numerics.scales
            scale, weight = int8_weights(weight, numerics.largest_weight)
            compensation = -form.zero_point * weight.astype(np.int32).sum(axis=1, dtype=np.int32)
            arrays = {"scale_at": pack_numbers(scale), "compensation_at": pack_numbers(compensation)}
        if form.parts == 1:
            weight_at = self.add(pack_weight(weight, schedule.nr, columns, form.precision))
        else:
            weight_at = self.add(pack_weight_parts(weight, schedule.nr, columns, form.parts))
        bias_at = self.add(pack_bias(bias, layer.activation))
        places = {name: self.add(array) for name, array in arrays.items()}
        return PackedDense(
            shape.inputs, layer.outputs, layer.activation, weight_at, bias_at, schedule, takes=form, gain=gain, **places
        )

    def pack_final(self, layer: Dense, columns: np.ndarray) -> PackedDense:
        """The layer of one output is one row of whole vectors: a dot product, not a tile."""
        row = np.zeros(padded(len(columns)), np.float32)
        used = np.flatnonzero(columns >= 0)
        row[used] = layer.weight[0, columns[used]]
        weight_at = self.add(row)
        bias_at = self.add(np.resize(layer.bias, LANES).astype(np.float32))
        return PackedDense(len(columns), 1, layer.activation, weight_at, bias_at, DenseSchedule(LANES, 1))
