"""The reader against ONNX Runtime on the same file, outputs recorded from PyTorch, and broken graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_mutations import mutate
from graphs import onnx_feed, onnxruntime_predictions, random_items, write_dlrm
from onnx import helper, numpy_helper

from dlrm_tvm.errors import UserError
from dlrm_tvm.model import Dlrm, Interaction
from dlrm_tvm.onnx_reader import read_dlrm
from dlrm_tvm.reference import predict

EXPORTS = Path(__file__).resolve().parents[2] / "shared" / "exports"
EXPORT_NAMES = ("t171_stacked", "t213_legacy_onehot")
MUTATIONS_PER_EXPORT = 20

VARIANTS = {
    "dot": {},
    "dot_of_wide_vectors": {"dim": 130, "table_rows": (9, 4)},
    "dot_self": {"interaction": "dot_self"},
    "cat": {"interaction": "cat"},
    "one_table": {"table_rows": (11,)},
    "widths_of_no_multiple": {"num_dense": 5, "dim": 21, "bottom": (33, 17), "top": (19, 7, 3)},
    "no_hidden_layers": {"bottom": (), "top": ()},
    "matmul_and_add": {"layers": "matmul"},
    "matmul_without_bias": {"layers": "matmul", "bias": False},
    "gemm_without_transposition": {"layers": "gemm_plain"},
    "gemm_without_bias": {"bias": False},
    "indices_by_split": {"inputs": "split"},
    "indices_by_name": {"inputs": "separate"},
    "sigmoid_on_the_first_top_layer": {"sigmoid_layer": 0},
    "fixed_batch": {"batch": 8},
    "external_data_in_one_file": {"external": "one_file"},
    "external_data_in_a_file_per_tensor": {"external": "per_tensor"},
}


def export(name: str) -> Path:
    path = EXPORTS / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


def changed(tmp_path: Path, change, **options: object) -> Path:
    """A small DLRM's file after `change(graph)`."""
    path = write_dlrm(tmp_path / "changed.onnx", **options)
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    return path


def node_of(graph: onnx.GraphProto, op_type: str, place: int = 0) -> onnx.NodeProto:
    return [node for node in graph.node if node.op_type == op_type][place]


def set_attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    for attribute in [one for one in node.attribute if one.name == name]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute(name, value))


def set_constant(graph: onnx.GraphProto, name: str, array: np.ndarray) -> None:
    (tensor,) = [tensor for tensor in graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_dlrm(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


# --- what is read


@pytest.mark.parametrize("name", EXPORT_NAMES)
def test_export_read_by_us_gives_pytorchs_recorded_outputs(name: str) -> None:
    model = read_dlrm(export(name))
    with np.load(EXPORTS / f"{name}.npz") as recorded:
        names = model.graph_inputs.indices
        columns = recorded[names[0]] if len(names) == 1 else np.stack([recorded[one] for one in names])
        starts = recorded[model.graph_inputs.offsets[0]]
        assert (starts == np.arange(starts.shape[1])).all(), "recorded with one index per bag"
        error = np.abs(predict(model, recorded[model.graph_inputs.dense], columns.T) - recorded["pred"][:, 0])
    assert error.max() <= 1e-6
    assert model.macs_per_item == 2_410_112
    assert [table.name for table in model.tables] == [f"emb_l.{t}.weight" for t in range(26)]


@pytest.mark.parametrize("name", EXPORT_NAMES)
def test_export_read_by_us_gives_onnx_runtimes_outputs_at_another_batch_size(name: str) -> None:
    pytest.importorskip("onnxruntime")
    model = read_dlrm(export(name))
    dense, indices = random_items(37, table_rows=[table.num_rows for table in model.tables])
    difference = predict(model, dense, indices) - onnxruntime_predictions(export(name), dense, indices)
    assert np.abs(difference).max() <= 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_read_by_us_gives_onnx_runtimes_outputs(variant: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    options = VARIANTS[variant]
    path = write_dlrm(tmp_path / "small.onnx", **options)
    model = read_dlrm(path)
    shape = {key: options[key] for key in ("num_dense", "table_rows") if key in options}
    dense, indices = random_items(8, **shape)
    predictions = onnxruntime_predictions(path, dense, indices)
    assert np.abs(predict(model, dense, indices) - predictions).max() <= 2e-6
    assert predictions.std() > 0.01, "predictions are spread, so that a wrong one shows"


def test_graph_inputs_are_recorded_under_the_graphs_own_names(tmp_path: Path) -> None:
    stacked = read_dlrm(write_dlrm(tmp_path / "stacked.onnx")).graph_inputs
    assert (stacked.dense, stacked.indices, stacked.offsets, stacked.output) == ("dense_x", ("indices",), (), "pred")
    named = read_dlrm(write_dlrm(tmp_path / "named.onnx", inputs="separate")).graph_inputs
    assert named.indices == ("indices_0", "indices_1", "indices_2")
    bags = read_dlrm(export("t213_legacy_onehot")).graph_inputs
    assert bags.offsets == ("offsets",)
    assert bags.indices == tuple(f"indices_{t}" for t in range(26))


def test_interaction_is_recognised_with_and_without_self(tmp_path: Path) -> None:
    for kind, wanted in (
        ("dot", Interaction("dot")),
        ("dot_self", Interaction("dot", with_self=True)),
        ("cat", Interaction("cat")),
    ):
        assert read_dlrm(write_dlrm(tmp_path / "small.onnx", interaction=kind)).interaction == wanted


def test_tables_that_trade_places_everywhere_are_recorded_where_they_are_used(tmp_path: Path) -> None:
    def trade(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = [{"table.0": "table.1", "table.1": "table.0"}.get(name, name) for name in node.input]

    model = read_dlrm(changed(tmp_path, trade))
    assert [(table.name, table.num_rows) for table in model.tables] == [("table.1", 7), ("table.0", 5), ("table.2", 3)]


def test_names_and_order_of_nodes_do_not_matter(tmp_path: Path) -> None:
    def anonymise(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.name = ""
        # The embedding nodes first, then the rest: still in topological order.
        lookups = [node for node in graph.node if node.op_type == "Gather" and node.input[0] != "Reshape_out"][:6]
        rest = [node for node in graph.node if node not in lookups]
        del graph.node[:]
        graph.node.extend(lookups + rest)

    assert read_dlrm(changed(tmp_path, anonymise)).fingerprint == read_dlrm(write_dlrm(tmp_path / "a.onnx")).fingerprint


def test_weights_in_float_data_and_listed_as_inputs_are_read(tmp_path: Path) -> None:
    def list_as_inputs(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                values = numpy_helper.to_array(tensor)
                tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, values.ravel()))
                assert tensor.float_data
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    same = read_dlrm(write_dlrm(tmp_path / "a.onnx"))
    model = read_dlrm(changed(tmp_path, list_as_inputs))
    assert model.fingerprint == same.fingerprint
    assert model.graph_inputs == same.graph_inputs


@pytest.mark.parametrize("external", ["one_file", "per_tensor"])
def test_external_tables_are_memory_maps_of_their_file(external: str, tmp_path: Path) -> None:
    path = write_dlrm(tmp_path / "small.onnx", external=external)
    inline = read_dlrm(write_dlrm(tmp_path / "inline.onnx"))
    model = read_dlrm(path)
    for table, same in zip(model.tables, inline.tables, strict=True):
        assert isinstance(table.rows, np.memmap)
        assert Path(table.rows.filename).name == ("small.onnx.data" if external == "one_file" else table.name)
        np.testing.assert_array_equal(table.rows, same.rows)


def test_huge_external_table_opens_without_being_read(tmp_path: Path) -> None:
    def grow(graph: onnx.GraphProto) -> None:
        (tensor,) = [tensor for tensor in graph.initializer if tensor.name == "table.1"]
        tensor.CopyFrom(onnx.TensorProto(name="table.1", data_type=1, dims=[39_979_771, 16]))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="table.1")

    path = changed(tmp_path, grow)
    with (tmp_path / "table.1").open("wb") as sparse:
        sparse.truncate(39_979_771 * 16 * 4)
    model = read_dlrm(path)
    assert model.tables[1].num_rows == 39_979_771
    assert isinstance(model.tables[1].rows, np.memmap)
    assert model.tables[1].rows[-1].sum() == 0


# --- what is refused, with the node at fault


def _wrong_pairs(graph: onnx.GraphProto) -> None:
    gather = next(node for node in graph.node if node.op_type == "Gather" and node.attribute[0].i == 1)
    (pairs,) = [tensor for tensor in graph.initializer if tensor.name == gather.input[1]]
    values = numpy_helper.to_array(pairs).copy()
    values[[1, 2]] = values[[2, 1]]
    set_constant(graph, pairs.name, values)


def _upper_triangle(graph: onnx.GraphProto) -> None:
    # (0,1), (0,2), (0,3), (1,2), ..: the same dots in the order of the upper triangle.
    gather = next(node for node in graph.node if node.op_type == "Gather" and node.attribute[0].i == 1)
    set_constant(graph, gather.input[1], np.array([4 * i + j for i in range(4) for j in range(i + 1, 4)]))


def _tanh(graph: onnx.GraphProto) -> None:
    node_of(graph, "Relu", 1).op_type = "Tanh"


def _join_dots_on_axis_0(graph: onnx.GraphProto) -> None:
    set_attribute(node_of(graph, "Concat", 1), "axis", 0)


def _join_vectors_on_axis_0(graph: onnx.GraphProto) -> None:
    set_attribute(node_of(graph, "Concat"), "axis", 0)


def _join_dots_first(graph: onnx.GraphProto) -> None:
    concat = node_of(graph, "Concat", 1)
    concat.input[:] = list(concat.input)[::-1]


def _index_column_used_twice(graph: onnx.GraphProto) -> None:
    lookups = [node for node in graph.node if node.op_type == "Gather" and node.input[0].startswith("table.")]
    lookups[1].input[1] = lookups[0].input[1]


def _table_looked_up_by_columns(graph: onnx.GraphProto) -> None:
    lookups = [node for node in graph.node if node.op_type == "Gather" and node.input[0].startswith("table.")]
    lookups[1].input[0] = "table.0"
    set_attribute(lookups[1], "axis", 1)


def _tables_joined_in_another_order(graph: onnx.GraphProto) -> None:
    concat = node_of(graph, "Concat")
    concat.input[1], concat.input[2] = concat.input[2], concat.input[1]


def _skipped_layer(graph: onnx.GraphProto) -> None:
    node_of(graph, "Gemm", 1).input[0] = "dense_x"


def _alpha_2(graph: onnx.GraphProto) -> None:
    set_attribute(node_of(graph, "Gemm", 2), "alpha", 2.0)


def _transpose_items(graph: onnx.GraphProto) -> None:
    set_attribute(node_of(graph, "Transpose"), "perm", [1, 2, 0])


def _no_transposition(graph: onnx.GraphProto) -> None:
    set_attribute(node_of(graph, "Transpose"), "perm", [0, 1, 2])


def _relu_twice(graph: onnx.GraphProto) -> None:
    graph.node.insert(2, helper.make_node("Relu", [graph.node[1].output[0]], ["again"], name="Relu_again"))
    graph.node[3].input[0] = "again"


def _only_the_first_items(graph: onnx.GraphProto) -> None:
    # Identity at the probes' batch sizes, and at no batch over 64.
    for name, value in (("slice_start", 0), ("slice_end", 64)):
        graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    gemm = node_of(graph, "Gemm")
    graph.node.insert(0, helper.make_node("Slice", ["dense_x", "slice_start", "slice_end"], ["cut"], name="Slice_cut"))
    gemm.input[0] = "cut"


def _not_finite_weight(graph: onnx.GraphProto) -> None:
    weight = np.ones((24, 22), np.float32)
    weight[3, 4] = np.nan
    set_constant(graph, "top.0.weight", weight)


def _half_weight(graph: onnx.GraphProto) -> None:
    set_constant(graph, "top.0.weight", np.ones((24, 22), np.float16))


def _bias_from_the_batch(graph: onnx.GraphProto) -> None:
    graph.node.insert(0, helper.make_node("Shape", ["dense_x"], ["size"], name="Shape_0", start=0, end=1))
    graph.node.insert(1, helper.make_node("Cast", ["size"], ["size_float"], name="Cast_0", to=1))
    node_of(graph, "Gemm", 3).input[2] = "size_float"


def _foreign_operator(graph: onnx.GraphProto) -> None:
    node_of(graph, "Relu").domain = "com.example"


def _reads_its_own_output(graph: onnx.GraphProto) -> None:
    node_of(graph, "Concat", 1).input[1] = node_of(graph, "Gemm", 3).output[0]


REFUSALS = {
    "pairs in another order": (
        _wrong_pairs,
        "Concat_16",
        "gives the top MLP table.0 . table.1 as value 17, where a DLRM has x . table.1",
    ),
    "upper triangle": (_upper_triangle, "Concat_16", "where a DLRM has"),
    "Tanh": (_tanh, "Relu_3 (Tanh)", "no operation"),
    "dots joined on the wrong axis": (_join_dots_on_axis_0, "Concat_16", "joins shapes (3, 16), (3, 6) on axis 0"),
    "vectors joined on the wrong axis": (_join_vectors_on_axis_0, "MatMul_13", "where a DLRM has x . table.0"),
    "[dots, x] in place of [x, dots]": (_join_dots_first, "Concat_16", "does not begin with"),
    "an index column used twice": (_index_column_used_twice, "Gather_8", "indices, row 0"),
    "a table looked up by columns": (_table_looked_up_by_columns, "Gather_8", "axis 1"),
    "tables in another order": (_tables_joined_in_another_order, "Concat_16", "table.0"),
    "a rewired layer": (_skipped_layer, "Gemm_2", "multiplies 13 values by a weight for 32"),
    "alpha of 2": (_alpha_2, "Gemm_17", "alpha = 2"),
    "another transposition": (_transpose_items, "MatMul_13", ""),
    "no transposition": (_no_transposition, "MatMul_13", "multiplies rows"),
    "Relu of Relu": (_relu_twice, "", "no layer is before it"),
    "a slice of 64 items": (_only_the_first_items, "Slice_cut", "slices 0:64"),
    "a weight that is NaN": (_not_finite_weight, "Gemm_17", "not finite"),
    "float16 weights": (_half_weight, "Gemm_17", "float16"),
    "a bias that is the batch size": (_bias_from_the_batch, "", "depend on the batch size"),
    "an operator of another domain": (_foreign_operator, "Relu_1", "com.example"),
    "a cycle": (_reads_its_own_output, "Concat_16", "nothing before it makes"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_graph_that_computes_something_else_is_refused_with_node_and_reason(case: str, tmp_path: Path) -> None:
    change, node, reason = REFUSALS[case]
    message = refusal(changed(tmp_path, change))
    assert node in message
    assert reason in message


def test_mlp_without_tables_is_refused(tmp_path: Path) -> None:
    def cut(graph: onnx.GraphProto) -> None:
        graph.output[0].name = node_of(graph, "Relu", 1).output[0]

    assert "a DLRM looks up embedding tables" in refusal(changed(tmp_path, cut))


def test_unused_index_input_is_refused_by_name(tmp_path: Path) -> None:
    def ignore(graph: onnx.GraphProto) -> None:
        graph.input.append(helper.make_tensor_value_info("indices_3", onnx.TensorProto.INT64, ["batch"]))

    assert "'indices_3' is not used" in refusal(changed(tmp_path, ignore, inputs="separate"))


def test_offsets_of_another_table_are_refused(tmp_path: Path) -> None:
    """With one index per bag the outputs would be the same; with real bags they would not."""
    model = onnx.load(export("t171_stacked"))
    gathers = [node for node in model.graph.node if node.op_type == "Gather" and node.input[0] == "offsets"]
    gathers[4].input[1] = gathers[5].input[1]
    onnx.save(model, tmp_path / "swapped.onnx")
    assert "emb_l.4.weight" in refusal(tmp_path / "swapped.onnx")


def test_mean_in_place_of_the_sum_of_a_bag_is_read_for_that_table_alone(tmp_path: Path) -> None:
    model = onnx.load(export("t171_stacked"))
    body = node_of(model.graph, "Loop", 3).attribute[0].g
    node_of(body, "ReduceSum").op_type = "ReduceMean"
    onnx.save(model, tmp_path / "mean.onnx")
    pooled = [table.pooling for table in read_dlrm(tmp_path / "mean.onnx").tables]
    assert pooled == ["mean" if t == 3 else "sum" for t in range(26)]


@pytest.mark.parametrize("name", EXPORT_NAMES)
@pytest.mark.parametrize("seed", range(MUTATIONS_PER_EXPORT))
def test_mutated_export_is_refused_or_read_as_onnx_runtime_computes_it(name: str, seed: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    original = onnx.load(export(name))
    _check_mutation(original, seed, tmp_path, table_rows=[3] * 26)


@pytest.mark.parametrize("variant", ["dot", "dot_self", "cat", "matmul_and_add", "indices_by_split", "indices_by_name"])
def test_mutated_small_graphs_are_refused_or_read_as_onnx_runtime_computes_them(variant: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    # All widths alike, so that a rewired input fits more often.
    options = {"dim": 4, "num_dense": 4, "bottom": (4, 4), "top": (16, 16), "table_rows": (3, 3, 3)} | VARIANTS[variant]
    original = onnx.load(write_dlrm(tmp_path / "small.onnx", **options))
    read = sum(_check_mutation(original, seed, tmp_path, num_dense=4, table_rows=(3, 3, 3)) for seed in range(40))
    assert 0 < read < 40, "some are still DLRMs, some are not"


def _check_mutation(original: onnx.ModelProto, seed: int, folder: Path, **shape: object) -> bool:
    """Whether the mutation was read; fails where it was read as something that it is not."""
    model, change = mutate(original, np.random.default_rng(seed))
    path = folder / "mutated.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        read: Dlrm = read_dlrm(path)
    except UserError:
        return False
    dense, indices = random_items(7, **shape)
    predictions = onnxruntime_predictions(model.SerializeToString(), dense, indices)
    assert np.abs(predict(read, dense, indices) - predictions).max() <= 2e-6, change
    return True


# --- files that cannot be read


def test_damaged_or_missing_file_is_said_in_one_line(tmp_path: Path) -> None:
    whole = write_dlrm(tmp_path / "whole.onnx").read_bytes()
    cases = {
        "empty.onnx": (b"", "empty file"),
        "half.onnx": (whole[: len(whole) // 2], "truncated"),
        "text.onnx": (b"This is a README, not a model.\n", "not an ONNX model"),
        "header.onnx": (whole[:2], "holds no ONNX graph"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        assert reason in refusal(tmp_path / name)
    assert "no such file" in refusal(tmp_path / "missing.onnx")
    (tmp_path / "folder.onnx").mkdir()
    assert "not a file" in refusal(tmp_path / "folder.onnx")


def test_file_cut_anywhere_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = write_dlrm(tmp_path / "whole.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    for size in np.random.default_rng(3).integers(1, len(whole) - 10, 40):
        path.write_bytes(whole[:size])
        refusal(path)


def test_file_with_wrong_bytes_is_read_or_refused_never_a_traceback(tmp_path: Path) -> None:
    whole = np.frombuffer(write_dlrm(tmp_path / "whole.onnx").read_bytes(), np.uint8)
    path = tmp_path / "flipped.onnx"
    rng = np.random.default_rng(4)
    for _ in range(150):
        damaged = whole.copy()
        # Mostly outside the weights, which are two thirds of the file and make another model of the same form.
        damaged[rng.integers(1, 1500)] = rng.integers(256)
        path.write_bytes(damaged.tobytes())
        try:
            read_dlrm(path)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("external", ["one_file", "per_tensor"])
def test_missing_or_short_external_data_is_said_with_its_file_and_tensor(external: str, tmp_path: Path) -> None:
    path = write_dlrm(tmp_path / "small.onnx", external=external)
    data = tmp_path / ("small.onnx.data" if external == "one_file" else "table.2")
    content = data.read_bytes()
    data.write_bytes(content[:-64])
    with pytest.raises(UserError, match=rf"{data.name}: \d+ bytes for tensor table\.2 .* 192 wanted"):
        read_dlrm(path)
    data.unlink()
    message = refusal(path)
    assert str(data) in message
    assert "missing" in message


def test_external_data_outside_the_models_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    path = write_dlrm(tmp_path / "inner" / "small.onnx", external="per_tensor")
    model = onnx.load(path, load_external_data=False)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "table.0"]
    tensor.external_data[0].value = "../table.0"
    onnx.save(model, path)
    assert "outside the model's folder" in refusal(path)


def test_onnx_feed_gives_one_index_per_bag() -> None:
    dense, indices = random_items(2)
    feed = onnx_feed(["dense_x", "offsets", "indices", "indices_1"], dense, indices)
    np.testing.assert_array_equal(feed["offsets"], [[0, 1]] * 3)
    np.testing.assert_array_equal(feed["indices"], indices.T)
    np.testing.assert_array_equal(feed["indices_1"], indices[:, 1])
