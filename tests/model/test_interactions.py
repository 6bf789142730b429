"""Kinds of interaction: each answers for itself, every wing knows all of them, and no code asks which one it has."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from models import random_dlrm

from dlrm_tvm.compiler import lower_default
from dlrm_tvm.frontend import assembly
from dlrm_tvm.model.interactions import Concat, Cross, Dot, Interaction
from dlrm_tvm.model.layers import Dense
from dlrm_tvm.network import interaction
from dlrm_tvm.paths import ROOT

KINDS = get_args(Interaction)
NAMES = {kind.__name__ for kind in KINDS}
SOURCES = [path for path in sorted((ROOT / "dlrm_tvm").rglob("*.py")) if path.stem != "interactions"]
CROSS = random_dlrm(table_rows=(5, 7, 3, 2), dim=4, interaction="cross", ranks=(3, None)).interaction
EXAMPLES = [Dot(), Dot(with_self=True), Concat(), CROSS]


def asked(node: ast.AST) -> bool:
    """Whether a node compares a model's interaction, or tells its class."""
    is_question = isinstance(node, ast.Compare | ast.MatchClass) or (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass")
    )
    parts = list(ast.walk(node)) if is_question else []
    names = {part.id for part in parts if isinstance(part, ast.Name)}
    return bool(names & NAMES) or any(isinstance(part, ast.Attribute) and part.attr == "interaction" for part in parts)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_asks_which_kind_of_interaction_a_model_has(path: Path) -> None:
    assert [node.lineno for node in ast.walk(ast.parse(path.read_text())) if asked(node)] == []


@pytest.mark.parametrize(
    "code",
    ['model.interaction.kind == "cat"', "isinstance(x, Dot)", "type(x) is Concat", "plan.interaction is None"],
)
def test_such_questions_would_be_found(code: str) -> None:
    assert any(asked(node) for node in ast.walk(ast.parse(code)))


@pytest.mark.parametrize("table", [assembly._OF_KIND, interaction._PLANS, lower_default._JOINED])
def test_every_wing_knows_every_kind(table: dict) -> None:
    assert set(table) == set(KINDS)


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.name)
def test_a_kind_gives_as_many_values_as_it_says(kind: Interaction) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 5, 4))
    joined = kind.join(vectors)
    assert joined.shape == (3, kind.num_outputs(5, 4))
    ones = np.ones((3, 5), np.float32)
    quantized = kind.join_quantized(
        vectors[:, 0].astype(np.float32), vectors, ones, x_scale=None, scales=(None,) * (1 + len(kind.layers))
    )
    np.testing.assert_allclose(quantized, joined, rtol=1e-6, atol=1e-6)


def dense(outputs: int, inputs: int, activation: str = "none") -> Dense:
    return Dense(np.ones((outputs, inputs), np.float32), np.zeros(outputs, np.float32), activation)


@pytest.mark.parametrize(
    ("crossings", "reason"),
    [
        ((), "at least one layer"),
        (((),), "widths"),
        (((dense(3, 8), dense(8, 4)),), r"cross layer 0 has the widths \[8, 3, 8\]"),
        (((dense(3, 8), dense(7, 3)),), r"widths \[8, 3, 7\]"),
        (((dense(8, 8),), (dense(9, 9),)), "cross layer 1 takes 9 values, the first 8"),
        (((dense(3, 8, "relu"), dense(8, 3)),), "has an activation"),
        (((dense(3, 8), dense(3, 3), dense(8, 3)),), "widths"),
    ],
)
def test_cross_layers_that_do_not_fit_together_are_refused(crossings: tuple, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Cross(crossings)


def test_cross_layers_of_other_vectors_are_refused() -> None:
    model = random_dlrm(dim=4, table_rows=(5, 7, 3), interaction="cross")
    with pytest.raises(ValueError, match="the cross layers take 20 values, not 4 vectors of dimension 4"):
        replace(model, interaction=CROSS)


def test_mlperfs_second_model_costs_what_mlperf_says() -> None:
    """DLRM-DCNv2: 26 tables of dimension 128, three cross layers of rank 512 (mlcommons/inference dlrm_v2)."""
    model = random_dlrm(
        table_rows=(1,) * 26,
        dim=128,
        bottom=(512, 256),
        top=(1024, 1024, 512, 256),
        interaction="cross",
        ranks=(512, 512, 512),
    )
    assert model.macs_per_item == 170_496 + 10_616_832 + 5_243_136
    assert model.first_top == 3 + 6
    biases = 512 + 256 + 128 + 3 * (512 + 3456) + 1024 + 1024 + 512 + 256 + 1
    assert model.mlp_bytes == 4 * (16_030_464 + biases)


def test_dots_are_scaled_by_their_factors_and_brought_to_the_scales_that_are_given() -> None:
    rng = np.random.default_rng(1)
    numbers, factors = rng.integers(-127, 128, (2, 3, 4)).astype(float), rng.uniform(0.1, 2, (2, 3)).astype(np.float32)
    x = rng.normal(size=(2, 4)).astype(np.float32)
    values = numbers * factors[:, :, None]
    dots = np.stack([(values[:, i] * values[:, j]).sum(axis=1) for i, j in [(1, 0), (2, 0), (2, 1)]], axis=1)
    scales = rng.uniform(0.5, 2, 7).astype(np.float32)

    def joined(**given) -> np.ndarray:
        return Dot().join_quantized(x, numbers, factors, **given)

    plain = joined(x_scale=None, scales=[None])
    np.testing.assert_allclose(plain, np.concatenate([x, dots], axis=1), rtol=1e-5)
    np.testing.assert_allclose(joined(x_scale=0.5, scales=[None])[:, :4], x * np.float32(0.5), rtol=1e-6)
    np.testing.assert_allclose(joined(x_scale=0.5, scales=[scales])[:, 4:], dots / scales[4:], rtol=1e-5)
    np.testing.assert_array_equal(joined(x_scale=0.5, scales=[scales])[:, :4], x)


@pytest.mark.parametrize(
    "kind, wanted",
    [
        ("dot", "422ae81cdfde1cd2"),
        ("dot_self", "46069922c9a03c7f"),
        ("cat", "2e7920c0664b74b9"),
    ],
)
def test_fingerprints_are_those_of_older_recordings(kind: str, wanted: str) -> None:
    assert random_dlrm(interaction=kind).fingerprint.startswith(wanted)
