"""Mutated graphs are refused, or read as what they compute: never as something else.

Each graph gets random changes of meaning (graph_mutations). What the reader still takes for a DLRM is computed from
the read weights in NumPy and must equal what ONNX Runtime (onnx's reference evaluator where there are ATen nodes)
computes from the changed file, with one index per bag and, where the graph takes offsets, with bags of any lengths.
A change that ONNX Runtime does not load at all (wrong types in a node that nothing reads, say) means nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from aten_evaluator import evaluate_with_aten
from graph_mutations import mutate
from graph_surgery import EXPORTS, SHARED_NAMES, shared_export
from graphs import onnxruntime_outputs, onnxruntime_session, random_items, write_dlrm
from recorded_bags import feed, random_bags

from dlrm_tvm.errors import UserError
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.model.reference import predict

MUTATIONS_PER_SHARED_EXPORT = 2
MUTATIONS_PER_EXPORT = 5
MUTATIONS_PER_EXPORT_IF_SLOW = 120
MUTATIONS_PER_SMALL_GRAPH = 30
EXPORT_NAMES = sorted(path.stem for path in EXPORTS.glob("*.onnx"))
# All widths alike, so that a rewired input fits more often.
SMALL = {"dim": 4, "num_dense": 4, "bottom": (4, 4), "top": (16, 16), "table_rows": (3, 3, 3)}
SMALL_GRAPHS = {
    "dot": {},
    "dot_self": {"interaction": "dot_self"},
    "cat": {"interaction": "cat"},
    "cross": {"interaction": "cross", "ranks": (4, 16)},
    "cross_of_full_rank": {"interaction": "cross", "ranks": (None, None), "layers": "matmul"},
    "matmul_and_add": {"layers": "matmul"},
    "indices_by_split": {"inputs": "split"},
    "indices_by_name": {"inputs": "separate"},
}


@pytest.mark.parametrize("name", EXPORT_NAMES)
def test_mutated_export_is_refused_or_read_as_it_computes(name: str, tmp_path: Path) -> None:
    check_mutations(EXPORTS / f"{name}.onnx", MUTATIONS_PER_EXPORT, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORT_NAMES)
def test_mutated_export_is_refused_or_read_as_it_computes_hundreds_of_times(name: str, tmp_path: Path) -> None:
    check_mutations(EXPORTS / f"{name}.onnx", MUTATIONS_PER_EXPORT_IF_SLOW, tmp_path)


@pytest.mark.parametrize("variant", SMALL_GRAPHS)
def test_mutated_plain_graph_is_refused_or_read_as_it_computes(variant: str, tmp_path: Path) -> None:
    path = write_dlrm(tmp_path / "small.onnx", **SMALL | SMALL_GRAPHS[variant])
    check_mutations(path, MUTATIONS_PER_SMALL_GRAPH, tmp_path)


@pytest.mark.parametrize("name", SHARED_NAMES)
def test_mutated_export_of_mlperfs_shape_is_refused_or_read_as_it_computes(name: str, tmp_path: Path) -> None:
    check_mutations(shared_export(name), MUTATIONS_PER_SHARED_EXPORT, tmp_path, both=False)


def check_mutations(path: Path, count: int, folder: Path, *, both: bool = True) -> None:
    """both: also check that some mutations are read and some are refused."""
    original, unchanged = onnx.load(path), read_dlrm(path)
    found = Counter(_outcome(original, unchanged, seed, folder) for seed in range(count))
    if both:
        assert found["read"] and found["refused"], found
        assert found["meaningless"] <= count / 8, found


def _outcome(original: onnx.ModelProto, unchanged: Dlrm, seed: int, folder: Path) -> str:
    """What became of one mutation; fails where it was read as something that it is not."""
    model, change = mutate(original, np.random.default_rng(seed))
    path = folder / "mutated.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        read = read_dlrm(path)
    except UserError as error:
        assert "\n" not in str(error)
        return "refused"
    run = _runner(model)
    if run is None:
        return "meaningless"
    names = unchanged.graph_inputs  # which input is which is not for the changed graph to say
    assert read.graph_inputs.indices == names.indices, change
    with_bags = bool(read.graph_inputs.offsets) and not read.graph_inputs.one_index
    for dense, indices, offsets in _inputs(original, unchanged, seed, with_bags=with_bags):
        try:
            wanted = run(feed(names, dense, indices, offsets))
        except Exception as error:
            pytest.fail(f"{change}: read, though it cannot be run: {error}")
        found = predict(read, dense, indices, offsets)
        assert _largest_difference(read, found, wanted, offsets, indices) <= 1e-5, change
    return "read"


def _runner(model: onnx.ModelProto) -> Callable[[dict[str, np.ndarray]], np.ndarray] | None:
    """Gives a graph's output, flat, for inputs by name; None for a graph that is none."""
    if any(node.op_type == "ATen" for node in model.graph.node):
        return lambda inputs: evaluate_with_aten(model, inputs)
    pytest.importorskip("onnxruntime")
    try:
        session = onnxruntime_session(model.SerializeToString())
    except Exception:  # of a dozen types, one for each status of onnxruntime
        return None
    return lambda inputs: onnxruntime_outputs(session, inputs)


def _inputs(original: onnx.ModelProto, model: Dlrm, seed: int, *, with_bags: bool) -> list[tuple]:
    """(dense, indices, offsets) with one index per bag and with bags, of the sizes that the file fixes if it does."""
    sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in original.graph.input}
    items = sizes[model.graph_inputs.dense][0] or 7
    total = sizes[model.graph_inputs.indices[0]][-1]
    # So that an index lies in every table, whichever table a mutation gives it to.
    rows = [min(table.num_rows for table in model.tables)] * len(model.tables)
    rng = np.random.default_rng(seed)
    dense, _ = random_items(items, num_dense=model.num_dense, table_rows=rows, seed=seed)
    if numbers := model.graph_inputs.indices_per_bag:
        indices = [rng.integers(0, most, items * number) for most, number in zip(rows, numbers)]
        return [(dense, indices, [np.arange(items) * number for number in numbers])]
    patterns = [items] if total in (0, items) else []
    patterns += [total or 3 * items] if with_bags else []
    # onnxruntime's mean of nothing is NaN, PyTorch's and ours is 0
    empty = model.tables[0].pooling == "sum"
    return [
        (dense, *random_bags(rng, items=items, table_rows=rows, total=count, empty=empty and count != items))
        for count in patterns
    ]


def _largest_difference(
    read: Dlrm, found: np.ndarray, wanted: np.ndarray, offsets: list[np.ndarray], indices: list[np.ndarray]
) -> float:
    """Relative above 1. NaN where the two differ in being finite, except for items with an empty
    bag in a table that takes means."""
    empty = np.zeros(len(found), bool)
    for table, starts, rows in zip(read.tables, offsets, indices, strict=True):
        if table.pooling == "mean":
            empty |= np.diff(starts, append=len(rows)) == 0
    return (np.abs(found - wanted) / np.maximum(1, np.abs(wanted)))[~empty].max(initial=0)
