"""Slices -> one row per batch size and engine -> table and JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from statistics import median

from dlrm_tvm.peer_precision import MEAN_ERROR
from dlrm_tvm.peers import OURS, TITLES

NAMES = {OURS: "ours", **TITLES}
_HEADER = (
    f"{'':<4}  {'batch':>5}  {'engine':<12}  {'items/s':>8}  {'best':>8}  {'of peak':>8}  {'best':>8}  "
    f"{'max error':>9}  {'mean error':>10}  {'ours/peer':>9}"
)
_FP32_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Errors:
    """Absolute ones against the fp32 reference; infinite where a prediction is no number."""

    largest: float
    mean: float

    def are_right(self, precision: str) -> bool:
        """fp32 is right to the last item; narrower ones on average, as what a wrong kernel gives is not."""
        return self.largest <= _FP32_TOLERANCE if precision == "fp32" else self.mean <= MEAN_ERROR[precision]


@dataclass(frozen=True)
class Slice:
    """One engine's turn: its rate, and the core's peak beside it (the larger of before and after)."""

    engine: str
    batch: int
    items_per_s: float
    peak_gflops: float

    def peak_fraction(self, flops_per_item: int) -> float:
        return self.items_per_s * flops_per_item / self.peak_gflops / 1e9


@dataclass(frozen=True)
class Row:
    """Medians over the rounds, and the best round. Rates are None for an engine whose outputs were not right.

    ratio_to_best_peer: of ours to the peer with the larger median, the median over rounds of both turns in one round.
    """

    precision: str
    batch_size: int
    engine: str
    max_abs_error: float
    mean_abs_error: float
    is_right: bool
    items_per_s: float | None = None
    best_items_per_s: float | None = None
    peak_fraction: float | None = None
    best_peak_fraction: float | None = None
    best_peer: str | None = None
    ratio_to_best_peer: float | None = None


def rows(slices: list[Slice], errors: dict[tuple[int, str], Errors], precision: str, flops_per_item: int) -> list[Row]:
    """Of one precision; errors: per (batch, engine), of which those that are not right have no slices."""
    found = []
    for (batch, engine), error in errors.items():
        row = Row(precision, batch, engine, error.largest, error.mean, error.are_right(precision))
        found.append(_measured(row, slices, flops_per_item))
    return found


def table(results: Iterable[Row]) -> str:
    lines, batch = [_HEADER], None
    for row in results:
        first = "" if row.batch_size == batch else f"{row.batch_size}"
        precision = "" if row.batch_size == batch else row.precision
        batch = row.batch_size
        lines.append(f"{precision:<4}  {first:>5}  {NAMES[row.engine]:<12}  {_figures(row)}".rstrip())
    return "\n".join(lines)


def as_json(results: Iterable[Row]) -> list[dict]:
    return [asdict(row) for row in results]


def _measured(row: Row, slices: list[Slice], flops_per_item: int) -> Row:
    """The row with its figures, if it has any."""
    batch, engine = row.batch_size, row.engine
    rates = _rates(slices, batch)
    if engine not in rates:
        return row
    shares = [s.peak_fraction(flops_per_item) for s in slices if (s.batch, s.engine) == (batch, engine)]
    peers = [name for name in rates if name != "ours"]
    peer = max(peers, key=lambda name: median(rates[name])) if engine == "ours" and peers else None
    return replace(
        row,
        items_per_s=median(rates[engine]),
        best_items_per_s=max(rates[engine]),
        peak_fraction=median(shares),
        best_peak_fraction=max(shares),
        best_peer=peer,
        ratio_to_best_peer=median(ours / its for ours, its in zip(rates["ours"], rates[peer])) if peer else None,
    )


def _rates(slices: list[Slice], batch: int) -> dict[str, list[float]]:
    """Items per second of each engine at this batch size, round after round."""
    rates: dict[str, list[float]] = {}
    for each in slices:
        if each.batch == batch:
            rates.setdefault(each.engine, []).append(each.items_per_s)
    return rates


def _figures(row: Row) -> str:
    if row.items_per_s is None:
        return f"{'wrong outputs: not measured':>38}  {row.max_abs_error:>9.1e}  {row.mean_abs_error:>10.1e}"
    ratio = "" if row.ratio_to_best_peer is None else f"{row.ratio_to_best_peer:.3f}"
    return (
        f"{row.items_per_s:>8,.0f}  {row.best_items_per_s:>8,.0f}  {row.peak_fraction:>8.1%}  "
        f"{row.best_peak_fraction:>8.1%}  {row.max_abs_error:>9.1e}  {row.mean_abs_error:>10.1e}  {ratio:>9}"
    )
