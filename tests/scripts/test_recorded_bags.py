"""Bags in data under the ONNX graph's own input names: read in every form, scored, refused in one line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cards import Card, save
from graph_surgery import EXPORTS
from graphs import onnxruntime_outputs, onnxruntime_session
from models import build_plain, numpy_predictions, random_bags, random_batch, random_dlrm
from recorded_bags import feed
from recorded_bags import random_bags as cut_bags
from scripts import score

from dlrm_tvm.data import chunks
from dlrm_tvm.data.reference_data import open_reference, read_inputs
from dlrm_tvm.errors import UserError
from dlrm_tvm.frontend.reader import read_dlrm
from dlrm_tvm.model.dlrm import Dlrm, GraphInputs

TABLE_ROWS = (11, 1, 300)
ITEMS = 150
PER_TABLE = GraphInputs("dense_x", ("i_0", "i_1", "i_2"), ("o_0", "o_1", "o_2"), "pred")
CARD = Card(table_rows=TABLE_ROWS, table_names=("emb_0", "emb_1", "emb_2"), graph_inputs=PER_TABLE)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ITEMS", 64)


def small_model() -> Dlrm:
    model = random_dlrm(table_rows=TABLE_ROWS, dim=8, seed=2)
    averaged = replace(model.tables[2], pooling="mean")
    return replace(model, tables=(*model.tables[:2], averaged), graph_inputs=PER_TABLE)


def recorded(offsets_stacked: bool = False) -> dict[str, np.ndarray]:
    model = small_model()
    dense, (indices, offsets) = random_batch(model, ITEMS)[0], random_bags(model, ITEMS)
    arrays = {"dense_x": dense, **{f"i_{t}": each for t, each in enumerate(indices)}}
    arrays |= {"offsets": np.stack(offsets)} if offsets_stacked else {f"o_{t}": o for t, o in enumerate(offsets)}
    return arrays | {"pred": numpy_predictions(model, dense, indices, offsets).astype(np.float32)[:, None]}


def bags_of(chunks: list) -> list[list[tuple[int, ...]]]:
    """Per table the bags of all items, as tuples."""
    found: list[list[tuple[int, ...]]] = [[], [], []]
    for chunk in chunks:
        indices, offsets = chunk.lookups
        for table in range(3):
            ends = [*offsets[table][1:], len(indices[table])]
            found[table] += [tuple(indices[table][a:b].tolist()) for a, b in zip(offsets[table], ends)]
    return found


def wanted_bags(arrays: dict[str, np.ndarray], items: int = ITEMS) -> list[list[tuple[int, ...]]]:
    offsets = arrays["offsets"] if "offsets" in arrays else [arrays[f"o_{t}"] for t in range(3)]
    return [[tuple(part.tolist()) for part in np.split(arrays[f"i_{t}"], offsets[t][1:])][:items] for t in range(3)]


@pytest.mark.parametrize("offsets_stacked", [False, True])
@pytest.mark.parametrize("items", [ITEMS, 64, 65, 7])
def test_bags_are_read_in_chunks_with_offsets_per_table_or_stacked(tmp_path, offsets_stacked, items):
    arrays = recorded(offsets_stacked)
    names = replace(PER_TABLE, offsets=("offsets",)) if offsets_stacked else PER_TABLE
    data = open_reference(save(tmp_path, arrays), replace(CARD, graph_inputs=names), max_items=items)
    chunks = list(data)
    assert bags_of(chunks) == wanted_bags(arrays, items)
    np.testing.assert_array_equal(np.concatenate([c.dense for c in chunks]), arrays["dense_x"][:items])
    np.testing.assert_array_equal(np.concatenate([c.reference for c in chunks]), arrays["pred"][:items, 0])
    lengths = [len(arrays[f"i_{t}"]) for t in range(3)]
    assert data.indices_per_bag == pytest.approx(sum(lengths) / ITEMS / 3)


def test_stacked_indices_of_two_each_are_read(tmp_path):
    rng = np.random.default_rng(0)
    stacked = np.stack([rng.integers(0, rows, 2 * ITEMS) for rows in TABLE_ROWS])
    arrays = {"dense_x": recorded()["dense_x"], "indices": stacked, "pred": np.zeros(ITEMS, np.float32)}
    arrays["offsets"] = np.tile(2 * np.arange(ITEMS), (3, 1))
    card = replace(CARD, graph_inputs=GraphInputs("dense_x", ("indices",), ("offsets",), "pred"))
    data = open_reference(save(tmp_path, arrays), card)
    assert data.indices_per_bag == 2
    pairs = [[tuple(pair) for pair in stacked[t].reshape(-1, 2).tolist()] for t in range(3)]
    assert bags_of(list(data)) == pairs


def test_bags_of_one_index_are_read_as_indices(tmp_path):
    arrays = {"dense_x": recorded()["dense_x"], "pred": np.zeros(ITEMS, np.float32)}
    columns = [np.arange(ITEMS) % rows for rows in TABLE_ROWS]
    for table, column in enumerate(columns):
        arrays |= {f"i_{table}": column, f"o_{table}": np.arange(ITEMS)}
    chunks = list(open_reference(save(tmp_path, arrays), CARD))
    assert all(chunk.bags is None for chunk in chunks)
    np.testing.assert_array_equal(np.concatenate([c.indices for c in chunks]), np.stack(columns, axis=1))


def test_inputs_of_all_chunks_are_joined_and_taken_in_any_order(tmp_path):
    arrays = recorded()
    dense, bags = read_inputs(save(tmp_path, arrays), CARD, ITEMS)
    assert dense.shape == (ITEMS, 13)
    picked = np.array([149, 3, 3, 0, 77])
    taken = bags.take(picked)
    for table, wanted in enumerate(wanted_bags(arrays)):
        got = np.split(taken.indices[table], taken.offsets[table][1:])
        assert [tuple(part.tolist()) for part in got] == [wanted[item] for item in picked]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"o_1": np.arange(ITEMS - 1)}, r"o_1 has shape \[149\]; this model and file need \[150\]"),
        ({"o_1": None}, "lacks o_1; has"),
        ({"o_1": np.zeros(ITEMS)}, "o_1 is float64; want integers"),
        ({"i_0": np.zeros((3, 4), int)}, r"i_0 has shape \[3, 4\]; this model and file need \[4\]"),
        ({"o_2": np.full(ITEMS, 1)}, r"data.npz: item 0: the offset of table 2 is 1, bags begin at 0"),
        ({"o_2": np.arange(ITEMS)[::-1] - ITEMS + 1}, "item 1: the offset of table 2 is -1, less than the one before"),
        ({"i_0": np.zeros(0, int)}, "the offset of table 0 is .*, beyond its 0 indices"),
    ],
)
def test_what_are_no_bags_is_refused_in_one_line(tmp_path, changes, message):
    arrays = {key: value for key, value in (recorded() | changes).items() if value is not None}
    with pytest.raises(UserError, match=message) as raised:
        list(open_reference(save(tmp_path, arrays), CARD))
    assert "\n" not in str(raised.value)


def test_an_index_of_a_bag_outside_its_table_is_named_with_its_item(tmp_path):
    arrays = recorded()
    item = 100
    arrays["i_2"][arrays["o_2"][item + 1] - 1] = 300
    owner = np.searchsorted(arrays["o_2"], arrays["o_2"][item + 1] - 1, side="right") - 1
    with pytest.raises(UserError, match=rf"item {owner} takes row 300 of table 2 \(emb_2\), which has 300 rows"):
        list(open_reference(save(tmp_path, arrays), CARD))


def test_accuracy_scores_bags_through_its_command_line(tmp_path):
    library = build_plain(small_model(), 16, tmp_path)
    arrays = recorded()
    status, result, printed = score(library, save(tmp_path, arrays))
    assert (status, result["passed"], result["items"], result["mismatches"]) == (0, True, ITEMS, 0)
    unfolded = " ".join(printed.split())
    assert f"{ITEMS} items, " in unfolded and "indices per bag" in unfolded
    arrays["pred"][ITEMS - 1] += 0.01
    status, result, _ = score(library, save(tmp_path, arrays))
    assert (status, result["passed"], result["mismatches"]) == (3, False, 1)


@pytest.mark.parametrize("export", ["op11_stacked", "op13_lists", "dynamo18_stacked"])
def test_library_of_an_export_gives_onnxruntimes_outputs_for_ragged_bags(tmp_path, export):
    """Offsets stacked and per table, empty bags included, under the graph's own names."""
    pytest.importorskip("onnxruntime")
    path = EXPORTS / f"{export}.onnx"
    model, rng = read_dlrm(path), np.random.default_rng(3)
    rows = [table.num_rows for table in model.tables]
    dense = rng.uniform(-2, 2, (ITEMS, model.num_dense)).astype(np.float32)
    indices, offsets = cut_bags(rng, items=ITEMS, table_rows=rows, total=3 * ITEMS, empty=True)
    lengths = np.diff(offsets, axis=1, append=3 * ITEMS)
    assert {0, 1, 2} < set(lengths.ravel().tolist()) and len(np.unique(lengths, axis=0)) == len(rows)
    given = feed(model.graph_inputs, dense, indices, offsets)
    pred = onnxruntime_outputs(onnxruntime_session(path), given)
    assert pred.std() > 0.03, "predictions are spread, so that a wrong one shows"
    library = build_plain(model, 16, tmp_path)
    status, result, _ = score(library, save(tmp_path, given | {"pred": pred}))
    assert (status, result["passed"], result["items"], result["mismatches"]) == (0, True, ITEMS, 0)
