"""Spoilt ONNX files: refused in one line, or read as what ONNX Runtime computes from the same file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import onnxruntime_predictions, random_items, write_dlrm
from hostile import refused_or
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

from dlrm_tvm.errors import UserError
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model import reference
from dlrm_tvm.symbols.expressions import Symbols
from dlrm_tvm.symbols.sizes import Made

ROWS = (9, 5, 7)
ITEMS = random_items(6, table_rows=ROWS)
Change = Callable[[ModelProto], object]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> bytes:
    return write_dlrm(tmp_path_factory.mktemp("onnx") / "m.onnx", table_rows=ROWS, bottom=(8,), top=(6,)).read_bytes()


def check(path: Path) -> bool:
    """Whether it was refused. What is read computes what ONNX Runtime does, if that takes the file."""
    model = refused_or(lambda: read_dlrm(path))
    if model is None:
        return True
    try:
        wanted = onnxruntime_predictions(path, *ITEMS)
    except Exception as error:  # its own have no common type
        pytest.skip(f"ONNX Runtime refuses it: {str(error)[:80]}")
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(reference.predict(model, *ITEMS), wanted, rtol=1e-4, atol=1e-5)
    return False


def node(model: ModelProto, kind: str, place: int = 0):
    return [each for each in model.graph.node if each.op_type == kind][place]


def tensor(model: ModelProto, name: str) -> TensorProto:
    return next(each for each in model.graph.initializer if each.name == name)


def again(model: ModelProto, name: str, change: float) -> None:
    values = numpy_helper.to_array(tensor(model, name)) + np.float32(change)
    model.graph.initializer.append(numpy_helper.from_array(values, name))


def external(model: ModelProto, **fields: object) -> None:
    table = tensor(model, "table.0")
    table.ClearField("raw_data")
    table.data_location = TensorProto.EXTERNAL
    for key, value in fields.items():
        table.external_data.add(key=key, value=str(value))


def nest(model: ModelProto, depth: int) -> None:
    """Branches in branches that the prediction does not need."""
    graph = GraphProto(name="g")
    for _ in range(depth):
        within = GraphProto(name="g")
        within.node.add(op_type="If", input=["c"], output=["o"]).attribute.append(
            helper.make_attribute("then_branch", graph)
        )
        graph = within
    model.graph.node.extend(graph.node)


def replace_values(model: ModelProto, name: str, values: np.ndarray) -> None:
    tensor(model, name).CopyFrom(numpy_helper.from_array(values, name))


def set_attribute(model: ModelProto, kind: str, name: str, value: object) -> None:
    found = node(model, kind)
    for attribute in list(found.attribute):
        if attribute.name == name:
            found.attribute.remove(attribute)
    if value is not None:
        found.attribute.append(helper.make_attribute(name, value))


def first_weight(model: ModelProto) -> TensorProto:
    return tensor(model, node(model, "Gemm").input[1])


def cast_to(model: ModelProto, number: int) -> None:
    output = model.graph.node[-1].output[0]
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Cast", ["before"], [output], to=number))


def before_layers(model: ModelProto, *steps: tuple) -> None:
    """Makes nodes before the first layer: (operator, operands, attributes) each. None of the operands stands for what
    the node before makes, or the layer's input; others are constants. The layer takes what the last one makes."""
    at = next(place for place, each in enumerate(model.graph.node) if each.op_type == "Gemm")
    made = dense = model.graph.node[at].input[0]
    for number, (operator, operands, attributes) in enumerate(steps):
        names = []
        for place, operand in enumerate(operands):
            names.append(made if operand is None else f"constant{number}.{place}")
            if operand is not None:
                model.graph.initializer.append(numpy_helper.from_array(np.asarray(operand), names[-1]))
        made = f"made{number}"
        model.graph.node.insert(at + number, helper.make_node(operator, names, [made], **attributes))
    if all(operand is not None for operand in steps[0][1]):  # of constants alone: added to the layer's input
        steps = (*steps, None)
        model.graph.node.insert(at + len(steps) - 1, helper.make_node("Add", [dense, made], ["added"]))
        made = "added"
    model.graph.node[at + len(steps)].input[0] = made


def one_hot(model: ModelProto, depth: int | None) -> None:
    """In place of the rows of table 0. depth None: by comparison."""
    gather = next(each for each in model.graph.node if "table.0" in each.input)
    rows, index = gather.output[0], gather.input[1]
    at, made = list(model.graph.node).index(gather), "one_hot"
    if depth:
        model.graph.initializer.append(numpy_helper.from_array(np.int64(depth), "depth"))
        model.graph.initializer.append(numpy_helper.from_array(np.float32([0, 1]), "values"))
        nodes = [helper.make_node("OneHot", [index, "depth", "values"], [made])]
    else:
        model.graph.initializer.append(numpy_helper.from_array(np.int64([1]), "last"))
        ends = (np.int64(0), np.int64(1 << 25), np.int64(1))
        for name, value in zip(("start", "limit", "delta"), ends):
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        nodes = [
            helper.make_node("Range", ["start", "limit", "delta"], ["places"]),
            helper.make_node("Unsqueeze", [index, "last"], ["column"]),
            helper.make_node("Equal", ["column", "places"], ["equal"]),
            helper.make_node("Cast", ["equal"], [made], to=TensorProto.FLOAT),
        ]
    del model.graph.node[at]
    for each in [helper.make_node("Slice", [made, "from", "to", "axis"], [rows]), *reversed(nodes)]:
        model.graph.node.insert(at, each)
    for name, value in (("from", [0]), ("to", [16]), ("axis", [1])):
        model.graph.initializer.append(numpy_helper.from_array(np.int64(value), name))


COLUMNS = ("Slice", (None, np.int64([0]), np.int64([13]), np.int64([1])), {})
FIRST = ("Slice", (None, np.int64([0]), np.int64([1])), {})
MANY, WIDE = 1 << 40, np.zeros((1, 1 << 16), np.float32)

REFUSED: dict[str, Change] = {
    "zeros of terabytes": lambda m: before_layers(m, ("ConstantOfShape", (np.int64([MANY]),), {}), FIRST),
    "zeros beyond 64 bits": lambda m: before_layers(m, ("ConstantOfShape", (np.int64([MANY] * 3),), {}), FIRST),
    "a range of terabytes": lambda m: before_layers(m, ("Range", tuple(map(np.float32, (0, MANY, 1))), {}), FIRST),
    "a range that stands still": lambda m: before_layers(m, ("Range", tuple(map(np.float32, (0, 5, 0))), {}), FIRST),
    "tiles of terabytes": lambda m: before_layers(m, ("Tile", (WIDE[0], np.int64([MANY])), {}), FIRST),
    "an outer sum": lambda m: before_layers(m, ("Add", (WIDE, WIDE.T), {}), FIRST),
    "an outer power": lambda m: before_layers(m, ("Pow", (WIDE, WIDE.T), {}), FIRST),
    "an outer product": lambda m: before_layers(m, ("MatMul", (WIDE.T, WIDE), {}), FIRST),
    "an outer product, added to": lambda m: before_layers(m, ("Gemm", (WIDE, WIDE), {"transA": 1}), FIRST),
    "an outer product in letters": lambda m: before_layers(
        m, ("Einsum", (WIDE[0], WIDE[0]), {"equation": "i,j->ij"}), FIRST
    ),
    "rows repeated": lambda m: before_layers(m, ("Gather", (WIDE, np.zeros(1 << 16, np.int64)), {}), FIRST),
    "one-hot vectors of 2^30": lambda m: one_hot(m, 1 << 30),
    "indices compared with 2^25 numbers": lambda m: one_hot(m, None),
    "rows repeated by places": lambda m: before_layers(
        m, ("GatherND", (WIDE, np.zeros((1 << 16, 1), np.int64)), {}), FIRST
    ),
    "a number spread out": lambda m: before_layers(
        m, ("Expand", (np.float32([1]), np.int64([MANY])), {}), ("Neg", (None,), {}), FIRST
    ),
    "an input tiled": lambda m: before_layers(m, ("Tile", (None, np.int64([1, MANY])), {})),
    "an input spread out": lambda m: before_layers(m, ("Expand", (None, np.int64([MANY, 1, 1])), {})),
    "an input doubled 40 times": lambda m: before_layers(m, *[("Tile", (None, np.int64([1, 2])), {})] * 40),
    "two tensors of one name": lambda m: again(m, "table.1", 1),
    "two weights of one name": lambda m: again(m, node(m, "Gemm").input[1], 1e-3),
    "two inputs of one name": lambda m: m.graph.input.append(
        helper.make_tensor_value_info(m.graph.input[0].name, TensorProto.INT64, [3])
    ),
    "a node that makes its input": lambda m: node(m, "Relu").output.__setitem__(0, node(m, "Relu").input[0]),
    "a node that makes an input": lambda m: node(m, "Relu").output.__setitem__(0, m.graph.input[0].name),
    "a node that makes a weight": lambda m: node(m, "Relu").output.__setitem__(0, "table.0"),
    "two nodes that make one name": lambda m: m.graph.node.append(helper.make_node("Relu", ["dense_x"], ["pred"])),
    "two outputs": lambda m: m.graph.output.append(m.graph.output[0]),
    "no output": lambda m: m.graph.ClearField("output"),
    "no nodes": lambda m: m.graph.ClearField("node"),
    "no inputs": lambda m: m.graph.ClearField("input"),
    "no weights": lambda m: m.graph.ClearField("initializer"),
    "no opset": lambda m: m.ClearField("opset_import"),
    "an input of an unknown type": lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 99),
    "an input of text": lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.STRING),
    "an input without a type": lambda m: m.graph.input[0].ClearField("type"),
    "an input without a shape": lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"),
    "an input of a huge size": lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 1 << 60),
    "an input of a million indices": lambda m: setattr(
        m.graph.input[1].type.tensor_type.shape.dim[1], "dim_value", 1 << 20
    ),
    "an output that nobody makes": lambda m: setattr(m.graph.output[0], "name", "nobody"),
    "a cycle": lambda m: node(m, "Gemm").input.__setitem__(0, node(m, "Gemm", 2).output[0]),
    "an unknown operator": lambda m: setattr(node(m, "Relu"), "op_type", "Mystery"),
    "an operator without a name": lambda m: setattr(node(m, "Relu"), "op_type", ""),
    "an operator of another domain": lambda m: setattr(node(m, "Relu"), "domain", "com.nobody"),
    "a node without inputs": lambda m: node(m, "Gemm").ClearField("input"),
    "a node without outputs": lambda m: node(m, "Relu").ClearField("output"),
    "a node with too many inputs": lambda m: node(m, "Relu").input.extend(["dense_x"] * 9),
    "a tensor of an unknown type": lambda m: setattr(tensor(m, "table.0"), "data_type", 99),
    "a tensor of no type": lambda m: setattr(tensor(m, "table.0"), "data_type", 0),
    "a table of text": lambda m: setattr(tensor(m, "table.0"), "data_type", TensorProto.STRING),
    "a table of complex numbers": lambda m: replace_values(m, "table.0", np.ones((9, 16), np.complex64)),
    "a table of negative size": lambda m: tensor(m, "table.0").dims.__setitem__(0, -9),
    "a table of a huge size": lambda m: tensor(m, "table.0").dims.__setitem__(0, 1 << 62),
    "a table of no rows": lambda m: replace_values(m, "table.0", np.ones((0, 16), np.float32)),
    "a table of one dimension": lambda m: replace_values(m, "table.0", np.ones(9, np.float32)),
    "a table of other rows": lambda m: replace_values(m, "table.1", np.ones((5, 8), np.float32)),
    "a table without bytes": lambda m: tensor(m, "table.0").ClearField("raw_data"),
    "a table with a byte too few": lambda m: setattr(
        tensor(m, "table.0"), "raw_data", tensor(m, "table.0").raw_data[:-1]
    ),
    "a weight of NaN": lambda m: replace_values(m, first_weight(m).name, np.full((8, 13), np.nan, np.float32)),
    "a weight of another shape": lambda m: replace_values(m, first_weight(m).name, np.ones((13, 9), np.float32)),
    "a weight of doubles": lambda m: replace_values(m, first_weight(m).name, np.ones((8, 13))),
    "a file that is missing": lambda m: external(m, location="nowhere"),
    "a file above the folder": lambda m: external(m, location="../secret"),
    "a file of the system": lambda m: external(m, location="/etc/passwd"),
    "a file without a name": lambda m: external(m, offset=0),
    "a file with NUL": lambda m: external(m, location="a\0b"),
    "a file by a name of 5,000": lambda m: external(m, location="a" * 5000),
    "a folder in place of a file": lambda m: external(m, location="."),
    "an offset that is text": lambda m: external(m, location="m.onnx", offset="x"),
    "a negative offset": lambda m: external(m, location="m.onnx", offset=-64),
    "an offset beyond the file": lambda m: external(m, location="m.onnx", offset=1 << 40),
    "an offset of 5,000 digits": lambda m: external(m, location="m.onnx", offset="9" * 5000),
    "a length that does not fit": lambda m: external(m, location="m.onnx", length=7),
    "a Cast to an unknown type": lambda m: cast_to(m, 99),
    "a Cast to text": lambda m: cast_to(m, TensorProto.STRING),
    "a Cast of the prediction to whole numbers": lambda m: cast_to(m, TensorProto.INT32),
    "an axis that is text": lambda m: set_attribute(m, "Concat", "axis", "x"),
    "an axis that is missing": lambda m: set_attribute(m, "Concat", "axis", None),
    "an axis of 10^18": lambda m: set_attribute(m, "Concat", "axis", 10**18),
    "transB that is a list": lambda m: set_attribute(m, "Gemm", "transB", [1, 2]),
    "alpha of NaN": lambda m: set_attribute(m, "Gemm", "alpha", float("nan")),
    "alpha of infinity": lambda m: set_attribute(m, "Gemm", "alpha", float("inf")),
    "an attribute of no type": lambda m: node(m, "Gemm").attribute.append(AttributeProto(name="odd")),
    "an attribute that nobody knows": lambda m: set_attribute(m, "Gemm", "odd", 7),
    "names that steer a terminal": lambda m: setattr(node(m, "Relu"), "op_type", "\x1b[31m\nMystery"),
    "an empty graph in a branch": lambda m: (
        m.graph.node.insert(
            0, helper.make_node("If", ["dense_x"], ["x2"], then_branch=GraphProto(), else_branch=GraphProto())
        )
        or setattr(m.graph.output[0], "name", "x2")
    ),
}

ACCEPTED: dict[str, Change] = {
    "as it is": lambda m: None,
    "200 additions one after another": lambda m: before_layers(m, *[("Add", (None, np.float32(0.01)), {})] * 200),
    "a tensor that is there twice": lambda m: m.graph.initializer.append(tensor(m, "table.1")),
    "deep branches that nobody needs": lambda m: nest(m, 20),
    "weights as inputs too": lambda m: m.graph.input.append(
        helper.make_tensor_value_info("table.0", TensorProto.FLOAT, [9, 16])
    ),
    "a tensor that nobody needs": lambda m: m.graph.initializer.append(numpy_helper.from_array(np.ones(3), "spare")),
    "no names of nodes": lambda m: [each.ClearField("name") for each in m.graph.node],
    "names that steer a terminal": lambda m: setattr(m.graph, "name", "\x1b[2J\n"),
}


@pytest.fixture
def changed(original, tmp_path) -> Callable[[Change], Path]:
    def write(change: Change) -> Path:
        model = onnx.load_model_from_string(original)
        change(model)
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "m.onnx"

    return write


@pytest.mark.parametrize("name", REFUSED)
def test_a_graph_that_is_no_dlrm_is_refused_in_one_line(changed, name) -> None:
    assert check(changed(REFUSED[name]))


LARGE = 1 << 20  # elements of float32 in a value, so that 16 of them take up 64 MiB
CHAINS: dict[str, tuple] = {
    "constants": (("ConstantOfShape", (np.int64([1, LARGE]),), {}), *[("Neg", (None,), {})] * 40, COLUMNS),
    "of onnx's evaluator": (
        ("Gather", (WIDE, np.zeros(16, np.int64)), {}),
        *[("Softsign", (None,), {})] * 40,
        COLUMNS,
    ),
    "inputs": (("Tile", (None, np.int64([1, LARGE >> 6])), {}), COLUMNS) * 30,
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_of_large_values_is_refused_before_memory_is_used_up(changed, name, monkeypatch) -> None:
    path = changed(lambda model: before_layers(model, *CHAINS[name]))
    monkeypatch.setattr("dlrm_tvm.symbols.sizes.available_bytes", lambda: 128 << 20)
    with pytest.raises(UserError, match=r"makes, with the nodes before it, 0\.1 GB of values; 0\.1 GB of memory"):
        read_dlrm(path)


def test_values_that_are_gone_take_no_memory(monkeypatch) -> None:
    monkeypatch.setattr("dlrm_tvm.symbols.sizes.available_bytes", lambda: 2000)
    made, kept = Made(), np.zeros(80)
    for _ in range(100):
        made.add([np.zeros(40).reshape(8, 5)[1:], kept, kept[:3], None, Symbols(kept[1:], True)])
    with pytest.raises(MemoryError):
        made.add([np.zeros(46)])


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_odd_but_harmless_is_read_rightly(changed, name) -> None:
    assert not check(changed(ACCEPTED[name]))


@pytest.mark.parametrize("part", range(12))
def test_files_cut_short_are_refused(original, tmp_path, part) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(original[: len(original) * part // 12])
    assert check(path)


@pytest.mark.parametrize("seed", range(30))
def test_bytes_changed_anywhere(original, tmp_path, seed) -> None:
    """In the part without tables mostly, where each byte matters."""
    rng = np.random.default_rng(seed)
    data = bytearray(original)
    for _ in range(1 + seed % 3):
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
    (tmp_path / "m.onnx").write_bytes(data)
    check(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "text", [b"", b"\0" * 99, b"PK\x03\x04", b"\x08\x07" * 5000, b"\x3a" * 9999, b"text\n"], ids=range(6)
)
def test_files_that_are_no_onnx_are_refused(tmp_path, text) -> None:
    (tmp_path / "m.onnx").write_bytes(text)
    assert check(tmp_path / "m.onnx")


@pytest.mark.parametrize("kind", ["folder", "missing", "loop", "dangling link", "pipe", "100 GB", "NUL", "long"])
def test_paths_that_are_no_file_are_refused(tmp_path, kind) -> None:
    path = tmp_path / "m.onnx"
    if kind == "folder":
        path.mkdir()
    elif kind in ("loop", "dangling link"):
        path.symlink_to(path if kind == "loop" else tmp_path / "nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "100 GB":
        path.touch()
        os.truncate(path, 100 << 30)
    elif kind != "missing":
        path = tmp_path / ("a\0b" if kind == "NUL" else "a" * 4000)
    assert check(path)
