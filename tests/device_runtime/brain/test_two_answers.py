"""This device's answer, of which it is unsure, and the larger model's become one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.brain.far.side import FarAnswer
from device_runtime.brain.two_answers import joined
from device_runtime.engine.generation import Certainty
from device_runtime.fleet.policies.escalation import Escalation, Target
from tests.device_runtime.conftest import OnAir
from tests.support.far_server import FarServer
from tests.support.scripted_model import ScriptedModel

LEVELS = ("low", "normal", "high")
SCHEMA = {"type": "object", "properties": {"level": {"enum": list(LEVELS)}}, "required": ["level"]}


@pytest.mark.parametrize(("at_once", "level"), [(False, "high"), (True, "low")])
def test_after_a_field_of_the_larger_model_a_device_that_writes_one_after_the_other_is_sure_of_none(
    at_once: bool, level: str
) -> None:
    """It was sure that no device was meant, because it thought that nothing was to be done."""
    ours, theirs = {"first": "x", "kind": "a", "level": "low"}, {"first": "y", "kind": "b", "level": "high"}
    own = Certainty({"first": 0.9, "kind": 0.5, "level": 0.95})
    far = FarAnswer(json.dumps(theirs), "there", confidence={"first": 0.9, "kind": 0.6, "level": 0.7})
    found = joined(json.dumps(ours), own, far, 0.8, at_once=at_once)
    assert json.loads(found.text) == {"first": "x", "kind": "b", "level": level}
    assert found.confidence == {"first": 0.9, "kind": 0.6, "level": 0.95 if at_once else 0.7}


def shares() -> st.SearchStrategy[dict[str, float]]:
    parts = st.tuples(*(st.integers(1, 100) for _ in LEVELS))
    return parts.map(lambda found: {name: part / sum(found) for name, part in zip(LEVELS, found, strict=True)})


def said(found: dict[str, float]) -> tuple[str, Certainty]:
    best = max(found, key=lambda name: found[name])
    return json.dumps({"level": best}), Certainty({"level": found[best]}, {"level": found})


@given(st.lists(shares(), min_size=3, max_size=3))
def test_three_models_in_a_row_find_what_all_of_them_together_find_likeliest(of: list[dict[str, float]]) -> None:
    """The nearest has asked the middle one, which has asked the largest; where none is sure, the order counts nothing.
    Sums of rounded products: 1e-9 of shares that are 1e-6 at least."""
    (text, certainty), *_ = (said(found) for found in of[1:])
    largest, of_largest = said(of[2])
    far = FarAnswer(largest, "there", confidence=of_largest.confidence, probabilities=of_largest.probabilities)
    middle = joined(text, certainty, far, 1.1, at_once=True)
    near, of_near = said(of[0])
    found = joined(near, of_near, middle, 1.1, at_once=True)
    product = {name: of[0][name] * of[1][name] * of[2][name] for name in LEVELS}
    together = {name: share / sum(product.values()) for name, share in product.items()}
    assert found.probabilities is not None and found.probabilities["level"] == pytest.approx(together, abs=1e-9)
    best = max(together.values())
    assert together[json.loads(found.text)["level"]] == pytest.approx(best, abs=1e-9)
    assert found.confidence == {"level": pytest.approx(best, abs=1e-9)}


@given(shares(), shares())
def test_what_this_device_is_sure_of_it_says_as_it_is(ours: dict[str, float], theirs: dict[str, float]) -> None:
    (text, certainty), (other, of_other) = said(ours), said(theirs)
    far = FarAnswer(other, "there", confidence=of_other.confidence, probabilities=of_other.probabilities)
    found = joined(text, certainty, far, 0.0, at_once=True)
    assert (found.text, found.confidence, found.probabilities) == (text, *certainty)


def unsure(level: str, **shares: float) -> ScriptedModel:
    made = ScriptedModel([json.dumps({"level": level})])
    made.confidence, made.probabilities = {"level": shares[level]}, {"level": shares}
    return made


def test_a_device_that_passes_on_what_it_was_passed_says_how_likely_each_value_is(
    on_air: Callable[..., OnAir], far: FarServer
) -> None:
    """Three models, none of which finds `normal` likeliest, and which together do."""
    others: dict[str, Any] = {"low": 0.1, "normal": 0.4, "high": 0.5}
    far.say = lambda body: json.dumps({"level": "high"})
    far.extra = {"stonechat": {"confidence": {"level": 0.5}, "probabilities": {"level": others}}}
    middle = unsure("low", low=0.5, normal=0.45, high=0.05)
    site = on_air(middle, escalate=Escalation(Target(url=far.url, model="large")))
    to = Escalation(Target(device=site.topics.device))
    near = on_air(unsure("high", low=0.02, normal=0.48, high=0.5), escalate=to)
    reply_to = near.ask(prompt="x", schema=SCHEMA)
    final = near.client.until(lambda topic, value: topic == reply_to and "finish" in value)[-1][1]
    product = {"low": 0.02 * 0.5 * 0.1, "normal": 0.48 * 0.45 * 0.4, "high": 0.5 * 0.05 * 0.5}
    together = {name: share / sum(product.values()) for name, share in product.items()}
    assert json.loads(final["text"]) == {"level": "normal"}
    assert final["probabilities"] == {"level": pytest.approx(together, abs=1e-4)}
    assert final["confidence"] == {"level": pytest.approx(together["normal"], abs=1e-4)}
    assert final["route"]["where"] == f"device {site.topics.device}, http://127.0.0.1:{far.port}"
