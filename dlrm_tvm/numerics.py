"""In which numbers a library computes: the precision of each layer, and int8's steps. Pure data.

    fp32    everything float32
    bf16    weights, activations and tables bfloat16, sums float32
    int8    weights signed bytes in steps of each output's own, tables in steps of each table's own,
            activations bytes in steps of each row's own ("dynamic"), or in steps found on calibration data ("static")

The first and the last layer stay float32 in bf16 and int8: they hold 0.3 % of the multiply-adds of the MLPerf model,
and see what rounds worst, raw counts and the logit (tests/benchmarks/EXPERIMENTS.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .model import Dlrm

PRECISIONS = ("fp32", "bf16", "int8")
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}  # of a value
SCALES = ("dynamic", "static")
INSTRUCTION_FLAG = {"bf16": "avx512_bf16", "int8": "avx512_vnni"}  # of the multiply-add that a precision is made of
# What a CPU must show to run a precision's kernels.
NEEDED_FLAGS = {"fp32": ()} | {precision: ("avx512bw", flag) for precision, flag in INSTRUCTION_FLAG.items()}


@dataclass(frozen=True, eq=False)
class LayerNumerics:
    """precision: of a layer's weights and inputs. Of int8: signed: inputs may be negative; steps: [inputs] float32,
    what each input is in steps of, None where each row has steps of its own.
    """

    precision: str = "fp32"
    signed: bool = False
    steps: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Numerics:
    """layers: of each layer, bottom first. Of int8: table_steps [T] float32; x_step: what x is in steps of where rows
    and x meet, None where each item's x has its own; calibration: where steps come from, for people.
    """

    precision: str
    layers: tuple[LayerNumerics, ...]
    table_steps: np.ndarray | None = None
    x_step: float | None = None
    calibration: str | None = None

    def output_step(self, layer: int, num_bottom: int) -> float | None:
        """What the outputs of a layer, the last one aside, are in steps of, where those are given beforehand."""
        if layer == num_bottom - 1:
            return self.x_step
        steps = self.layers[layer + 1].steps
        return None if steps is None else float(steps[0])

    @property
    def scales(self) -> str | None:
        """One of SCALES for int8, None for others."""
        if self.precision != "int8":
            return None
        return "dynamic" if self.x_step is None else "static"


def numerics_of(model: Dlrm, precision: str, table_steps: np.ndarray | None = None) -> Numerics:
    """The numbers of a precision that need no calibration: int8's scales are dynamic.

    table_steps: [T] float32, for int8. Raises ValueError for what has no kernels (see unsupported).
    """
    reason = unsupported(model, precision)
    if reason is not None:
        raise ValueError(reason)
    if precision == "fp32":
        return Numerics("fp32", (LayerNumerics(),) * len(model.layers))
    inner = [LayerNumerics(precision, signed) for signed in signed_inputs(model)[1:-1]]
    return Numerics(precision, (LayerNumerics(), *inner, LayerNumerics()), table_steps)


def signed_inputs(model: Dlrm) -> list[bool]:
    """Per layer whether its inputs may be negative."""
    after = [layer.activation == "none" for layer in model.layers[:-1]]
    after[len(model.bottom) - 1] = True  # x and dots
    return [True, *after]


def unsupported(model: Dlrm, precision: str) -> str | None:
    """Why a model has no kernels of a precision; None where it has."""
    if precision == "int8" and model.interaction.kind == "cat":
        return 'its interaction is "cat", whose vectors would need one step for all: int8 is made for "dot"'
    if precision == "bf16" and model.interaction.kind == "cat" and len(model.top) == 1:
        return "its only top layer, which stays fp32, would take bf16 rows as they lie"
    return None
