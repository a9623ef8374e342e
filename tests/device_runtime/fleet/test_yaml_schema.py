"""The walker itself; tests of the fleet file use most of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from device_runtime.errors import ConfigurationError
from device_runtime.fleet import file as fleet
from device_runtime.fleet.yaml_schema import Boolean, Choice, Field, Integer, ListOf, Number, Plain, Record, Text, loads
from device_runtime.tasks import file as tasks

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.5
    kind: str = "dot"
    open: bool = False
    tags: tuple[str, ...] = ()


POINT = Record(
    Point,
    {
        "x": Field(Integer(0, 9, "cm")),
        "y": Field(Number(0, 1), 0.5),
        "kind": Field(Choice(("dot", "cross")), "dot"),
        "is-open": Field(Boolean(), False, to="open"),
        "tags": Field(ListOf(Text()), ()),
    },
)


def read(text, check=None):
    return loads(text, POINT, check, file="p.yaml")


def test_a_file_becomes_a_dataclass():
    assert read("{x: 3, y: .25, kind: cross, is-open: true, tags: [a, 1, no]}") == Point(
        3, 0.25, "cross", True, ("a", "1", "no")
    )
    assert read("x: 3") == Point(3)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("x: 10", "p.yaml:1:4: x: found '10'; expected a whole number from 0 to 9 cm"),
        ("x:", "p.yaml:1:3: x: found nothing; expected a whole number from 0 to 9 cm"),
        (
            r'{x: 1, tags: ["b\ud800"]}',
            r"p.yaml:1:15: this text has half a character, '\ud800' in it; write it without",
        ),
        (r'{x: 1, tags: ["b\0"]}', "p.yaml:1:15: this text has a zero byte in it; write it without"),
        ("x: 0x3", "p.yaml:1:4: x: found '0x3'; expected a whole number from 0 to 9 cm"),
        ("x: [1]", "p.yaml:1:4: x: found a list; expected a whole number from 0 to 9 cm"),
        ("{x: 1, y: .nan}", "p.yaml:1:11: y: found '.nan'; expected a number from 0 to 1"),
        ("{x: 1, kind: crss}", "p.yaml:1:14: kind: found 'crss'; did you mean 'cross'?"),
        ("{x: 1, is-open: yes}", "p.yaml:1:17: is-open: found 'yes'; expected true or false"),
        ("{x: 1, tags: [{a: 1}]}", "p.yaml:1:15: tags[0]: found a mapping; expected text"),
        ("{x: 1, z: 2}", "p.yaml:1:8: unknown field 'z'; the fields are: y, kind, is-open, tags"),
        ("{x: 1, x: 2}", "p.yaml:1:8: 'x' is here twice"),
        ("{y: 1}", "p.yaml:1:1: 'x' is missing"),
    ],
)
def test_a_fault_has_its_place_and_what_was_expected(text, fault):
    with pytest.raises(ConfigurationError) as e:
        read(text)
    assert str(e.value) == f"p.yaml has 1 fault:\n{fault}"


def test_a_check_across_fields_can_point_at_a_field():
    def check(point, report):
        report.add_at(("y",), f"found {point.y}; expected no more than x")

    with pytest.raises(ConfigurationError, match=r"p.yaml:2:4: y: found 0.7; expected no more than x"):
        read("x: 0\ny: 0.7", check)


def test_a_missing_file_says_so(tmp_path):
    from device_runtime.fleet.yaml_schema import load

    with pytest.raises(ConfigurationError, match=r"No such file or directory\. Check the path"):
        load(tmp_path / "none.yaml", POINT)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("kind: {{ x }} is hot", "put quotes around the whole of a value with braces in it"),
        ("{x: 1, kind: ${HOME}/x}", "put quotes around the whole of a value with braces in it"),
        ("kind: Boiler: hot", "put quotes around a value that has ': ' in it"),
        ("kind: 'a' in b", "put other quotes around the whole of it"),
        ("\tkind: dot", "indent with spaces"),
    ],
)
def test_a_line_that_everybody_writes_once_is_told_how(line, hint):
    with pytest.raises(ConfigurationError, match=r"^p.yaml:2:\d+: not YAML: .*" + hint + r"\.$"):
        read(f"# a file\n{line}\n" if line.startswith("{") else f"# a file\n{line}\nx: 1")


def test_braces_without_quotes_are_a_mapping_and_told_so():
    with pytest.raises(ConfigurationError, match=r"found a mapping; .* begins with '{' needs quotes to be text"):
        read("x: 1\nkind: {{ x }}")


def test_bytes_that_are_no_text_are_told_with_their_line():
    with pytest.raises(ConfigurationError, match=r"^p.yaml:2: not UTF-8: found byte 0xb0. Save it as UTF-8"):
        loads("x: 1\nkind: °C".encode("latin-1"), POINT, file="p.yaml")


def test_what_a_record_checks_comes_with_the_other_faults():
    def check(point, path, report):
        report.add_at((*path, "x"), "is odd")

    several = ListOf(Record(Point, POINT.fields, check=check))
    with pytest.raises(ConfigurationError, match=r"2 faults:\np.yaml:1:7: \[0\].x: is odd\np.yaml:2:7: \[1\].x: found"):
        loads("- {x: 1}\n- {x: -1}", several, file="p.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[on, off, yes, no, y, 2026-01-31, 12:30, 1_000, 0o17, 010]", None),
        ("[true, False, null, ~, 3, -4, 0.5, 1e3, .5]", [True, False, None, None, 3, -4, 0.5, 1000.0, 0.5]),
    ],
)
def test_plain_values_are_what_json_would_make_of_them(text, value):
    """YAML 1.1 makes truth values of `on` and `no`, and a date and 750 of the others."""
    expected = value or [word.strip() for word in text[1:-1].split(",")]
    assert loads(text, Plain("a list"), file="p.yaml") == expected


def test_a_name_that_is_twice_inside_of_a_plain_value_is_a_fault():
    with pytest.raises(ConfigurationError, match=r"p.yaml:1:18: 'b' is here twice"):
        loads("{a: [{b: 1, c: 2, b: 3}]}".replace(", c: 2", ", c: "), Plain("a mapping"), file="p.yaml")


@pytest.mark.parametrize(
    ("path", "read", "what"),
    [
        ("examples/log-triage/task.yaml", fleet.load, "this is a task file, and no fleet file; check it with"),
        ("boards/esp32-c3.yaml", fleet.load, "this is a board file, and no fleet file"),
        ("examples/greenhouse/fleet.yaml", tasks.load, "this is a fleet file, and no task file; check it with"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is_and_nothing_else(
    path: str, read: Callable[[Path], object], what: str
) -> None:
    with pytest.raises(ConfigurationError, match=what) as error:
        read(ROOT / path)
    assert "has 1 fault:" in str(error.value)
