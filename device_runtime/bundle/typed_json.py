"""Parsed JSON into frozen dataclasses: every value is checked against the annotation of its field."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["read", "shortened"]


def read(kind: Any, value: Any, where: str = "") -> Any:
    """`value`, as `json.loads` gives it, as `kind`.

    Args:
        kind: a dataclass, int (which here means 0 or more), str, Any, or a tuple, dict, Literal or optional of these.
        where: the place of `value`, for the message.

    Raises:
        ValueError: `value`, or something in it, is of another type; says what and where.
    """
    origin, parameters = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, dict):
            return kind(**_fields(kind, value, where))
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(read(parameters[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    elif origin is dict:
        if isinstance(value, dict):
            return {name: read(parameters[1], item, f"{where}[{name!r}]") for name, item in value.items()}
    elif origin in (UnionType, Union):  # X | None; with a Literal for X, Python makes it a Union
        return None if value is None else read(next(p for p in parameters if p is not NoneType), value, where)
    elif origin is Literal:
        if isinstance(value, str) and value in parameters:
            return value
    elif kind is Any or (type(value) is kind and not (kind is int and value < 0)):
        return value
    raise ValueError(f"{where or 'it'} is {shortened(value)}; expected {_name(kind)}")


def _fields(kind: Any, value: dict[str, Any], where: str) -> dict[str, Any]:
    """What `value` has for the fields of a dataclass; names beyond those are left for later versions."""
    hints = get_type_hints(kind)
    known = {}
    for field in fields(kind):
        place = f"{where}.{field.name}".lstrip(".")
        if field.name in value:
            known[field.name] = read(hints[field.name], value[field.name], place)
        elif field.default is MISSING:
            raise ValueError(f"{place} is missing")
    return known


def _name(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if origin is tuple:
        return "a list"
    if origin is dict or is_dataclass(kind):
        return "an object"
    return {int: "a whole number of at least 0", str: "text"}.get(kind, str(kind))


def shortened(value: Any) -> str:
    """The value's spelling, cut to what fits a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
