"""Records: what an annotation says is what is read, refused and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.records.constraints import Check, Inside, Kind, Length, Pattern, Range, ReadAs, Rounded
from device_runtime.records.typed_json import FILE, Manner, fields_of, read, write

MESSAGE = Manner(unknown_fields_refused=True, null_is_absent=True, quotes_values=False)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Word(TypedDict):
    text: Annotated[str, Length(4, 1)]


@dataclass(frozen=True)
class Inner:
    size: int = 0


def even(value: int) -> int:
    if value % 2:
        raise ValueError("it is odd")
    return value


@dataclass(frozen=True)
class Outer:
    name: Annotated[str, Pattern("[a-z]+", "is {}; it has letters"), "its name"]
    count: Annotated[int | None, Range(1, 9), Check(even)] = None
    ratio: Annotated[float, Rounded(2)] = 0.0
    colour: Colour = Colour.RED
    kind: Literal["a", "b"] = "a"
    words: Annotated[tuple[Annotated[Mapping[str, str], ReadAs(Word)], ...], Length(2)] = ()
    inner: Inner = field(default_factory=Inner)
    deep: Annotated[int | None, Inside("box")] = None
    any: Annotated[Mapping[str, Any] | None, Kind("a schema, which is an object")] = None
    mark: Literal[True] = field(default=True, init=False)


@pytest.mark.parametrize(
    ("value", "message", "file"),
    [
        ([], "a thing must be a JSON object, not a list.", "a thing is []; expected an object"),
        ({}, "a thing lacks name.", "name is missing"),
        ({"name": None}, "a thing lacks name.", "name is None; expected a string"),
        ({"name": 1}, "name must be a string, not a number.", "name is 1; expected a string"),
        ({"name": "A"}, "name is 'A'; it has letters.", "name is 'A'; it has letters"),
        ({"name": "a", "count": 10}, "count is 10; it must be from 1 to 9.", "count is 10; it must be from 1 to 9"),
        ({"name": "a", "count": 3}, "count cannot be used: it is odd.", "count cannot be used: it is odd"),
        ({"name": "a", "count": True}, "count must be a whole number, not true or false.",
         "count is True; expected a whole number"),
        ({"name": "a", "count": 10**99}, "count is huge; it must be from 1 to 9.", "count is huge;"),
        ({"name": "a", "ratio": 10**99}, "ratio is huge; it must be in the range of a double.", "ratio is huge;"),
        ({"name": "a", "colour": "green"}, "colour is 'green'; it must be one of red, blue.",
         "colour is 'green'; expected 'red' or 'blue'"),
        ({"name": "a", "kind": 1}, "kind must be a string, not a number.", "kind is 1; expected 'a' or 'b'"),
        ({"name": "a", "words": [{"text": ""}]}, "words[0].text is an empty string.", "words[0].text is an empty"),
        ({"name": "a", "words": [{}]}, "words[0] lacks text.", "words[0].text is missing"),
        ({"name": "a", "words": [{"text": "a"}] * 3}, "words has 3 entries; at most 2 are allowed.", "words has 3"),
        ({"name": "a", "inner": {"size": -1}}, "inner.size is -1; it must be at least 0.", "inner.size is -1;"),
        ({"name": "a", "box": 3}, "box must be a JSON object, not a number.", "box is 3; expected an object"),
        ({"name": "a", "box": {"deep": "3"}}, "box.deep must be a whole number, not a string.", "box.deep is '3'"),
        ({"name": "a", "any": []}, "any must be a schema, which is an object, not a list.", "any is []; expected"),
        ({"name": "a", "mark": False}, "mark is False; it must be one of True.", "mark is False; expected True"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(value, message, file):
    for manner, words in ((MESSAGE, message), (FILE, file)):
        with pytest.raises(ValueError) as caught:
            read(Outer, value, "a thing", manner)
        assert str(caught.value).startswith(words)


def test_an_error_of_a_message_does_not_quote_what_may_be_private():
    with pytest.raises(ValueError) as caught:
        read(Outer, {"name": "a", "count": "my secret"}, "a thing", MESSAGE)
    assert "secret" not in str(caught.value)


def test_an_unknown_field_is_refused_in_a_command_and_left_alone_in_a_file():
    assert read(Outer, {"name": "a", "later": 1}, "it", FILE) == Outer("a")
    with pytest.raises(ValueError, match="it has no field 'cuont'; did you mean 'count'"):
        read(Outer, {"name": "a", "cuont": 1}, "it", MESSAGE)


def test_null_counts_as_absent_in_a_message():
    assert read(Outer, {"name": "a", "ratio": None, "count": None}, "it", MESSAGE) == Outer("a")


@given(
    st.builds(
        Outer,
        st.text("abc", min_size=1),
        st.none() | st.integers(1, 4).map(lambda n: 2 * n),
        st.floats(0, 100).map(lambda x: round(x, 2)),
        st.sampled_from(Colour),
        st.sampled_from(["a", "b"]),
        st.lists(st.fixed_dictionaries({"text": st.text("xy", min_size=1, max_size=4)}), max_size=2).map(tuple),
        st.builds(Inner, st.integers(0, 2**70)),
        st.none() | st.integers(0, 5),
        st.none() | st.dictionaries(st.text(), st.integers()),
    )
)
def test_a_record_survives_its_writing(record):
    for manner in (MESSAGE, FILE):
        assert read(Outer, write(record), "it", manner) == record
        assert read(Outer, write(record, defaults=False), "it", manner) == record


def test_what_is_written_is_in_place_rounded_and_without_none():
    assert write(Outer("a", ratio=1 / 3, deep=2)) == {
        "name": "a", "ratio": 0.33, "colour": "red", "kind": "a", "words": [], "inner": {"size": 0},
        "box": {"deep": 2}, "mark": True,
    }  # fmt: skip
    assert write(Outer("a"), defaults=False) == {"name": "a"}


def test_the_description_of_a_record_can_be_listed():
    fields = {field.name: field for field in fields_of(Outer)}
    assert fields["name"].doc == "its name" and fields["name"].required
    assert fields["deep"].path == ("box", "deep")
    assert fields["count"].optional and fields["count"].constraints[0] == Range(1, 9)
