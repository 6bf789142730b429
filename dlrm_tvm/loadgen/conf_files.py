"""LoadGen's files of settings, read before LoadGen reads them: it takes what is wrong in silence.

    # a comment
    MODEL.SCENARIO.KEY = NUMBER         one a line, spaces around the sign; MODEL and SCENARIO may be *

LoadGen looks a key up as MODEL.SCENARIO, MODEL.*, *.SCENARIO, then *.*; keys that it does not know mean nothing to it,
a minus sign or a number beyond 64 bits becomes a huge one, and 2.5 milliseconds become 2
(loadgen/test_settings_internal.cc). Lines for other models and scenarios are not looked at: mlperf.conf is for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from ..errors import UserError

_LONGEST_FILE = 1 << 20
_DAY_MS = 86_400_000
_MOST_SAMPLES = 16_000_000
_ANY = (1 << 64) - 1
_WANTED = "lines such as *.Server.target_qps = 100 were wanted"

# The greatest whole number of each key; None for those that may have a fraction.
_KEYS: dict[str, int | None] = {
    **dict.fromkeys(("min_duration", "max_duration", "target_latency"), _DAY_MS),
    **dict.fromkeys(("min_query_count", "max_query_count", "performance_sample_count_override"), _MOST_SAMPLES),
    **dict.fromkeys(("samples_per_query", "max_async_queries", "coalesce_queries"), _MOST_SAMPLES),
    **dict.fromkeys(("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed", "accuracy_log_rng_seed"), _ANY),
    **dict.fromkeys(("test05_qsl_rng_seed", "test05_sample_index_rng_seed", "test05_schedule_rng_seed"), _ANY),
    **dict.fromkeys(("performance_issue_unique", "performance_issue_same", "print_timestamps", "test05"), 1),
    **dict.fromkeys(("sample_concatenate_permutation", "use_token_latencies", "infer_token_latencies"), 1),
    **dict.fromkeys(("performance_issue_same_index", "accuracy_log_sampling_target", "mode", "target_duration"), _ANY),
    **dict.fromkeys(("accuracy_sample_count_override", "ttft_latency", "tpot_latency"), _ANY),
    **dict.fromkeys(("target_qps", "target_latency_percentile"), None),
    **dict.fromkeys(("accuracy_log_probability", "token_latency_scaling_factor"), None),
}


def check_conf_file(path: Path, model: str, scenario: str) -> None:
    """Raises UserError, in one line, where LoadGen would read something else than what is written, or nothing that is
    for this model and scenario."""
    given: dict[str, tuple[int, str]] = {}
    for number, name, key, value in _settings(path, model, scenario):
        place = f"{path}, line {number}: {name}"
        if key not in _KEYS:
            close = get_close_matches(key, _KEYS, 1)
            raise UserError(f"{place}: LoadGen knows no {key}." + (f" Is {close[0]} meant?" if close else ""))
        _check_value(place, value, _KEYS[key])
        before, other = given.setdefault(name, (number, value))
        if other != value:
            raise UserError(f"{place} is {value}, line {before} has {other}. Leave one.")
    if not given:
        raise UserError(f"{path}: no setting in it is for {model} and {scenario}; {_WANTED}.")


def _settings(path: Path, model: str, scenario: str) -> Iterator[tuple[int, str, str, str]]:
    """(line, whole name, key, value) of those for this model and scenario."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        of, _, rest = words[0].rpartition(".")
        of_model, _, of_scenario = of.rpartition(".")
        if len(words) != 3 or words[1] != "=" or not (of_model and of_scenario and rest):
            raise UserError(f"{path}, line {number}: {line.strip()[:80]!r} is no setting; {_WANTED}.")
        if of_model in ("*", model) and of_scenario in ("*", scenario):
            yield number, words[0], rest, words[2]


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {_WANTED}.") from None
    if len(data) > _LONGEST_FILE or b"\0" in data:
        raise UserError(f"{path}: no text, or more than 1 MiB of it; {_WANTED}.")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no text at byte {error.start}; {_WANTED}.") from None


def _check_value(place: str, value: str, most: int | None) -> None:
    """most: None for numbers with fractions."""
    is_whole = value.isascii() and value.isdigit()
    if most is not None and not (is_whole and len(value) <= 20 and int(value) <= most):
        raise UserError(f"{place} is {value[:80]!r}; a whole number from 0 to {most:,} was wanted.")
    if most is None:
        try:
            fits = value.isascii() and 0 <= float(value) < float("inf")
        except ValueError:
            fits = False
        if not fits:
            raise UserError(f"{place} is {value[:80]!r}; a number, 0 or more, was wanted.")
