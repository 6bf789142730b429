"""Slices -> one row per batch size and engine -> table and JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import median

from dlrm_tvm.peers import OURS, TITLES

NAMES = {OURS: "ours", **TITLES}
_HEADER = (
    f"{'batch':>5}  {'engine':<12}  {'items/s':>8}  {'best':>8}  {'of peak':>8}  {'best':>8}  "
    f"{'max error':>9}  {'ours/peer':>9}"
)


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
    """Medians over the rounds, and the best round. Rates are None for an engine whose outputs were wrong.

    ratio_to_best_peer: of ours to the peer with the larger median, the median over rounds of both turns in one round.
    """

    batch_size: int
    engine: str
    max_abs_error: float
    items_per_s: float | None = None
    best_items_per_s: float | None = None
    peak_fraction: float | None = None
    best_peak_fraction: float | None = None
    best_peer: str | None = None
    ratio_to_best_peer: float | None = None


def rows(slices: list[Slice], errors: dict[tuple[int, str], float], flops_per_item: int) -> list[Row]:
    """errors: the largest absolute error per (batch, engine); those without slices were wrong."""
    return [_row(slices, batch, engine, error, flops_per_item) for (batch, engine), error in errors.items()]


def table(results: Iterable[Row]) -> str:
    lines, batch = [_HEADER], None
    for row in results:
        first = "" if row.batch_size == batch else f"{row.batch_size}"
        batch = row.batch_size
        lines.append(f"{first:>5}  {NAMES[row.engine]:<12}  {_figures(row)}".rstrip())
    return "\n".join(lines)


def as_json(results: Iterable[Row]) -> list[dict]:
    return [asdict(row) for row in results]


def _row(slices: list[Slice], batch: int, engine: str, error: float, flops_per_item: int) -> Row:
    rates = _rates(slices, batch)
    if engine not in rates:
        return Row(batch, engine, error)
    shares = [s.peak_fraction(flops_per_item) for s in slices if (s.batch, s.engine) == (batch, engine)]
    peers = [name for name in rates if name != "ours"]
    peer = max(peers, key=lambda name: median(rates[name])) if engine == "ours" and peers else None
    return Row(
        batch_size=batch,
        engine=engine,
        max_abs_error=error,
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
        return f"{'wrong outputs: not measured':>38}  {row.max_abs_error:>9.1e}"
    ratio = "" if row.ratio_to_best_peer is None else f"{row.ratio_to_best_peer:.3f}"
    return (
        f"{row.items_per_s:>8,.0f}  {row.best_items_per_s:>8,.0f}  {row.peak_fraction:>8.1%}  "
        f"{row.best_peak_fraction:>8.1%}  {row.max_abs_error:>9.1e}  {ratio:>9}"
    )
