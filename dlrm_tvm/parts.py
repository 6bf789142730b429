"""What each part of the network costs at least, so that its time can be held against what the hardware can do.

    FLOPs: 2 x multiply-adds of the model's formulas; over all parts they are the model's own
    bytes: weights / items that share one reading of them  |  lines that are located  |  the rows' other lines

Rows are asked for by the gather (one line each, counted there), by the bottom MLP's loops (the others), and read by the
interaction, which waits for those that have not come: these others are counted there. Each byte is counted once.
"""

from __future__ import annotations

from .kernels.network_plan import NetworkPlan
from .kernels.vectors import LANES
from .manifest import Part
from .model import Dense, Dlrm

_FLOAT, _INDEX = 4, 8


def parts_of(model: Dlrm, plan: NetworkPlan) -> tuple[Part, ...]:
    """The plan's parts, in its order."""
    tile_items = min(plan.mr, plan.batch)
    block_items = min(plan.mr * plan.block_tiles, plan.batch)
    costs = [
        ("rows located", 0, _gather_bytes(model, plan)),
        *(_layer(layer, tile_items) for layer in model.bottom),
        _interaction(model, plan),
        *(_layer(layer, block_items) for layer in model.top),
    ]
    return tuple(Part(name, *cost) for name, cost in zip(plan.parts, costs, strict=True))


def _gather_bytes(model: Dlrm, plan: NetworkPlan) -> float:
    """Indices and dense inputs, and the line of each row that is touched."""
    return len(model.tables) * _INDEX + model.num_dense * _FLOAT + _touched_bytes(model, plan)


def _touched_bytes(model: Dlrm, plan: NetworkPlan) -> int:
    return len(model.tables) * min(LANES, model.dim) * _FLOAT if plan.fetch.every else 0


def _layer(layer: Dense, items: int) -> tuple[str, int, float]:
    return (
        f"{layer.inputs}-{layer.outputs}",
        2 * layer.weight.size,
        (layer.weight.size + layer.outputs) * _FLOAT / items,
    )


def _interaction(model: Dlrm, plan: NetworkPlan) -> tuple[str, int, float]:
    what = f"{len(model.pairs)} dots" if model.pairs else "joined"
    return what, 2 * len(model.pairs) * model.dim, model.gather_bytes_per_item - _touched_bytes(model, plan)
