"""Wording for generators: alternatives and slips of the finger."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.examples.wording import chosen, misspelt

TEXTS = st.text(st.sampled_from("ab |()? "), max_size=40)


def every(text: str) -> set[str]:
    return {chosen(random.Random(seed), text) for seed in range(60)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(turn|switch) on", {"turn on", "switch on"}),
        ("on(| please)", {"on", "on please"}),
        ("(a|b)?c", {"ac", "bc", "c"}),
        ("(a|(b|c) d)", {"a", "b d", "c d"}),
        ("DEV (sda): (bad|worse)", {"DEV (sda): bad", "DEV (sda): worse"}),
        ("(open|", {"(open|"}),
        ("pid) left", {"pid) left"}),
    ],
)
def test_one_of_each_group_is_taken_and_other_brackets_stay(text: str, expected: set[str]) -> None:
    assert every(text) == expected


@given(TEXTS, st.integers(0, 5))
def test_any_text_comes_out_without_alternatives_that_were_closed(text: str, seed: int) -> None:
    found = chosen(random.Random(seed), text)
    assert len(found) <= len(text)
    assert "  " not in found


@given(st.text(max_size=40), st.integers(0, 50))
def test_a_slip_changes_one_letter_and_never_an_end_or_a_digit(text: str, seed: int) -> None:
    found = misspelt(random.Random(seed), text)
    assert abs(len(found) - len(text)) <= 1
    assert found[:1] == text[:1] and found[-1:] == text[-1:]
    assert [c for c in found if c.isdigit()] == [c for c in text if c.isdigit()]
