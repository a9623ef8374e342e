"""`when`: what an expression may say, and that a reading cannot make it do anything else."""

from __future__ import annotations

import ast
import contextlib

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import ConfigurationError
from device_runtime.fleet.expression import Expression, LinkError, in_words

NAMES = {
    "temp_c": 41.5,
    "door": "open",
    "on": True,
    "items": 3,
    "reading": {"temp-c": 7, "pumps": [{"bar": 2}]},
    "topic": ["plant", "b1"],
    "window": [{"temp_c": 20}, {"temp_c": 30}],
}


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("temp_c > 32", True),
        ("30 < temp_c <= 41", False),
        ("temp_c > 32 and not on or door == 'open'", True),
        ("temp_c * 1.8 + 32", 106.7),
        ("door in ['open', \"ajar\"]", True),
        ("'x' not in reading", True),
        ("reading['temp-c'] % 4", 3),
        ("reading.pumps[0].bar", 2),
        ("topic[1]", "b1"),
        ("window[-1].temp_c", 30),
        ("len(window[:1])", 1),
        ("max(r.temp_c for r in window) - min(r.temp_c for r in window)", 10),
        ("sum(r.temp_c for r in window) / len(window)", 25),
        ("any(r.temp_c > 25 for r in window)", True),
        ("abs(-temp_c) if on else 0", 41.5),
        ("on == true and null is null", True),
        ("float('2.5') + int('3')", 5.5),
        ("items == 3", True),
    ],
)
def test_an_expression_computes_with_a_readings_fields(source, value):
    assert Expression(source).value(NAMES) == value


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("temp_c >", "not an expression: invalid syntax at character 9"),
        ("", "not an expression"),
        ("temp_c = 80", "character 8; equality is =="),
        ("temp_c > 80 && on", "write `and`"),
        ("temp_c > 80 || on", "write `or`"),
        ("!on", "write `not`"),
        ("a; b", "not an expression"),
        ("(" * 300, "not an expression"),
        ("1" * 1001, "1001 characters; at most 1000"),
        ("\0", "not an expression"),
        ("lambda: 1", "not part of the expressions"),
        ("{1: 2}", "not part"),
        ("f'{temp_c}'", "not part"),
        ("(x := 1)", "not part"),
        ("2 ** 9", "operator Pow is not part"),
        ("1 << 9", "operator LShift is not part"),
        ("~1", "operator Invert is not part"),
        ("b'x'", "neither a number nor a text"),
        ("1j", "neither a number"),
        ("eval('1')", "there is no function 'eval'"),
        ("maximum(1)", "did you mean 'max'"),
        ("door.upper()", "there is no function 'door.upper'"),
        (r"door == 'b\ud800'", r"this text has half a character, '\\ud800' in it; write it without"),
    ],
)
def test_a_fault_is_found_before_there_is_a_reading(source, message):
    with pytest.raises(ConfigurationError, match=message):
        Expression(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("wet", "'wet' is undefined"),
        ("reading.wet", "'reading.wet' is undefined"),
        ("door.__class__", "'door.__class__' is undefined"),
        ("window.append", "'window.append' is undefined"),
        ("temp_c > door", "compares two numbers"),
        ("temp_c / 0", "division by zero"),
        ("window[9]", "no such entry"),
        ("reading['x']", "no field 'x'"),
        ("int(door)", "cannot be computed"),
        ("door * 1000000", "two numbers"),
        ("door % 3", "two numbers"),
        ("len(temp_c)", "another kind"),
        ("max(1 for a in window * 9 for b in window)", "two numbers"),
    ],
)
def test_what_a_reading_does_not_have_is_a_link_error(source, message):
    with pytest.raises(LinkError, match=message):
        Expression(source).value(NAMES)


def test_a_text_from_a_sensor_is_never_a_format():
    """`"%999999999d" % 10` would be a text of a gigabyte."""
    with pytest.raises(LinkError, match="two numbers"):
        Expression("value % 10 == 0").value({"value": "%999999999d"})


def test_a_loop_over_the_window_has_an_end():
    window = [{"t": 1}] * 1000
    with pytest.raises(LinkError, match="too many"):
        Expression("sum(1 for a in window for b in window)").value({"window": window})


def test_a_field_cannot_redefine_a_function_and_leaves_nothing_behind():
    expression = Expression("max(1, 2)")
    assert expression.value({"max": 5}) == 2
    assert Expression("x").value({"x": 1}) == 1
    with pytest.raises(LinkError):
        expression = Expression("x")
        expression.value({"x": 1})
        expression.value({})


_WORDS = ["temp_c", "door", "window", "reading", "max", "(", ")", "[", "]", ".", ",", " and ", " not ", " for r in ",
          "<", "==", "+", "*", "%", "-", "9", "'a'", " if ", " else ", ":", "r"]  # fmt: skip


@given(st.lists(st.sampled_from(_WORDS), max_size=12).map("".join) | st.text(max_size=40))
def test_any_text_is_an_expression_or_our_own_error(source):
    with contextlib.suppress(ConfigurationError, LinkError):
        Expression(source).value(NAMES)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(_VALUES)
def test_any_value_of_a_reading_gives_a_value_or_a_link_error(value):
    for source in ("x > 3", "x % 10 == 0", "x * 2 + 1", "x[0] == x.a", "-x", "len(x)", "round(x)", "int(x)"):
        with contextlib.suppress(LinkError):
            Expression(source).value({"x": value})


def test_no_python_attribute_is_within_reach():
    for source in ("topic.__class__", "reading.get", "door.format", "(1).real", "max.__self__"):
        assert ast.parse(source)
        with pytest.raises(LinkError, match="undefined"):
            Expression(source).value(NAMES)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("{{ [{}] | map(attribute='line') | join(' ') }}", "an object has no attribute 'line'"),
        ("{{ ['a'] | map(attribute='line') | join(' ') }}", "text has no attribute 'line'"),
    ],
)
def test_what_a_template_misses_is_said_in_words_of_json(prompt: str, words: str) -> None:
    with pytest.raises(jinja2.UndefinedError) as raised:
        jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(prompt).render()
    assert in_words(raised.value) == f"it cannot be computed: {words}"
