"""What three bfloat16 parts hold: which models are told apart, and by which of their layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from models import random_dlrm

from dlrm_tvm.model.ranges import why_not_in_parts

MODELS = [{}, {"interaction": "cat"}, {"interaction": "dot_self"}, {"interaction": "cross"}, {"top": ()}]


def with_layer(model, at: int, weight_size: float = 1, bias: float = 0):
    """The model with layer `at` of bottom and top MLP changed."""
    layers = [*model.bottom, *model.top]
    layer = layers[at]
    weight = layer.weight * np.float32(weight_size / np.abs(layer.weight).max())
    layers[at] = replace(layer, weight=weight, bias=layer.bias + np.float32(bias))
    count = len(model.bottom)
    return replace(model, bottom=tuple(layers[:count]), top=tuple(layers[count:]))


@pytest.mark.parametrize("shape", MODELS, ids=str)
def test_ordinary_models_fit(shape: dict) -> None:
    assert why_not_in_parts(random_dlrm(**shape)) is None


@pytest.mark.parametrize("at, number", [(0, 1), (1, 2), (2, 3)])
def test_a_weight_too_large_is_named_with_its_layer(at: int, number: int) -> None:
    model = random_dlrm()
    assert why_not_in_parts(with_layer(model, at, 1e14)) is None
    reason = why_not_in_parts(with_layer(model, at, 1e25))
    assert reason == f"layer {number} of 4 has a weight of 1e+25, three bfloat16 parts take 1e+20 at most"


def test_layers_that_can_overflow_are_named() -> None:
    model = random_dlrm()
    with_self = random_dlrm(interaction="dot_self")
    assert why_not_in_parts(with_layer(with_self, 1, 1, bias=1e19)).startswith("layer 3 of 4 can overflow"), "squared"
    assert why_not_in_parts(with_layer(model, 1, 1, bias=1e19)) is None
    twice = with_layer(with_layer(model, 0, 1e18), 1, 1e18)
    assert why_not_in_parts(twice).startswith("layer 2 of 4 can overflow for inputs of 10000")
    assert why_not_in_parts(with_layer(model, 2, 1, bias=3.39e38)).startswith("layer 3 of 4 can overflow")


def test_the_last_layer_and_what_follows_a_sigmoid_are_not_asked_about() -> None:
    assert why_not_in_parts(with_layer(random_dlrm(), 3, 1e30)) is None
    inside = random_dlrm(top=(24, 16), sigmoid_layer=0)
    assert why_not_in_parts(with_layer(inside, 2, 1e19)) is None
