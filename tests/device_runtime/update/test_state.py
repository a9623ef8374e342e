"""slots.json: what it may say, and which step may follow which."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.errors import UpdateError
from device_runtime.update.state import Last, Phase, State, TrialLimits

LAST = Last("installed", "assistant", "2")


def test_a_state_survives_being_written_and_read() -> None:
    state = State(active="a", security_counter=7).installed(TrialLimits(5.5, 200.0, 30.0), LAST)
    assert State.from_json(state.to_json()) == state
    assert State.from_json(State().to_json()) == State()
    confirmed = state.attempt().confirmed(9, Last("confirmed", "assistant", "2", None, 7.25, 80.5))
    assert State.from_json(confirmed.to_json()) == confirmed


def test_the_life_of_an_update() -> None:
    first = State().installed(TrialLimits(), LAST)
    assert (State().phase, first.phase, first.trial and first.trial.slot) == (Phase.EMPTY, Phase.PENDING, "a")
    trying = first.attempt()
    assert (trying.phase, trying.active, trying.trial and trying.trial.attempts_left) == (Phase.TRYING, None, 1)
    one = trying.confirmed(3, LAST)
    assert (one.phase, one.active, one.previous, one.security_counter) == (Phase.CONFIRMED, "a", None, 3)
    two = one.installed(TrialLimits(), LAST).attempt().confirmed(2, LAST)
    assert (two.active, two.previous, two.security_counter) == ("b", "a", 3)  # the counter never falls
    assert (two.swapped(LAST).active, two.swapped(LAST).previous) == ("a", "b")
    third = two.installed(TrialLimits(), LAST)
    assert (third.active, third.previous, third.trial and third.trial.slot) == ("b", "a", "c")
    back = third.attempt().attempt().returned(LAST)
    assert (back.phase, back.active, back.previous, back.trial) == (Phase.CONFIRMED, "b", "a", None)
    three = third.attempt().confirmed(4, LAST)
    assert (three.active, three.previous, three.free) == ("c", "b", "a")
    assert first.returned(LAST).phase is Phase.EMPTY


@pytest.mark.parametrize(
    "step",
    [
        lambda: State().attempt(),
        lambda: State(active="a").returned(LAST),
        lambda: State(active="a").swapped(LAST),
        lambda: State().installed(TrialLimits(), LAST).installed(TrialLimits(), LAST),
        lambda: State().installed(TrialLimits(), LAST).attempt().attempt().attempt(),
    ],
)
def test_no_other_step_is_possible(step) -> None:
    with pytest.raises(AssertionError):
        step()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "schema 2; this stonechat reads schema 1"),
        ({"active": "d"}, "active is 'd'"),
        ({"previous": "a"}, "slot a cannot hold the bundle to go back to"),
        (
            {"active": "a", "previous": "b", "trial": {"slot": "b", "attempts_left": 2, "limits": {}}},
            "slot b cannot hold the bundle to go back to",
        ),
        ({"active": "a", "previous": "a"}, "slot a is active and has another part"),
        ({"security_counter": -1}, "security_counter is -1"),
        ({"trial": {"slot": "b"}}, "trial.attempts_left is missing"),
        ({"trial": {"slot": "b", "attempts_left": 9, "limits": {}}}, "its trial cannot be"),
        ({"last": {"outcome": "rolled_back", "name": "half \ud83d", "version": "1"}}, "last.name has half a character"),
        ({"last": {"outcome": "rolled_back", "name": "x\0", "version": "1"}}, "last.name has a zero byte"),
        ({"last": {"outcome": "lost", "name": "x", "version": "1"}}, "last.outcome is 'lost'"),
    ],
)
def test_a_faulty_state_is_named(change: dict, words: str) -> None:
    data = json.loads(State().to_json()) | change
    with pytest.raises(UpdateError, match=words):
        State.from_json(json.dumps(data).encode())


TEXT = st.text("ab \0é", max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)


@settings(deadline=None)
@given(st.binary() | st.builds(lambda d: json.dumps({"schema": 1} | d).encode(), st.dictionaries(
    st.sampled_from(["active", "previous", "trial", "security_counter", "last"]),
    st.sampled_from(["a", "b"]) | JSON | st.fixed_dictionaries({"slot": JSON, "attempts_left": JSON, "limits": JSON}),
)))  # fmt: skip
def test_junk_is_refused_by_our_own_error(text: bytes) -> None:
    try:
        state = State.from_json(text)
    except UpdateError:
        return
    assert State.from_json(state.to_json()) == state and state.phase in Phase
