"""How sure the model is, in what a device publishes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from device_runtime.fleet.links import Link
from device_runtime.fleet.questions import LinkExample, Unsure
from tests.device_runtime.conftest import OnAir
from tests.support.mqtt_peer import Peer
from tests.support.scripted_model import ScriptedModel

ANSWER = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}, "why": {"type": "string"}}}
LINK = Link(name="sort", source="in/note", prompt="Note: {{ value }}", to="out/kind", answer=ANSWER)
SAID = {"kind": "a", "why": "so"}


def unsure_model() -> ScriptedModel:
    model = ScriptedModel([json.dumps(SAID)])
    model.confidence = {"kind": 0.61234}
    return model


def start(
    on_air: Callable[..., OnAir], peer: Callable[..., Peer], model: ScriptedModel, link: Link
) -> tuple[OnAir, Peer]:
    device, listener = on_air(model, links=(link,)), peer()
    listener.subscribe("out/kind", device.topics.link("sort"))
    return device, listener


def test_an_answer_says_how_sure_it_is(on_air: Callable[..., OnAir], peer: Callable[..., Peer]) -> None:
    device, listener = start(on_air, peer, unsure_model(), LINK)
    device.client.publish("in/note", "x")
    for _ in range(2):
        _, said = listener.next()
        assert said["answer"] == SAID and said["confidence"] == {"kind": 0.6123} and "unsure" not in said


def test_one_of_which_the_model_is_unsure_is_flagged(on_air: Callable[..., OnAir], peer: Callable[..., Peer]) -> None:
    device, listener = start(on_air, peer, unsure_model(), replace(LINK, unsure=Unsure(0.8, "flag")))
    device.client.publish("in/note", "x")
    topic, said = listener.next()
    assert topic == "out/kind" and said["answer"] == SAID and said["unsure"] is True
    assert said["reason"] == "the confidence in kind is 0.61, below 0.8"


def test_or_goes_nowhere_but_to_the_device_s_own_topic(on_air: Callable[..., OnAir], peer: Callable[..., Peer]) -> None:
    model = unsure_model()
    device, listener = start(on_air, peer, model, replace(LINK, unsure=Unsure(0.8, "skip")))
    device.client.publish("in/note", "x")
    topic, said = listener.next()
    assert topic == device.topics.link("sort") and said["answer"] is None and said["unsure"] is True
    links = next(e for e in device.service._extensions if type(e).__name__ == "LinkRunner")
    assert links.health() == {"links": {"sort": {"unsure": 1}}}
    model.confidence = {"kind": 0.9}
    device.client.publish("in/note", "y")
    assert listener.next()[1]["answer"] == SAID


def test_no_model_is_asked_for_what_is_decided_whole(on_air: Callable[..., OnAir], peer: Callable[..., Peer]) -> None:
    model = unsure_model()
    decide = {"kind": "'b' if len(value) > 2 else 'a'", "why": "value"}
    device, listener = start(on_air, peer, model, replace(LINK, decide=decide))
    device.client.publish("in/note", "long")
    assert listener.next()[1]["answer"] == {"kind": "b", "why": "long"}
    assert model.asked == []


def test_the_model_gets_the_examples_and_what_is_fixed(on_air: Callable[..., OnAir], peer: Callable[..., Peer]) -> None:
    model = unsure_model()
    shown = LinkExample(SAID, {"value": "y"})
    device, listener = start(on_air, peer, model, replace(LINK, system="Sort.", examples=(shown,)))
    device.client.publish("in/note", "x")
    listener.next()
    messages, options = model.asked[0]
    assert [m["content"] for m in messages] == ["Sort.", "Note: y", json.dumps(SAID), "Note: x"]
    assert (options["head"], options["nothing"]) == ("Note: ", "Note: N/A")


def test_a_request_may_have_examples_and_its_reply_says_how_sure_it_is(on_air: Callable[..., OnAir]) -> None:
    model = unsure_model()
    model.unfamiliar = ("x is 99",)
    device = on_air(model)
    shown: list[dict[str, Any]] = [{"prompt": "y", "answer": SAID}, {"prompt": "z", "answer": "text"}]
    device.ask(prompt="x", schema=ANSWER, examples=shown)
    final = device.client.until(lambda topic, value: value.get("done"))[-1][1]
    assert final["confidence"] == {"kind": 0.6123} and final["unfamiliar"] is True and final["reason"] == "x is 99"
    assert [m["content"] for m in model.asked[0][0]] == ["y", json.dumps(SAID), "z", "text", "x"]


def test_health_says_how_much_was_not_computed_again(on_air: Callable[..., OnAir]) -> None:
    device = on_air(unsure_model(), health_s=0.2)
    device.client.deaf_to = "(nothing)"
    device.ask(prompt="x")
    reports: list[dict[str, Any]] = []

    def counted(topic: str, value: Any) -> bool:
        reports.append(value)
        return bool(topic.endswith("/out/health") and value.get("reused_tokens"))

    device.client.until(counted)
    assert (reports[-1]["prompt_tokens"], reports[-1]["reused_tokens"]) == (7, 2)
