"""The roofline: what each part of the network costs at least, to compare its measured time with.

    FLOPs: 2 x multiply-adds of the model's formulas; over all parts they are the model's own
    bytes: weights / items that share one reading of them  |  lines that are located  |  the rows' other lines

The gather requests the first line of each row, and those lines count there. The bottom MLP's loops request the others;
the interaction reads them and waits for the late ones, so they count there. Each byte counts once. Bags are pooled when
they are located: all of their rows count there, and what the interaction reads then lies in cache.
"""

from __future__ import annotations

from ..kernels.dense import PackedDense
from ..kernels.isa import Family
from ..kernels.vectors import LANES
from ..model.dlrm import Dense, Dlrm
from ..network.plan import NetworkPlan
from ..runtime.manifest import Part

_FLOAT, _WORD, _INDEX = 4, 4, 8


def roofline(model: Dlrm, plan: NetworkPlan) -> tuple[Part, ...]:
    """The plan's parts in its order, each with its least FLOPs and bytes per item."""
    num_bottom = len(plan.bottom)
    layers = _layers(model, plan)
    inputs = len(model.tables) * _INDEX + model.num_dense * _FLOAT  # indices, or offsets of bags
    costs = [
        ("rows located", 0, inputs + _touched_bytes(model, plan), 1.0, inputs, _INDEX + _row_bytes(model, plan)),
        *layers[:num_bottom],
        _interaction(model, plan),
        *layers[num_bottom:],
    ]
    return tuple(Part(name, *cost) for name, cost in zip(plan.parts, costs, strict=True))


def _touched_bytes(model: Dlrm, plan: NetworkPlan) -> int:
    """Of a row its first line; on AMX all of it or, where rows are fetched beside copies, nothing."""
    if not plan.prefetch.every or plan.fetches_beside:
        return 0
    row = _row_bytes(model, plan)
    return len(model.tables) * (row if plan.is_tiled else min(LANES * _WORD, row))


def _row_bytes(model: Dlrm, plan: NetworkPlan) -> int:
    return model.dim * _WORD // plan.table_form.values


def _layers(model: Dlrm, plan: NetworkPlan) -> list[tuple[str, int, float, float]]:
    """Bottom layers run tile by tile, on AMX block by block as all later layers do: so many items share one reading of
    the weights."""
    block_items = min(plan.mr * plan.block_tiles, plan.batch)
    tile_items = block_items if plan.is_tiled else min(plan.mr, plan.batch)
    packed, num_bottom = (*plan.layers, plan.final), len(plan.bottom)
    return [
        _layer(layer, each, tile_items if at < num_bottom else block_items, plan.family)
        for at, (layer, each) in enumerate(zip(model.layers, packed, strict=True))
    ]


def _layer(layer: Dense, packed: PackedDense, items: int, network: Family) -> tuple[str, int, float, float]:
    """network: whose multiply-adds the library's peak counts; an instruction of a layer that stays fp32 does fewer."""
    numbers = layer.outputs * (3 if packed.takes.is_whole else 1)  # biases; scales, compensation
    nbytes = layer.weight.size * _WORD * packed.takes.parts / packed.takes.values + numbers * _WORD
    widths = f"{layer.inputs}-{layer.outputs}"
    share = _flops_per_cycle(packed.takes.family) / _flops_per_cycle(network)
    what = f"{widths} {packed.takes.precision}" if share < 1 else widths
    return what, 2 * layer.weight.size, nbytes / items, share


def _flops_per_cycle(family: Family) -> float:
    """Two multiplies of vectors begin in a cycle; a product of two tiles takes 16."""
    if family.tiles:
        return family.flops_per_step / (16 * len(family.products))
    return 2 * family.flops_per_step / family.multiplies


def _interaction(model: Dlrm, plan: NetworkPlan) -> tuple[str, int, float, float, float]:
    shape = model.num_vectors, model.dim
    rows = len(model.tables) * _row_bytes(model, plan)
    what = model.interaction.summary(model.num_vectors)
    share = _flops_per_cycle(plan.table_form.family) / _flops_per_cycle(plan.family)
    return what, 2 * model.interaction.macs(*shape), rows - _touched_bytes(model, plan), share, 0.0
