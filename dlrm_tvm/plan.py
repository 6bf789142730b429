"""Model + schedules -> what the kernels are made from: a NetworkPlan and the packed weights it points into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .kernels.dense import DenseSchedule, PackedDense
from .kernels.network_plan import NetworkPlan
from .kernels.packing import Packer, pack_bias, pack_weight, top_columns
from .kernels.vectors import LANES, padded
from .model import Dense, Dlrm
from .schedules import NetworkSchedule


@dataclass(frozen=True)
class LayerShape:
    """A layer as its kernel sees it; inputs: columns of tiles, for the first top layer more than the model has."""

    activation: str
    inputs: int
    outputs: int


ScheduleOf = Callable[[LayerShape], DenseSchedule]


@dataclass(frozen=True, eq=False)
class PlannedNetwork:
    """plan: what the network kernel is emitted from; mlp: flat float32 array of all packed weights and biases."""

    plan: NetworkPlan
    mlp: np.ndarray


def plan_network(
    model: Dlrm, batch: int, schedule: NetworkSchedule, dense_schedule: ScheduleOf, table_elements: int
) -> PlannedNetwork:
    """Pack the MLPs for these schedules, the first top layer's inputs in the order in which our interaction writes."""
    packer = Packer()

    def pack(layer: Dense, columns: np.ndarray) -> PackedDense:
        chosen = dense_schedule(LayerShape(layer.activation, len(columns), layer.outputs))
        weight_at = packer.add(pack_weight(layer.weight, chosen.nr, columns))
        return PackedDense(
            len(columns), layer.outputs, layer.activation, weight_at, packer.add(pack_bias(layer)), chosen
        )

    bottom = tuple(pack(layer, np.arange(layer.inputs)) for layer in model.bottom)
    columns, grouping = top_columns(model)
    top = []
    for layer in model.top[:-1]:
        top.append(pack(layer, columns))
        columns = np.arange(layer.outputs)
    final = _pack_final(packer, model.top[-1], columns)
    mlp = packer.finish()
    plan = NetworkPlan(
        batch=batch,
        num_dense=model.num_dense,
        num_tables=len(model.tables),
        dim=padded(model.dim),
        table_elements=table_elements,
        mlp_elements=mlp.size,
        bottom=bottom,
        grouping=grouping,
        top=tuple(top),
        final=final,
        mr=schedule.mr,
        block_tiles=schedule.block_tiles,
        fetch=schedule.fetch,
        skip_zeros=batch == 1,
        means=tuple(table.pooling == "mean" for table in model.tables),
        clamp=model.clamp,
    )
    return PlannedNetwork(plan, mlp)


def layer_shapes(model: Dlrm) -> list[LayerShape]:
    """Of all layers that dense kernels run: every one but the last, which is a dot product."""
    columns, _ = top_columns(model)
    widths = [layer.inputs for layer in model.bottom] + [len(columns), *(layer.inputs for layer in model.top[1:])]
    shapes = [LayerShape(layer.activation, k, layer.outputs) for layer, k in zip(model.layers, widths)]
    return shapes[:-1]


def _pack_final(packer: Packer, layer: Dense, columns: np.ndarray) -> PackedDense:
    """The layer of one output lies as one row, in whole vectors: it is a dot product, not a tile."""
    row = np.zeros(padded(len(columns)), np.float32)
    used = np.flatnonzero(columns >= 0)
    row[used] = layer.weight[0, columns[used]]
    weight_at = packer.add(row)
    bias_at = packer.add(np.resize(layer.bias, LANES).astype(np.float32))
    return PackedDense(len(columns), 1, layer.activation, weight_at, bias_at, DenseSchedule(LANES, 1))
