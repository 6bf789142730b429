"""Results as programs in stricter languages than Python read them."""

from __future__ import annotations

import json


def read_result(output: str) -> dict:
    """The JSON object of a script's last line. Raises ValueError for NaN and Infinity, which are no JSON."""
    return json.loads(output.splitlines()[-1], parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
