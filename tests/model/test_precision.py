"""Which numbers a layer gets, what may be negative, what has no kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from models import random_dlrm

from dlrm_tvm.model.dlrm import Dlrm
from dlrm_tvm.model.precision import (
    ACTIVATION_SCALES,
    Numerics,
    numerics_of,
    signed_inputs,
)

MODEL = random_dlrm(bottom=(40, 24), top=(40, 24, 8))  # 3 + 4 layers


def with_activations(model: Dlrm, *activations: str) -> Dlrm:
    """The same with these activations, bottom first."""
    layers = [replace(layer, activation=each) for layer, each in zip(model.layers, activations, strict=True)]
    return replace(model, bottom=tuple(layers[: len(model.bottom)]), top=tuple(layers[len(model.bottom) :]))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_only_the_first_and_the_last_layer_stay_fp32(precision):
    layers = numerics_of(MODEL, precision, np.ones(3, np.float32)).layers
    assert [layer.precision for layer in layers] == ["fp32", *[precision] * 5, "fp32"]


def test_fp32_is_fp32_everywhere_and_has_no_steps():
    numerics = numerics_of(MODEL, "fp32")
    assert [layer.precision for layer in numerics.layers] == ["fp32"] * 7
    assert (numerics.table_scales, numerics.x_scale, numerics.activation_scales) == (None, None, None)


def test_inputs_may_be_negative_after_no_activation_and_where_dots_are():
    assert signed_inputs(MODEL) == [True, False, False, True, False, False, False]
    model = with_activations(MODEL, "none", "sigmoid", "relu", "relu", "none", "sigmoid", "none")
    assert signed_inputs(model) == [True, True, False, True, False, True, False]
    scales = np.ones(3, np.float32)
    assert [layer.signed for layer in numerics_of(model, "int8", scales).layers[1:-1]] == [
        True,
        False,
        True,
        False,
        True,
    ]


def test_a_model_of_two_layers_is_fp32_but_for_its_tables():
    model = random_dlrm(bottom=(), top=())
    numerics = numerics_of(model, "bf16")
    assert [layer.precision for layer in numerics.layers] == ["fp32", "fp32"]
    assert numerics.precision == "bf16"


def test_scales_are_static_where_x_has_a_step():
    scales = np.ones(3, np.float32)
    dynamic = numerics_of(MODEL, "int8", scales)
    static = replace(dynamic, x_scale=0.1)
    assert (dynamic.activation_scales, static.activation_scales) == ACTIVATION_SCALES
    assert Numerics("bf16", dynamic.layers, x_scale=0.1).activation_scales is None
