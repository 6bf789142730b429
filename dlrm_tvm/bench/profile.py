"""The time of each part of a call beside its limit on this hardware: `multi_instance.py --profile`.

    least time of a part = max(FLOPs / peak, bytes / stream)        its share of the roofline = least time / its time

peak: multiply-adds of these very cores, with the instruction of the part's own precision. stream: the rate at which the
instance's cores read weights, one thread's times the threads; also for table rows, which come from further away and in
no order: a small share there is latency. Both are the larger of two measurements, before and after. FLOPs and bytes
are the manifest's (compiler/roofline.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..console import ms_text
from ..errors import UserError

if TYPE_CHECKING:
    from ..instances.profiling import ProfiledCalls
    from ..runtime.manifest import Manifest, Part

_DISTURBED = 1.05  # no part is faster than its limit


@dataclass(frozen=True)
class PartTime:
    """One part's time per item, the mean over instances, and the limits of one instance."""

    part: Part
    ns_per_item: float
    peak_gflops: float
    stream_gbps: float

    @property
    def gflops(self) -> float:
        return self.part.flops / self.ns_per_item

    @property
    def gbps(self) -> float:
        return self.part.nbytes / self.ns_per_item

    @property
    def limits(self) -> dict[str, float]:
        """The share of each limit; the larger one is its share of the roofline."""
        return {"peak": self.gflops / (self.peak_gflops * self.part.peak_share), "stream": self.gbps / self.stream_gbps}

    @property
    def bound(self) -> str:
        return max(self.limits, key=self.limits.get)


@dataclass(frozen=True)
class Profile:
    """A mean call of the instances. calls: with stamps, of all instances; call_ns: one of those; main_ns: one without
    stamps, in turn with them."""

    parts: tuple[PartTime, ...]
    batch_size: int
    instances: int
    calls: int
    call_ns: float
    main_ns: float

    @property
    def parts_ns(self) -> float:
        """Of a call, all parts together."""
        return sum(each.ns_per_item for each in self.parts) * self.batch_size

    @property
    def ratio(self) -> float:
        return self.call_ns / self.main_ns

    def share(self, each: PartTime) -> float:
        """Of the call's time."""
        return each.ns_per_item * self.batch_size / self.call_ns


def check_profile(manifest: Manifest, library: str) -> None:
    """Raises UserError for a library without time stamps."""
    if manifest.profile:
        return
    if manifest.is_plain:
        raise UserError(
            f"{library} has no kernels of ours to time: it was compiled with --tuning-log-file none. "
            "Compile it without that and with --profile."
        )
    raise UserError(f"{library} has no time stamps in it. Type: python {manifest.command} --profile")


def summarize(
    manifest: Manifest,
    calls: Sequence[ProfiledCalls],
    *,
    peak_gflops: float,
    stream_gbps: float,
    indices_per_item: float | None = None,
) -> Profile:
    """The mean over instances; peak_gflops, stream_gbps: of one instance, all of its threads; indices_per_item: in bags
    of all tables together, None for one row per table."""
    parts_ns = np.mean([each.parts_ns for each in calls], axis=0) / manifest.batch_size
    parts = [_with_bags(part, indices_per_item) for part in manifest.profile]
    return Profile(
        parts=tuple(
            PartTime(part, float(ns), peak_gflops, stream_gbps) for part, ns in zip(parts, parts_ns, strict=True)
        ),
        batch_size=manifest.batch_size,
        instances=len(calls),
        calls=sum(each.calls for each in calls),
        call_ns=float(np.mean([each.call_ns for each in calls])),
        main_ns=float(np.mean([each.main_ns for each in calls])),
    )


def _with_bags(part: Part, indices: float | None) -> Part:
    """What a part takes with so many indices per item."""
    if indices is None or part.bag_nbytes is None:
        return part
    what = "bags pooled" if part.index_nbytes else part.what
    return replace(part, what=what, nbytes=part.bag_nbytes + indices * part.index_nbytes)


def profile_lines(profile: Profile | None) -> list[str]:
    """The table for people."""
    if profile is None:
        return []
    first = profile.parts[0]
    outside_ns = profile.call_ns - profile.parts_ns
    flops = sum(each.part.flops for each in profile.parts)
    whole = profile.parts_ns / profile.batch_size
    instances = f", mean of {profile.instances} instances" if profile.instances > 1 else ""
    note = ""
    if profile.batch_size == 1:
        note = " Weights that meet inputs of zero are skipped, but counted."
    elif any(each.limits[each.bound] > _DISTURBED for each in profile.parts):
        note = " A part beyond its limit: something else ran while the limit was measured. Repeat."
    return [
        "",
        f"  {'part':<14}{'':<14}{'µs/item':>9}{'of call':>9}{'GFLOP/s':>9}{'GB/s':>8}  of its limit",
        *(_row(profile, each) for each in profile.parts),
        f"  {'all parts':<28}{whole / 1e3:>9.3f}{profile.parts_ns / profile.call_ns:>9.1%}{flops / whole:>9.1f}",
        f"  {'outside':<28}{outside_ns / profile.batch_size / 1e3:>9.3f}{outside_ns / profile.call_ns:>9.1%}"
        "   the call itself, starting threads, waiting for all",
        f"  A call with time stamps took {ms_text(profile.call_ns / 1e6)} ms, one without "
        f"{ms_text(profile.main_ns / 1e6)} ms in turn with it: {profile.ratio:.3f} "
        f"(the faster half of {profile.calls:,} calls each{instances}).",
        f"  Limits: {first.peak_gflops:,.1f} GFLOP/s (peak), {first.stream_gbps:,.1f} GB/s (stream: reading weights "
        f"over and over).{note}",
    ]


def profile_json(profile: Profile | None) -> dict[str, object]:
    """Keys of the last line; none without a profile."""
    if profile is None:
        return {}
    return {
        "profile": [
            {
                "part": each.part.name,
                "what": each.part.what,
                "us_per_item": each.ns_per_item / 1e3,
                "call_fraction": profile.share(each),
                "flops_per_item": each.part.flops,
                "bytes_per_item": each.part.nbytes,
                "gflops": each.gflops,
                "gbps": each.gbps,
                "peak_fraction": each.limits["peak"],
                "stream_fraction": each.limits["stream"],
                "bound": each.bound,
                "roofline_fraction": each.limits[each.bound],
            }
            for each in profile.parts
        ],
        "profile_call": {
            "calls": profile.calls,
            "call_us": profile.call_ns / 1e3,
            "main_call_us": profile.main_ns / 1e3,
            "ratio": profile.ratio,
            "parts_us": profile.parts_ns / 1e3,
            "outside_us": (profile.call_ns - profile.parts_ns) / 1e3,
            "peak_gflops": profile.parts[0].peak_gflops,
            "stream_gbps": profile.parts[0].stream_gbps,
        },
    }


def _row(profile: Profile, each: PartTime) -> str:
    gflops = f"{each.gflops:.1f}" if each.part.flops else "-"
    limit = f"{each.limits[each.bound]:.3f} {each.bound}" if each.limits[each.bound] else "-"
    return (
        f"  {each.part.name:<14}{each.part.what:<14}{each.ns_per_item / 1e3:>9.3f}{profile.share(each):>9.1%}"
        f"{gflops:>9}{each.gbps:>8.1f}  {limit}"
    )
