"""Data as people have it: preprocessed for other tables than the model's, or recorded without outputs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from cards import Card, save

from dlrm_tvm.data.chunks import ReferenceData
from dlrm_tvm.data.reference_data import open_reference, read_inputs
from dlrm_tvm.data.state_dict import read_weights
from dlrm_tvm.data.workload import recorded_items
from dlrm_tvm.errors import UserError
from dlrm_tvm.model.dlrm import GraphInputs

RANGE = 12
CARD = Card(num_dense=2, table_rows=(5, RANGE, RANGE), table_names=("a", "b", "c"))
BAGS = replace(CARD, graph_inputs=GraphInputs("dense_x", ("i0", "i1", "i2"), ("o0", "o1", "o2"), "pred"))
ITEMS = 6


def arrays() -> dict[str, np.ndarray]:
    """Items of tables of up to 1,000 rows; of the first table none beyond the model's, which was never capped."""
    rng = np.random.default_rng(3)
    categories = np.stack([rng.integers(0, rows, ITEMS) for rows in (5, 900, 1000)], axis=1)
    return {"dense_x": rng.random((ITEMS, 2), np.float32), "indices": categories.T}


def labelled() -> dict[str, np.ndarray]:
    own = arrays()
    return {"X_int": own["dense_x"], "X_cat": own["indices"].T, "torch_res": np.zeros(ITEMS), "target": np.zeros(ITEMS)}


def indices_of(data: ReferenceData) -> np.ndarray:
    return np.concatenate([chunk.indices for chunk in data])


@pytest.mark.parametrize("make", [arrays, labelled])
def test_indices_are_taken_modulo_max_ind_range(tmp_path, make):
    path = save(tmp_path, make())
    data = open_reference(path, CARD, outputs_wanted=False, max_ind_range=RANGE)
    wanted = [[index % RANGE for index in row] for row in arrays()["indices"].T.tolist()]
    np.testing.assert_array_equal(indices_of(data), wanted)
    np.testing.assert_array_equal(read_inputs(path, CARD, ITEMS, max_ind_range=RANGE)[1], wanted)
    _, rotated = recorded_items(str(path), CARD, ITEMS, instance=0, instances=1, max_ind_range=RANGE)
    np.testing.assert_array_equal(rotated, wanted)


@pytest.mark.parametrize("most", [300, 2**70])
def test_narrow_indices_stay_as_they_are_under_a_range_beyond_their_type(tmp_path, most):
    own = {**arrays(), "indices": np.full((3, ITEMS), 127, np.int8)}
    card = replace(CARD, table_rows=(128, 128, 128))
    data = open_reference(save(tmp_path, own), card, outputs_wanted=False, max_ind_range=most)
    assert (indices_of(data) == 127).all()


def test_indices_of_bags_are_taken_modulo_it_too(tmp_path):
    own = arrays()
    flat = {f"i{t}": own["indices"][t] for t in range(3)} | {f"o{t}": np.array([0, 0, 1, 4, 5, 6]) for t in range(3)}
    data = open_reference(
        save(tmp_path, {"dense_x": own["dense_x"], **flat}), BAGS, outputs_wanted=False, max_ind_range=RANGE
    )
    (chunk,) = data
    for found, given in zip(chunk.bags.indices, own["indices"]):
        assert found.tolist() == [index % RANGE for index in given.tolist()]


def test_a_refused_index_names_max_ind_range_where_that_would_help(tmp_path):
    with pytest.raises(UserError, match=rf"which has {RANGE} rows. Give --max-ind-range {RANGE} if the model was"):
        indices_of(open_reference(save(tmp_path, labelled()), CARD))


@pytest.mark.parametrize(("table", "index"), [(0, 5), (0, RANGE - 1), (1, -1)])
def test_no_refused_index_names_it_where_it_would_not(tmp_path, table, index):
    """Tables capped at 12 rows leave an index of 5 as it is; a negative one is no row of any table."""
    own = arrays()
    own["indices"] %= 5
    own["indices"][table, 2] = index
    data = open_reference(save(tmp_path, own), CARD, outputs_wanted=False, max_ind_range=RANGE if index < 0 else None)
    with pytest.raises(UserError, match=rf"item 2 takes row {index} of table {table} .* Use data made for this model"):
        indices_of(data)


def test_a_range_below_one_is_refused(tmp_path):
    with pytest.raises(UserError, match="--max-ind-range 0: give at least 1"):
        open_reference(save(tmp_path, labelled()), CARD, max_ind_range=0)


def test_inputs_alone_are_read_where_outputs_are_not_used(tmp_path):
    own = arrays()
    own["indices"] %= 5
    path = save(tmp_path, own)
    dense, indices = read_inputs(path, CARD, ITEMS)
    np.testing.assert_array_equal(dense, own["dense_x"])
    np.testing.assert_array_equal(indices, own["indices"].T)
    with pytest.raises(UserError, match="lacks pred"):
        open_reference(path, CARD)


def test_inputs_with_labels_alone_are_scored_by_their_labels(tmp_path):
    labels = np.arange(ITEMS) % 2
    data = open_reference(save(tmp_path, {**arrays(), "target": labels}), CARD, max_ind_range=5)
    assert (data.has_reference, data.has_labels) == (False, True)
    (chunk,) = data
    assert chunk.reference is None
    np.testing.assert_array_equal(chunk.labels, labels)


@pytest.mark.parametrize(
    ("name", "form"),
    [("emb_l.1.weight_q", "quotient-remainder embedding"), ("emb_l.1.proj.weight", "dimension with a projection")],
)
def test_weights_of_other_embeddings_are_named_as_what_they_are(tmp_path, name, form):
    header, at = {}, 0
    for each, shape in {"bot_l.0.weight": [4, 3], "bot_l.0.bias": [4], "emb_l.0.weight": [5, 4], name: [3, 4]}.items():
        nbytes = 4 * int(np.prod(shape))
        header[each] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))
    with pytest.raises(UserError, match=rf"{name} is part of a .*{form}.* give it by --onnx-model"):
        read_weights(path)
