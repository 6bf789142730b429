"""A request to LoadGen, and its TestSettings.

    LoadGen's own mlperf.conf for the model  <  v1's latency bound, 60 s  <  --mlperf-conf  <  --user-conf  <  flags

The model is dlrm, or dlrm-v2 where it has cross layers. LoadGen's mlperf.conf gives both 60 ms today; MLPerf Inference
v0.7 to v3.0, which had dlrm, gave it 30 ms.

Early stopping: with t queries beyond the bound of a percentile p, LoadGen wants n of them in all so that p holds with
99 % confidence; for t = 0 that is p^n <= 0.01, 459 queries for p99 (loadgen/early_stopping.cc).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

# What is typed -> LoadGen's name.
SCENARIOS = {each.lower(): each for each in ("Offline", "Server", "SingleStream", "MultiStream")}

V1, V2 = "dlrm", "dlrm-v2"  # in the files of settings
_OF_KIND = {"cross": V2}
_V1_LATENCY_MS = 30
_UNSURE = 0.01  # early stopping's
_DURATION_S = 60
_OWN_CONF, _FILE = 0, 2  # of FromConfig; 1 would read LoadGen's own again, over what was set before
_MOST_SAMPLES = 16_000_000  # in one test; the queue keeps them all
_SLACK = 1.1  # LoadGen's own: Offline it issues so much more than the shortest duration needs at the expected rate
_DAY_S = 86_400


def model_of(interaction: str) -> str:
    """MLPerf's name of the model that has this kind of interaction."""
    return _OF_KIND.get(interaction, V1)


@dataclass(frozen=True)
class LoadgenRequest:
    """One test. model: V1 or V2; mode: "performance" or "accuracy"; conf_files: later ones win. duration_s, target_qps:
    None where the files or the defaults decide; least_queries: more than those, where they are too few."""

    scenario: str
    mode: str
    log_dir: str
    model: str = V1
    conf_files: tuple[str, ...] = ()
    duration_s: float | None = None
    target_qps: float | None = None
    least_queries: int = 1

    @property
    def is_accuracy(self) -> bool:
        return self.mode == "accuracy"

    @property
    def is_server(self) -> bool:
        return self.scenario == "server"

    @property
    def is_offline(self) -> bool:
        return self.scenario == "offline"


@dataclass(frozen=True)
class EffectiveSettings:
    """The settings in force. target_qps: None where none was given; latency_ms: bound of the Server scenario;
    min_queries: samples issued at least, whatever duration_s is.
    """

    duration_s: float
    target_qps: float | None
    latency_ms: float
    latency_percentile: float
    min_queries: int = 1

    @property
    def least_s(self) -> float:
        """What a test takes at least, as far as the rate is known."""
        return max(self.duration_s, self.min_queries / self.target_qps if self.target_qps else 0)

    @property
    def least_text(self) -> str:
        """The same for people."""
        if self.least_s > self.duration_s:
            hours = f" ({self.least_s / 3600:.1f} hours)" if self.least_s > 3600 else ""
            why = f"{self.min_queries:,} samples at {self.target_qps:,.4g} per second"
            return f"{self.least_s:,.0f} s at least{hours}: {why}"
        count = f" and {self.min_queries:,} samples" if self.min_queries > 1 and not self.target_qps else ""
        return f"{self.duration_s:g} s{count} at least"


def test_settings(loadgen: Any, request: LoadgenRequest, samples: int) -> Any:
    """mlperf_loadgen.TestSettings of the request, whose files were checked, for a library of so many samples. Raises
    UserError for a file that LoadGen cannot read, and for a test that never ends."""
    settings = loadgen.TestSettings()
    scenario = SCENARIOS[request.scenario]
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.FromConfig("", request.model, scenario, _OWN_CONF)
    settings.server_target_qps = settings.offline_expected_qps = 0.0  # instead of LoadGen's default of 1
    settings.single_stream_expected_latency_ns = settings.multi_stream_expected_latency_ns = 0
    if request.model == V1:
        settings.server_target_latency_ns = _V1_LATENCY_MS * 10**6
    settings.min_duration_ms = _DURATION_S * 1000
    for path in request.conf_files:
        if settings.FromConfig(path, request.model, scenario, _FILE) != 0:
            raise UserError(f"{path}: LoadGen cannot read it; lines such as *.Server.target_qps = 100 were wanted.")
    modes = {"performance": loadgen.TestMode.PerformanceOnly, "accuracy": loadgen.TestMode.AccuracyOnly}
    settings.mode = modes[request.mode]
    if request.duration_s is not None:
        settings.min_duration_ms = round(request.duration_s * 1000)
    if request.target_qps is not None:
        settings.server_target_qps = settings.offline_expected_qps = request.target_qps
        settings.single_stream_expected_latency_ns = _gap_ns(1, request.target_qps)
        per_query = settings.multi_stream_samples_per_query
        settings.multi_stream_expected_latency_ns = _gap_ns(per_query, request.target_qps)
    wanted = settings.performance_sample_count_override or samples
    settings.performance_sample_count_override = min(wanted, samples)
    _check(settings, request)
    if request.is_server and not request.is_accuracy:
        fewest = math.ceil(math.log(_UNSURE) / math.log(settings.server_target_latency_percentile))
        settings.min_query_count = max(settings.min_query_count, fewest)
    _check_length(settings, request)
    settings.min_query_count = max(settings.min_query_count, request.least_queries)
    return settings


def _gap_ns(samples: int, qps: float) -> int:
    """In 64 bits, which is refused later where it is long."""
    return round(min(samples * 1e9 / qps, 1 << 62))


def _rate(settings: Any, request: LoadgenRequest) -> float:
    """Samples per second that are issued or expected; 0 where nothing says how many."""
    if request.is_server:
        return settings.server_target_qps
    if request.is_offline:
        return settings.offline_expected_qps
    stream = "multi" if request.scenario == "multistream" else "single"
    expected_ns = getattr(settings, f"{stream}_stream_expected_latency_ns")
    return 1e9 * _samples_per_query(settings, request) / expected_ns if expected_ns else 0.0


def _samples_per_query(settings: Any, request: LoadgenRequest) -> int:
    return settings.multi_stream_samples_per_query if request.scenario == "multistream" else 1


def _check(settings: Any, request: LoadgenRequest) -> None:
    """LoadGen checks nothing: a rate of NaN never ends."""
    qps = _rate(settings, request)
    where = f" ({', '.join(request.conf_files)})" if request.conf_files else ""
    if not 0 <= qps < float("inf"):
        raise UserError(f"a target_qps of {qps:g}{where}: samples per second, more than 0, were wanted.")
    if not 0 < settings.server_target_latency_percentile < 1 or not settings.server_target_latency_ns:
        raise UserError(f"a latency bound of 0, or no percentile from 0 to 100{where}: nothing would ever be valid.")


def _check_length(settings: Any, request: LoadgenRequest) -> None:
    """With all queries that early stopping wants. A million a second would fill the memory."""
    qps = _rate(settings, request)
    if not qps or request.is_accuracy:
        return
    queries = settings.min_query_count * _samples_per_query(settings, request)
    by_time = settings.min_duration_ms / 1000 * qps * (1 if request.is_server else _SLACK)
    if why := too_long(max(queries, by_time), qps):
        faster, fewer = "a higher --target-qps", "a lower min_query_count in the file of settings"
        if by_time > queries:
            advice = "a lower --target-qps or a shorter --duration"
        elif queries > _MOST_SAMPLES:  # at any rate
            advice = fewer
        else:
            advice = f"{faster}, or {fewer}" if request.conf_files else faster
        raise UserError(f"{why}. Give {advice}.")


def too_long(samples: float, qps: float) -> str | None:
    """Why no test may have so many samples at that rate; None where it may."""
    if samples > _MOST_SAMPLES:
        return f"{samples:,.0f} samples are more than the {_MOST_SAMPLES:,} of one test"
    if samples > _DAY_S * qps:
        return f"{samples:,.0f} samples, at {qps:g} per second, take more than a day"
    return None


def effective(settings: Any, request: LoadgenRequest) -> EffectiveSettings:
    return EffectiveSettings(
        duration_s=settings.min_duration_ms / 1000,
        target_qps=_rate(settings, request) or None,
        latency_ms=settings.server_target_latency_ns / 1e6,
        latency_percentile=settings.server_target_latency_percentile,
        min_queries=settings.min_query_count * _samples_per_query(settings, request),
    )
