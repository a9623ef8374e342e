"""JSON values into frozen dataclasses and back: the annotation of a field is what its value is checked against.

A field is int (0 or more, unless a `Range` says otherwise), float, str, bool, Any, a dataclass, a TypedDict, an Enum of
texts, or a tuple, dict, Literal or optional of these. `Annotated` adds the constraints of `constraints.py` and, as
plain text, the field's documentation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from device_runtime.records.constraints import Constraint, Inside, Kind, Range, ReadAs, Rounded

__all__ = ["FILE", "Field", "Manner", "check_texts", "fields_of", "kind_of", "read", "shortened", "write"]


@dataclass(frozen=True)
class Manner:
    """How values are held against their description, and how a refusal is worded."""

    unknown_fields_refused: bool = False  # else they are left for later versions
    null_is_absent: bool = False  # else null is a value like others, for optional fields
    quotes_values: bool = True  # an error shows a value of the wrong type; else its type alone: it may be private


FILE = Manner()
"""For files that stonechat itself has written."""


@dataclass(frozen=True)
class Field:
    """One field of a record."""

    name: str
    path: tuple[str, ...]  # where it is in the record's JSON object
    type: Any  # without Annotated, and without None
    optional: bool  # may be None
    required: bool
    default: Any
    init: bool  # is an argument of the record
    constraints: tuple[Constraint, ...]
    kind: str  # what the type is called
    doc: str
    digits: int | None  # of a number, after the point


def read(kind: Any, value: Any, what: str = "it", manner: Manner = FILE) -> Any:
    """`value`, as `json.loads` gives it, as `kind`.

    Args:
        kind: a record, or any type that a field may have.
        what: `value` itself, for the message; fields in it are named by their place.
        manner: what is refused.

    Raises:
        ValueError: `value`, or something in it, is of another type or breaks a constraint; says what and where.
    """
    return _reader(kind)(value, _Place("", what), manner)


def write(record: Any, *, defaults: bool = True) -> dict[str, Any]:
    """`record` as JSON values. A field that is None is left out, and without `defaults` what has its default."""
    written: dict[str, Any] = {}
    kind: Any = type(record)
    for field in fields_of(kind):
        value = getattr(record, field.name)
        if value is None or (not defaults and not field.required and value == field.default):
            continue
        into = written
        for level in field.path[:-1]:
            into = into.setdefault(level, {})
        into[field.path[-1]] = round(value, field.digits) if field.digits is not None else _value(value)
    return written


def _value(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_value(item) for item in value]
    if is_dataclass(value):
        return write(value)
    return value


@cache
def fields_of(record: Any) -> tuple[Field, ...]:
    """The fields of a dataclass or a TypedDict, in their order."""
    hints = get_type_hints(record, include_extras=True)
    if is_typeddict(record):
        return tuple(_field(name, hint, name in record.__required_keys__, None, True) for name, hint in hints.items())
    return tuple(
        _field(
            field.name,
            hints[field.name],
            field.default is MISSING and field.default_factory is MISSING,
            field.default_factory() if field.default_factory is not MISSING else field.default,
            field.init,
        )
        for field in dataclasses.fields(record)
    )


def _field(name: str, hint: Any, required: bool, default: Any, init: bool) -> Field:
    bare, notes = _split(hint)
    inside = [note.name for note in notes if isinstance(note, Inside)]
    return Field(
        name,
        (*inside, name),
        _without_none(bare),
        bare is not _without_none(bare),
        required,
        default,
        init,
        tuple(note for note in notes if isinstance(note, Constraint)),
        next((note.words for note in notes if isinstance(note, Kind)), _name(_without_none(bare))),
        " ".join(note for note in notes if isinstance(note, str)),
        next((note.digits for note in notes if isinstance(note, Rounded)), None),
    )


def _split(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type, optional or not, and what `Annotated` adds to it."""
    notes: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *added = get_args(hint)
        notes = tuple(added)
    inner = _without_none(hint)
    optional = inner is not hint
    if optional and get_origin(inner) is Annotated:
        inner, *added = get_args(inner)
        notes = (*added, *notes)
    inner = next((note.type for note in notes if isinstance(note, ReadAs)), inner)
    return (inner | None if optional else inner), notes


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (UnionType, Union):  # X | None; with a Literal for X, Python makes it a Union
        return next(p for p in get_args(hint) if p is not NoneType)
    return hint


@dataclass(frozen=True)
class _Place:
    """Where a value is, for errors."""

    path: str
    what: str  # the whole, where the path is empty

    def __str__(self) -> str:
        return self.path or self.what

    def field(self, name: str) -> _Place:
        return _Place(f"{self.path}.{name}" if self.path else name, self.what)

    def item(self, key: object) -> _Place:
        return _Place(f"{self.path}[{key!r}]", self.what)


_Reader = Callable[[Any, _Place, Manner], Any]


def _wrong_type(value: Any, place: _Place, manner: Manner, expected: str) -> ValueError:
    if manner.quotes_values:
        return ValueError(f"{place} is {shortened(value)}; expected {expected}")
    if expected == "an object":
        expected = "a JSON object"
    return ValueError(f"{place} must be {expected}, not {kind_of(value)}.")


def _broken(place: _Place, manner: Manner, fault: str) -> ValueError:
    return ValueError(f"{place} {fault}" + ("" if manner.quotes_values else "."))


@cache
def _reader(hint: Any) -> _Reader:
    """What reads values of this type. Made once: a message is read in the network thread."""
    bare, notes = _split(hint)
    inner = _without_none(bare)
    constraints = tuple(note for note in notes if isinstance(note, Constraint))
    if inner is int and not any(isinstance(constraint, Range) for constraint in constraints):
        constraints = (Range(), *constraints)
    expected = next((note.words for note in notes if isinstance(note, Kind)), _name(inner))
    convert = _converter(inner)
    optional = inner is not bare

    def read_value(value: Any, place: _Place, manner: Manner) -> Any:
        if optional and value is None:
            return None
        read = convert(value, place, manner, expected)
        for constraint in constraints:
            if (fault := constraint.fault(read)) is not None:
                raise _broken(place, manner, fault)
        return read

    return read_value


def _converter(kind: Any) -> Callable[[Any, _Place, Manner, str], Any]:
    """What turns a JSON value into `kind`, constraints apart."""
    origin, parameters = get_origin(kind), get_args(kind)
    if is_dataclass(kind) or is_typeddict(kind):
        return _record(kind)
    if origin is tuple:
        return _list(_reader(parameters[0]))
    if origin in (dict, Mapping):
        return _mapping(_reader(parameters[1]))
    if origin is Literal:
        return _choice({choice: choice for choice in parameters})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _choice({member.value: member for member in kind})
    return _scalar(kind)


def _scalar(kind: Any) -> Callable[[Any, _Place, Manner, str], Any]:
    def convert(value: Any, place: _Place, manner: Manner, expected: str) -> Any:
        if kind is Any or type(value) is kind:
            return value
        if kind is float and type(value) is int:
            if value.bit_length() > 64:
                raise _broken(place, manner, "is huge; it must be in the range of a double")
            return float(value)
        raise _wrong_type(value, place, manner, expected)

    return convert


def _choice(choices: Mapping[Any, Any]) -> Callable[[Any, _Place, Manner, str], Any]:
    types = {type(choice) for choice in choices}

    def convert(value: Any, place: _Place, manner: Manner, expected: str) -> Any:
        if type(value) not in types or (manner.quotes_values and value not in choices):
            raise _wrong_type(value, place, manner, expected if manner.quotes_values else _choice_name(types))
        if value not in choices:
            shown = value[:64] if isinstance(value, str) else value
            raise ValueError(f"{place} is {shown!r}; it must be one of {', '.join(map(str, choices))}.")
        return choices[value]

    return convert


def _choice_name(types: set[type]) -> str:
    return "true or false" if bool in types else "a string"


def _list(item: _Reader) -> Callable[[Any, _Place, Manner, str], Any]:
    def convert(value: Any, place: _Place, manner: Manner, expected: str) -> Any:
        if not isinstance(value, list):
            raise _wrong_type(value, place, manner, expected)
        return tuple(item(entry, place.item(i), manner) for i, entry in enumerate(value))

    return convert


def _mapping(item: _Reader) -> Callable[[Any, _Place, Manner, str], Any]:
    def convert(value: Any, place: _Place, manner: Manner, expected: str) -> Any:
        if not isinstance(value, dict):
            raise _wrong_type(value, place, manner, expected)
        return {name: item(entry, place.item(name), manner) for name, entry in value.items()}

    return convert


def _record(kind: Any) -> Callable[[Any, _Place, Manner, str], Any]:
    fields = fields_of(kind)
    hints = get_type_hints(kind, include_extras=True)
    readers = {field.name: _reader(hints[field.name]) for field in fields}
    known = {field.path[0]: None for field in fields}

    def convert(value: Any, place: _Place, manner: Manner, expected: str) -> Any:
        if not isinstance(value, dict):
            raise _wrong_type(value, place, manner, expected)
        if manner.unknown_fields_refused:
            for name in value:
                if name not in known:
                    raise ValueError(_unknown(place, name, list(known)))
        found, missing = {}, []
        for field in fields:
            holder = _holder(value, field, place, manner)
            item = holder.get(field.path[-1], MISSING)
            if item is MISSING or (item is None and manner.null_is_absent):
                if field.required:
                    missing.append(field)
                continue
            read = readers[field.name](item, _at(place, field), manner)
            if field.init:
                found[field.name] = read
        if missing:
            raise ValueError(_lacks(place, missing, manner))
        return kind(**found)

    return convert


def _holder(value: dict[str, Any], field: Field, place: _Place, manner: Manner) -> dict[str, Any]:
    """The object that a field is in."""
    for level in field.path[:-1]:
        inner = value.get(level)
        if inner is None:
            return {}
        if not isinstance(inner, dict):
            raise _wrong_type(inner, place.field(level), manner, "an object")
        value = inner
    return value


def _at(place: _Place, field: Field) -> _Place:
    for level in field.path:
        place = place.field(level)
    return place


def _lacks(place: _Place, missing: list[Field], manner: Manner) -> str:
    if manner.quotes_values:
        return f"{_at(place, missing[0])} is missing"
    return f"{place} lacks {', '.join('.'.join(field.path) for field in missing)}."


def _unknown(place: _Place, name: str, known: list[str]) -> str:
    from difflib import get_close_matches  # which a start does without

    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it may have {', '.join(known)}."
    return f"{place} has no field {name[:64]!r}; {hint}"


def _name(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " or ".join(repr(member.value) for member in kind)
    if origin is tuple:
        return "a list"
    if origin in (dict, Mapping) or is_dataclass(kind) or is_typeddict(kind):
        return "an object"
    return {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}.get(kind, str(kind))


def kind_of(value: Any) -> str:
    """What a JSON value is."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
    return "an object"


def shortened(value: Any) -> str:
    """The value's spelling, cut to what fits a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def check_texts(value: Any, place: str = "", *, is_name: bool = False) -> None:
    """Raise a `ValueError` for text that could not be written out again: JSON can spell half a character, and a zero
    byte, which no path and no C string holds."""
    if isinstance(value, str):
        if "\0" in value and not is_name:
            raise ValueError(f"{place or 'it'} has a zero byte in it; expected text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = value[error.start]
            raise ValueError(f"{place or 'it'} has half a character, {half!r}; expected text") from None
    elif isinstance(value, dict):
        for name, item in value.items():
            check_texts(name, f"a name in {place}" if place else "a name", is_name=True)
            check_texts(item, f"{place}.{name}".lstrip("."))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            check_texts(item, f"{place}[{i}]")
