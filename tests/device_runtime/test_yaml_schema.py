"""The walker itself; tests of the fleet file use most of it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from device_runtime.errors import ConfigurationError
from device_runtime.yaml_schema import Boolean, Choice, Field, Integer, ListOf, Number, Record, Text, loads


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
    from device_runtime.yaml_schema import load

    with pytest.raises(ConfigurationError, match=r"No such file or directory\. Check the path"):
        load(tmp_path / "none.yaml", POINT)
