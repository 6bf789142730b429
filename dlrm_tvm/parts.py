"""What each part of the network costs at least, so that its time can be held against what the hardware can do.

    FLOPs: 2 x multiply-adds of the model's formulas; over all parts they are the model's own
    bytes: weights / items that share one reading of them  |  lines that are located  |  the rows' other lines

Rows are asked for by the gather (one line each, counted there), by the bottom MLP's loops (the others), and read by the
interaction, which waits for those that have not come: these others are counted there. Each byte is counted once.
"""

from __future__ import annotations

from .kernels.dense import PackedDense
from .kernels.forms import Form
from .kernels.network_plan import NetworkPlan
from .kernels.vectors import LANES
from .manifest import Part
from .model import Dense, Dlrm

_FLOAT, _WORD, _INDEX = 4, 4, 8


def parts_of(model: Dlrm, plan: NetworkPlan) -> tuple[Part, ...]:
    """The plan's parts, in its order."""
    tile_items = min(plan.mr, plan.batch)
    block_items = min(plan.mr * plan.block_tiles, plan.batch)
    packed, first_top = (*plan.bottom, *plan.top, plan.final), len(plan.bottom)
    layers = [
        _layer(layer, each, tile_items if at < first_top else block_items, plan.table_form)
        for at, (layer, each) in enumerate(zip(model.layers, packed, strict=True))
    ]
    costs = [
        ("rows located", 0, _gather_bytes(model, plan)),
        *layers[:first_top],
        _interaction(model, plan),
        *layers[first_top:],
    ]
    return tuple(Part(name, *cost) for name, cost in zip(plan.parts, costs, strict=True))


def _gather_bytes(model: Dlrm, plan: NetworkPlan) -> float:
    """Indices and dense inputs, and the line of each row that is touched."""
    return len(model.tables) * _INDEX + model.num_dense * _FLOAT + _touched_bytes(model, plan)


def _touched_bytes(model: Dlrm, plan: NetworkPlan) -> int:
    return len(model.tables) * min(LANES * _WORD, _row_bytes(model, plan)) if plan.fetch.every else 0


def _row_bytes(model: Dlrm, plan: NetworkPlan) -> int:
    return model.dim * _WORD // plan.table_form.values


def _layer(layer: Dense, packed: PackedDense, items: int, network: Form) -> tuple[str, int, float, float]:
    """network: whose multiply-add the library's peak is of; a layer that stays wider does fewer with an instruction."""
    numbers = layer.outputs * (3 if packed.takes.precision == "int8" else 1)  # biases; scales, surplus
    nbytes = layer.weight.size * _WORD / packed.takes.values + numbers * _WORD
    what = f"{layer.inputs}-{layer.outputs}"
    share = packed.takes.values / network.values
    return f"{what} {packed.takes.precision}" if share < 1 else what, 2 * layer.weight.size, nbytes / items, share


def _interaction(model: Dlrm, plan: NetworkPlan) -> tuple[str, int, float]:
    what = f"{len(model.pairs)} dots" if model.pairs else "joined"
    rows = len(model.tables) * _row_bytes(model, plan)
    return what, 2 * len(model.pairs) * model.dim, rows - _touched_bytes(model, plan)
