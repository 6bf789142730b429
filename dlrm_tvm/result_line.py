"""The last line of a script's output: its result as one JSON object, for programs of any language."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping


def result_line(fields: Mapping[str, object]) -> str:
    """JSON has no NaN and no infinity: what is undefined is null."""
    return json.dumps(_defined(fields), allow_nan=False)


def _defined(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _defined(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_defined(each) for each in value]
    return value
