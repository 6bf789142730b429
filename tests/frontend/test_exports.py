"""Recorded exports (tests/exports/) read by us give what PyTorch computed, for one index per bag and for any bags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graph_surgery import EXPORTS, read_export
from models import assert_close
from recorded_bags import recorded_patterns

from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.model.interactions import Concat, Cross, Dot
from dlrm_tvm.model.reference import predict

NAMES = sorted(path.stem for path in EXPORTS.glob("*.onnx"))
DOT, SELF, CAT = Dot(), Dot(with_self=True), Concat()


def each(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}_{t}" for t in range(count))


@pytest.fixture(scope="module")
def models() -> dict[str, Dlrm]:
    return {name: read_export(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_export_read_by_us_gives_pytorchs_outputs_for_every_pattern_of_bags(name: str, models: dict) -> None:
    patterns = recorded_patterns(EXPORTS / f"{name}.npz")
    taken = {"gather": {"one_index"}, "multihot": {"multihot"}}
    given = next((patterns for form, patterns in taken.items() if form in name), {"one_index", "bags", "long_bags"})
    assert set(patterns) == given
    for dense, indices, offsets, wanted in patterns.values():
        assert_close(predict(models[name], dense, indices, offsets), wanted)
    spread = np.concatenate([wanted for *_, wanted in patterns.values()])
    assert spread.std() > 0.03, "predictions are spread, so that a wrong one shows"


def test_recorded_bags_are_empty_single_and_long_and_differ_between_tables() -> None:
    _, indices, offsets, _ = recorded_patterns(EXPORTS / "op11_stacked.npz")["bags"]
    lengths = np.array([np.diff(starts, append=len(rows)) for starts, rows in zip(offsets, indices, strict=True)])
    assert {0, 1, 2, 3, 4} == set(lengths.ravel().tolist())
    assert len(np.unique(lengths, axis=0)) == len(lengths)


def test_pooling_and_interaction_are_what_was_exported(models: dict) -> None:
    for name, model in models.items():
        wanted = SELF if "self" in name or name in ("op11_unfolded", "op17_no_sigmoid") else DOT
        if "cross" in name:
            assert isinstance(model.interaction, Cross), name
        else:
            assert model.interaction == (CAT if "cat" in name else wanted), name
        assert {table.pooling for table in model.tables} == {"mean" if "mean" in name else "sum"}, name
        assert all((table.row_weights is not None) == ("weighted" in name) for table in model.tables), name


def test_the_row_of_padding_idx_is_zeros_and_no_other_is(models: dict) -> None:
    padded = {name: model for name, model in models.items() if "padding" in name}
    assert len(padded) == 3
    for name, model in padded.items():
        for table in model.tables:
            row = {"18_padding_lists": 0, "modules_padding": 1, "last_fixed": -1}
            place = next(at for end, at in row.items() if name.endswith(end)) % table.num_rows
            assert table.rows.origin.startswith("padding_idx"), name
            assert np.flatnonzero(~table.rows[:].any(axis=1)).tolist() == [place], name


def test_cross_layers_have_the_ranks_and_biases_that_were_exported(models: dict) -> None:
    low = models["op13_cross_multihot"].interaction
    assert [[layer.weight.shape for layer in crossing] for crossing in low.crossings] == [[(3, 16), (16, 3)]] * 3
    assert all(not first.bias.any() and last.bias.all() for first, last in low.crossings)
    full, projected = models["op17_cross_full_rank"].interaction.crossings
    assert [layer.weight.shape for layer in (*full, *projected)] == [(40, 40), (5, 40), (40, 5)]
    assert all(layer.bias.all() for layer in (*full, *projected))


def test_fixed_indices_per_bag_and_offsets_with_the_last_end_are_told_to_who_feeds_the_graph(models: dict) -> None:
    for name, model in models.items():
        fixed = {"dynamo20_cross_multihot_fixed": (2, 3, 1, 6)}.get(name, (3, 1, 4))
        assert model.graph_inputs.indices_per_bag == (fixed if "multihot" in name else ()), name
        assert model.graph_inputs.last_offset == ("_last" in name), name


def test_clamp_is_read_with_predictions_on_both_sides_of_its_bounds(models: dict) -> None:
    clamped = [name for name, model in models.items() if model.clamp is not None]
    assert clamped == [name for name in NAMES if "clamped" in name] != []
    for name in clamped:
        least, greatest = models[name].clamp
        assert least == pytest.approx(1 - greatest, abs=1e-7)
        preds = np.concatenate([wanted for *_, wanted in recorded_patterns(EXPORTS / f"{name}.npz").values()])
        assert ((preds > least) & (preds < greatest)).any()
        assert (np.isclose(preds, least) | np.isclose(preds, greatest)).any()


def test_sigmoid_stands_where_it_was_exported(models: dict) -> None:
    deep = models["op17_deep"]
    assert [layer.activation for layer in deep.bottom] == ["relu", "relu", "relu", "sigmoid"]
    assert [layer.activation for layer in deep.top] == ["relu", "sigmoid", "relu", "none"]
    assert models["op17_no_sigmoid"].top[-1].activation == "none"
    assert models["op11_stacked"].top[-1].activation == "sigmoid"


@pytest.mark.parametrize(
    ("name", "dense", "offsets", "indices"),
    [
        ("op9_aten", "input.1", ("lS_o",), ("lS_i",)),
        ("op9_aten_clamped", "dense_x", each("offsets", 3), each("indices", 3)),
        ("op11_stacked", "dense_x", ("offsets",), ("indices",)),
        ("op11_cat_mixed", "dense_x", ("offsets",), each("indices", 3)),
        ("dynamo20_deep_lists", "dense_x", each("offsets", 5), each("indices", 5)),
        ("dynamo20_gather", "dense_x", (), each("indices", 3)),
    ],
)
def test_inputs_keep_the_graphs_own_names(name: str, dense: str, offsets: tuple, indices: tuple, models: dict) -> None:
    names = models[name].graph_inputs
    assert (names.dense, names.offsets, names.indices) == (dense, offsets, indices)


def test_the_same_weights_are_read_from_every_exporter(models: dict) -> None:
    """All of these are of one Shape and one seed, so of one set of weights."""
    same = ["op9_aten", "op10_unrolled", "op11_stacked", "op13_lists", "dynamo18_fixed", "dynamo18_stacked"]
    assert len({models[name].fingerprint for name in same}) == 1
    assert models["op17_mean"].fingerprint not in {models[name].fingerprint for name in same}


def test_recorded_exports_are_those_that_the_script_makes() -> None:
    pytest.importorskip("torch")
    make_exports = pytest.importorskip("make_exports")
    assert sorted(make_exports.EXPORTS) == NAMES


def test_fixture_folder_stays_small() -> None:
    assert sum(Path(path).stat().st_size for path in EXPORTS.iterdir()) < 2_000_000
