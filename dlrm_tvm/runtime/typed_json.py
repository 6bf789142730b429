"""JSON as the dataclass that describes it: every field of its annotated type, nothing missing, nothing more."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")
_JSON_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}
_DEEPEST = 64  # a value that can be parsed may still be too deep to be compared or written


def parse(text: str) -> Any:
    """Raises ValueError for what is no JSON, for deep nesting, NaN and infinity, and a key that an object has twice:
    programs differ in which of its values they take."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _inner(outer)]
    if level:
        raise ValueError("nested too deeply")
    return value


def _inner(value: Any) -> Iterator[Any]:
    return iter(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"{_shown(twice)} twice in an object")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def read_as(kind: type[Kind], value: Any, name: str) -> Kind:
    """value, as json.loads gives it, as a dataclass or whatever else an annotation says.

    Annotations may be bool, int, float, str, None, Any, unions, tuples (JSON's lists) and dictionaries of these, and
    dataclasses. name: of the value, for messages. Raises ValueError that says which value is what, and what was wanted.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _read_dataclass(kind, value, name)
    if origin in (Union, UnionType):
        return _read_union(inner, value, name)
    if origin is tuple and isinstance(value, list):
        kinds = (inner[0],) * len(value) if inner[1:] == (...,) else inner
        if len(kinds) != len(value):
            raise ValueError(f"{name} has {len(value)} values, {len(kinds)} were wanted")
        return tuple(read_as(each, one, f"{name}[{at}]") for at, (each, one) in enumerate(zip(kinds, value)))
    if origin is dict and isinstance(value, dict):
        return {key: read_as(inner[1], one, f"{name}.{key}") for key, one in value.items()}
    # Python's bool is an int, JSON's is none; a whole number serves as a number. 1e999 is infinite, 10**400 too large.
    if type(value) is kind or (kind is float and type(value) is int):
        if kind is float and not abs(value) <= sys.float_info.max:
            raise ValueError(f"{name} is {_shown(value)}, a finite number was wanted")
        return value
    raise ValueError(f"{name} is {_shown(value)}, {_wanted(kind)} was wanted")


def _read_dataclass(kind: type[Kind], value: Any, name: str) -> Kind:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_shown(value)}, an object was wanted")
    hints = _hints(kind)
    known = {field.name: field for field in fields(kind)}
    if unknown := value.keys() - known.keys():
        raise ValueError(f"{name} has an unknown field {min(unknown)}")
    for field in known.values():
        if field.name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name} lacks {field.name}")
    return kind(**{key: read_as(hints[key], one, f"{name}.{key}") for key, one in value.items()})


def _read_union(kinds: tuple, value: Any, name: str) -> Any:
    errors = []
    for kind in kinds:
        try:
            return read_as(kind, value, name)
        except ValueError as error:
            errors.append(error)
    raise next((error for kind, error in zip(kinds, errors) if kind is not NoneType))


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _wanted(kind: Any) -> str:
    return _JSON_NAMES.get(kind) or {tuple: "a list", dict: "an object"}.get(get_origin(kind) or kind, "something else")


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
