"""YAML files checked against a table: every fault at once, each with its place.

A table says which fields a mapping has and how each is read; the result is frozen dataclasses. The walk is over
PyYAML's node tree (`compose`), which keeps line and column and constructs no objects.

    POINT = Record(Point, {"x": Field(Integer()), "label": Field(Text(), default="")})
    point = load("point.yaml", POINT)

A fault reads `file:line:column: where: what was found; what was expected`, with the nearest valid spelling.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, NoReturn, Protocol, TypeGuard, TypeVar

import yaml

from device_runtime.errors import ConfigurationError
from device_runtime.fleet.yaml_nodes import check_size, nodes_of, quote_hint
from device_runtime.records.printable import counted

__all__ = [
    "REQUIRED", "Boolean", "Choice", "Field", "Integer", "ListOf", "MapOf", "Number", "OneOrMore", "Plain", "Reader",
    "Record", "Reference", "Report", "Text", "load", "loads", "nearest",
]  # fmt: skip

MAX_FILE_BYTES = 1_048_576
MAX_FAULTS = 200  # that are reported; a file with more has one cause
MAX_HINTS = 30  # of these, how many look for the nearest spelling, which takes time with the number of names
_BROKEN = re.compile("[\0\ud800-\udfff]")  # text that no file or topic can hold

T = TypeVar("T")
Path_ = tuple[str | int, ...]  # ("devices", "greenhouse-pi", "model")


class _Fault(Exception):
    """A value that cannot be read; its fault is in the report already."""


@dataclass
class Report:
    """The faults of one file, and the places of all its values."""

    file: str
    faults: list[tuple[int, int, str]] = field(default_factory=list)  # line, column, text
    _places: dict[Path_, yaml.Node] = field(default_factory=dict)
    _names: dict[str, Mapping[str, None]] = field(default_factory=dict)
    _hints: int = 0

    def names(self, section: str) -> Mapping[str, None]:
        """What the top-level field `section` names: the keys of a mapping, or `name` in each entry of a list."""
        if section not in self._names:
            self._names[section] = dict.fromkeys(self._find_names(section))
        return self._names[section]

    def nearest(self, word: str, valid: Collection[str], what: str) -> str:
        """A hint, as `nearest` gives it, for the first faults of the file."""
        self._hints += 1
        return nearest(word, list(valid), what) if self._hints <= MAX_HINTS else f"{what} others"

    def _find_names(self, section: str) -> list[str]:
        root = self._places[()]
        node = next((v for k, v in root.value if k.value == section), None) if _is_map(root) else None
        if _is_map(node):
            return [k.value for k, _ in node.value if isinstance(k, yaml.ScalarNode)]
        entries = node.value if isinstance(node, yaml.SequenceNode) else []
        return [v.value for e in entries if _is_map(e) for k, v in e.value if k.value == "name" and _is_scalar(v)]

    def add(self, node: yaml.Node, path: Path_, text: str) -> None:
        """Note a fault at `node`."""
        where = ".".join(str(p) if isinstance(p, str) else f"[{p}]" for p in path).replace(".[", "[")
        mark = node.start_mark
        if len(self.faults) <= MAX_FAULTS:
            self.faults.append((mark.line + 1, mark.column + 1, f"{where}: {text}" if where else text))

    def add_at(self, path: Path_, text: str) -> None:
        """Note a fault at the value that was read at `path`: for checks across fields."""
        self.add(self._places[path], path, text)

    def fail(self, node: yaml.Node, path: Path_, text: str) -> NoReturn:
        """Note a fault and leave the reader."""
        self.add(node, path, text)
        raise _Fault

    def read(self, reader: Reader[T], node: yaml.Node, path: Path_) -> T:
        """Read `node` and remember its place."""
        self._places[path] = node
        return reader.read(node, path, self)

    def raise_if_any(self) -> None:
        """Raise all faults as one ConfigurationError, in the order of the file."""
        if self.faults:
            lines = [f"{self.file}:{line}:{column}: {text}" for line, column, text in sorted(set(self.faults))]
            many = counted(len(lines), "fault")
            many = many if len(self.faults) <= MAX_FAULTS else f"more than {MAX_FAULTS} faults"
            raise ConfigurationError("\n".join([f"{self.file} has {many}:", *lines]))


class Reader(Protocol[T]):  # type: ignore[misc]  # T is only returned, but Protocol[T] is what the readers share
    """Reads one node. On a fault it calls `report.fail`."""

    def read(self, node: yaml.Node, path: Path_, report: Report) -> T:
        """The value of `node`."""
        ...


def nearest(word: str, valid: Sequence[str], what: str = "valid") -> str:
    """A hint: the nearest of `valid`, or all of them."""
    near = get_close_matches(word, valid, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{what}: {', '.join(valid) or 'none'}"


@dataclass(frozen=True)
class Text:
    """A string. `check` may raise ConfigurationError, or return a value in its place."""

    expected: str = "text"
    pattern: str | None = None  # must match all of it
    check: Callable[[str], str] | None = None

    def read(self, node: yaml.Node, path: Path_, report: Report) -> str:
        """The text as written; numbers and dates are taken by their spelling."""
        text = _scalar(node, path, report, self.expected)
        if not text.strip():
            report.fail(node, path, f"found nothing; expected {self.expected}")
        if self.pattern and not re.fullmatch(self.pattern, text):
            report.fail(node, path, f"found {text!r}; expected {self.expected}")
        if self.check:
            try:
                return self.check(text)
            except ConfigurationError as e:
                report.fail(node, path, str(e))
        return text


@dataclass(frozen=True)
class Choice:
    """One word of several."""

    words: tuple[str, ...]

    def read(self, node: yaml.Node, path: Path_, report: Report) -> str:
        """The word."""
        expected = f"one of {', '.join(self.words)}"
        text = _scalar(node, path, report, expected)
        if text not in self.words:
            report.fail(node, path, f"found {text!r}; {nearest(text, self.words, 'expected one of')}")
        return text


@dataclass(frozen=True)
class Number:
    """A number within bounds."""

    low: float
    high: float
    unit: str = ""

    def read(self, node: yaml.Node, path: Path_, report: Report) -> float:
        """The number."""
        expected = f"a number from {self.low:g} to {self.high:g}{self.unit and ' ' + self.unit}"
        text = _scalar(node, path, report, expected)
        if not re.fullmatch(r"[-+]?(\d{1,20}(\.\d*)?|\.\d+)([eE][-+]?\d{1,3})?", text, re.ASCII):
            report.fail(node, path, f"found {text!r}; expected {expected}")
        if not self.low <= float(text) <= self.high:
            report.fail(node, path, f"found {text}; expected {expected}")
        return float(text)


@dataclass(frozen=True)
class Integer:
    """A whole number within bounds."""

    low: int = 0
    high: int = 2**63 - 1
    unit: str = ""

    def read(self, node: yaml.Node, path: Path_, report: Report) -> int:
        """The number."""
        expected = f"a whole number from {self.low} to {self.high}{self.unit and ' ' + self.unit}"
        text = _scalar(node, path, report, expected)
        if not re.fullmatch(r"[-+]?\d{1,19}", text, re.ASCII) or not self.low <= int(text) <= self.high:
            report.fail(node, path, f"found {text!r}; expected {expected}")
        return int(text)


@dataclass(frozen=True)
class Boolean:
    """true or false."""

    def read(self, node: yaml.Node, path: Path_, report: Report) -> bool:
        """The truth value."""
        text = _scalar(node, path, report, "true or false")
        if text not in ("true", "false"):
            report.fail(node, path, f"found {text!r}; expected true or false")
        return text == "true"


@dataclass(frozen=True)
class Reference:
    """The name of something that a top-level field of the same file defines."""

    what: str  # link
    section: str  # links

    def read(self, node: yaml.Node, path: Path_, report: Report) -> str:
        """The name."""
        name = _scalar(node, path, report, f"the name of a {self.what}")
        names = report.names(self.section)
        if name not in names:
            hint = report.nearest(name, names, f"the {self.section} are")
            report.fail(node, path, f"there is no {self.what} {name!r}; {hint}")
        return name


@dataclass(frozen=True)
class Plain:
    """Whatever YAML holds here, as JSON knows it. `check` may raise ConfigurationError, or return a value."""

    expected: str
    check: Callable[[Any], Any] = lambda value: value

    def read(self, node: yaml.Node, path: Path_, report: Report) -> Any:
        """The value: mappings with text as names, lists, text, numbers, truth values and null."""
        _report_repeats(node, path, report)
        loader = yaml.SafeLoader("")
        try:
            value = loader.construct_document(node)
            json.dumps(value, allow_nan=False)
            return self.check(value)
        except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            report.fail(node, path, reason if isinstance(error, ConfigurationError) else f"expected {self.expected}")


@dataclass(frozen=True)
class ListOf(Generic[T]):
    """A list whose items are all read the same way."""

    item: Reader[T]
    expected: str = "a list"
    unique: str = ""  # a field in which no two items may agree

    def read(self, node: yaml.Node, path: Path_, report: Report) -> tuple[T, ...]:
        """The items; every faulty one is reported."""
        if not isinstance(node, yaml.SequenceNode):
            report.fail(node, path, f"found {_kind(node)}; expected {self.expected}")
        seen: set[str] = set()
        for place, child in enumerate(node.value):
            for key, value in child.value if _is_map(child) else ():
                if self.unique and key.value == self.unique and _is_scalar(value):
                    if value.value in seen:
                        report.add(value, (*path, place, self.unique), f"{value.value!r} is taken by an earlier entry")
                    seen.add(value.value)
        return tuple(_read_all((report, self.item, child, (*path, i)) for i, child in enumerate(node.value)))


@dataclass(frozen=True)
class OneOrMore(Generic[T]):
    """A single item, or a list of at least one."""

    item: Reader[T]

    def read(self, node: yaml.Node, path: Path_, report: Report) -> tuple[T, ...]:
        """The items."""
        if not isinstance(node, yaml.SequenceNode):
            return (self.item.read(node, path, report),)
        items = ListOf(self.item).read(node, path, report)
        if not items:
            report.fail(node, path, "found an empty list; expected at least one entry")
        if len(set(items)) < len(items):
            report.fail(node, path, "names the same entry twice")
        return items


@dataclass(frozen=True)
class MapOf(Generic[T]):
    """A mapping from names to values that are all read the same way."""

    key: Text
    item: Reader[T]
    expected: str = "a mapping"

    def read(self, node: yaml.Node, path: Path_, report: Report) -> Mapping[str, T]:
        """The entries; every faulty one is reported."""
        pairs = _pairs(node, path, report, self.expected)
        for key in pairs.values():
            self._check_key(key[0], path, report)
        values = _read_all((report, self.item, child, (*path, name)) for name, (_, child) in pairs.items())
        return dict(zip(pairs, values, strict=True))

    def _check_key(self, key: yaml.Node, path: Path_, report: Report) -> None:
        with suppress(_Fault):  # it is noted; the values are read all the same
            self.key.read(key, path, report)


REQUIRED: Any = object()


@dataclass(frozen=True)
class Field:
    """One field of a Record."""

    reader: Reader[Any]
    default: Any = REQUIRED
    to: str = ""  # the attribute's name, when it is not the field's


@dataclass(frozen=True)
class Record(Generic[T]):
    """A mapping with fixed fields, read into a dataclass."""

    make: Callable[..., T]
    fields: Mapping[str, Field]
    expected: str = "a mapping"
    check: Callable[[T, Path_, Report], None] | None = None  # adds faults that concern several fields
    another: Mapping[str, str] = field(default_factory=dict)  # a name that another kind of file has -> what that one is

    def read(self, node: yaml.Node, path: Path_, report: Report) -> T:
        """The dataclass; unknown, missing and faulty fields are all reported."""
        pairs = _pairs(node, path, report, self.expected)
        for name in self.another:
            if name in pairs:
                report.fail(pairs[name][0], path, self.another[name])
        before = len(report.faults)
        for name, (key, _) in pairs.items():
            if name not in self.fields:
                unused = [f for f in self.fields if f not in pairs]
                report.add(key, path, f"unknown field {name!r}; {report.nearest(name, unused, 'the fields are')}")
        values: dict[str, Any] = {}
        for name, f in self.fields.items():
            if name in pairs:
                try:
                    values[f.to or name] = report.read(f.reader, pairs[name][1], (*path, name))
                except _Fault:
                    continue
            elif f.default is REQUIRED:
                report.add(node, path, f"{name!r} is missing")
            else:
                values[f.to or name] = f.default
        if len(report.faults) > before:
            raise _Fault
        made = self.make(**values)
        if self.check:
            self.check(made, path, report)
        if len(report.faults) > before:
            raise _Fault
        return made


def load(path: Path | str, schema: Reader[T], check: Callable[[T, Report], None] | None = None) -> T:
    """Read and check the file at `path`; see `loads`."""
    try:
        data = Path(path).read_bytes()
    except OSError as e:
        raise ConfigurationError(f"cannot read {path}: {e.strerror}. Check the path.") from None
    return loads(data, schema, check, file=str(path))


def loads(data: bytes | str, schema: Reader[T], check: Callable[[T, Report], None] | None = None, *, file: str) -> T:
    """Read and check YAML text.

    Args:
        check: called with the result, to add faults that concern several fields.

    Raises:
        ConfigurationError: lists all faults, or where the text is not YAML.
    """
    report = Report(file)
    try:
        if len(data) > MAX_FILE_BYTES:
            raise ConfigurationError(f"{file} has {len(data)} bytes; at most {MAX_FILE_BYTES} are read.")
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        node = yaml.compose(text, Loader=_Loader)
    except UnicodeDecodeError as e:
        line = e.object.count(b"\n", 0, e.start) + 1
        raise ConfigurationError(
            f"{file}:{line}: not UTF-8: found byte 0x{e.object[e.start]:02x}. Save it as UTF-8."
        ) from None
    except RecursionError:
        raise ConfigurationError(f"{file} nests too deep to be read.") from None
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
        hint = quote_hint(text.splitlines()[mark.line]) if mark and mark.line < len(text.splitlines()) else ""
        raise ConfigurationError(f"{place}: not YAML: {e.problem or e.context}{hint}.") from None
    except yaml.YAMLError as e:
        raise ConfigurationError(f"{file}: not YAML: {str(e).splitlines()[0]}.") from None
    if node is None:
        raise ConfigurationError(f"{file} is empty.")
    check_size(node, file)
    _report_broken_texts(node, report)
    report.raise_if_any()
    with suppress(_Fault):
        value = report.read(schema, node, ())
        if check:
            check(value, report)
    report.raise_if_any()
    return value


class _Loader(yaml.SafeLoader):
    """Takes words as JSON and YAML 1.2 do: `on`, `yes` and 2026-01-31 are text. YAML 1.1 makes other things of them."""


_Loader.yaml_implicit_resolvers = {}

for _tag, _pattern, _first in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", "null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("int", "[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)", "-+.0123456789"),
    ("merge", "<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _report_broken_texts(root: yaml.Node, report: Report) -> None:
    """Text that no path, topic or JSON can hold: YAML can spell a zero byte and half a character."""
    for node in nodes_of(root):
        if _is_scalar(node) and (found := _BROKEN.search(node.value)):
            what = "a zero byte" if found[0] == "\0" else f"half a character, {found[0]!r}"
            report.add(node, (), f"this text has {what} in it; write it without")


def _report_repeats(root: yaml.Node, path: Path_, report: Report) -> None:
    """A name that is twice in a mapping, anywhere in `root`: YAML would take the last."""
    for node in nodes_of(root):
        names = set()
        for key, _ in node.value if _is_map(node) else ():
            if _is_scalar(key) and key.value in names:
                report.add(key, path, f"{key.value!r} is here twice")
            names.add(key.value if _is_scalar(key) else None)


def _scalar(node: yaml.Node, path: Path_, report: Report, expected: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        hint = "; in YAML a value that begins with '{' needs quotes to be text" if _is_braces(node) else ""
        report.fail(node, path, f"found {_kind(node)}; expected {expected}{hint}")
    if node.tag == "tag:yaml.org,2002:null":
        report.fail(node, path, f"found nothing; expected {expected}")
    text: str = node.value
    return text


def _pairs(node: yaml.Node, path: Path_, report: Report, expected: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        report.fail(node, path, f"found {_kind(node)}; expected {expected}")
    pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            report.add(key, path, f"found {_kind(key)} as a name; expected text")
        elif key.value in pairs:
            report.add(key, path, f"{key.value!r} is here twice")
        else:
            pairs[key.value] = (key, value)
    return pairs


def _read_all(tasks: Any) -> list[Any]:
    values, faulty = [], False
    for report, reader, node, path in tasks:
        try:
            values.append(report.read(reader, node, path))
        except _Fault:
            faulty = True
    if faulty:
        raise _Fault
    return values


def _is_map(node: yaml.Node | None) -> TypeGuard[yaml.MappingNode]:
    return isinstance(node, yaml.MappingNode)


def _is_braces(node: yaml.Node) -> bool:
    """`{{ … }}` without quotes: a mapping whose only name is a mapping."""
    return _is_map(node) and len(node.value) == 1 and _is_map(node.value[0][0])


def _is_scalar(node: yaml.Node) -> TypeGuard[yaml.ScalarNode]:
    return isinstance(node, yaml.ScalarNode)


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return f"{node.value!r}" if node.value else "nothing"
