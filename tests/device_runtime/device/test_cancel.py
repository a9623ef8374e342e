"""Cancel: the token that is being computed is the last."""

from __future__ import annotations

from typing import Any

from device_runtime.engine.language_model import Completion
from tests.support.scripted_model import ScriptedModel


class Looking:
    """An answer that looks for a cancel between two tokens, as the engine does, and not while one is computed."""

    def __init__(self, model: CountingModel) -> None:
        self.model, self.said, self.cancelled = model, 0, False

    def __iter__(self) -> Looking:
        return self

    def __next__(self) -> str:
        if self.cancelled:
            self.result = Completion("t" * self.said, "cancelled", 1, 0, self.said, 1.0, 1.0)
            raise StopIteration
        self.model.gate.acquire()
        self.said += 1
        return "t"

    def cancel(self) -> None:
        self.cancelled = True
        self.model.said_at_cancel = self.said
        for _ in range(10):  # the machine is fast: nothing but the cancel ends it
            self.model.gate.release()


class CountingModel(ScriptedModel):
    """Says "t" for ever."""

    said_at_cancel: int

    def generate(self, prompt: Any, **options: Any) -> Looking:
        return Looking(self)


def test_it_takes_effect_within_one_token(on_air):
    device = on_air(CountingModel(gated=True))
    reply_to = device.ask(prompt="x", stream=True)
    for seq in range(3):
        device.model.gate.release()
        device.client.until(lambda topic, value: value == {"seq": seq, "text": "t"})  # noqa: B023
    device.client.publish(device.topics.cancel, {}, ResponseTopic=reply_to, CorrelationData=b"c1")
    final = device.client.until(lambda topic, value: bool(value.get("done")))[-1][1]
    assert final["finish"] == "cancelled"
    assert final["usage"]["completion_tokens"] <= device.model.said_at_cancel + 1
    assert final["text"] == "t" * final["usage"]["completion_tokens"]


def test_it_finds_a_request_on_its_way_from_the_line_to_the_model(on_air, monkeypatch):
    """It waits no more, and its answer has not begun: between two threads nothing is lost."""
    device = on_air(ScriptedModel(["a", "b"], gated=True))
    enter, steps = device.service._device.lifecycle.enter, []

    def take_long(state):
        if not steps:
            steps.append(state)
            reply_to = device.topics.reply("tester", "1")
            device.client.publish(device.topics.cancel, {}, ResponseTopic=reply_to, CorrelationData=b"c1")
            device.ask(prompt="the next", session="2", correlation=b"c2")
            device.until_waiting(1)  # so the cancel was read as well
        enter(state)

    monkeypatch.setattr(device.service._device.lifecycle, "enter", take_long)
    device.ask(prompt="x")
    final = device.client.until(lambda topic, value: bool(value.get("done")))[-1][1]
    assert (final["finish"], final["text"]) == ("cancelled", "")
    for _ in range(3):
        device.model.gate.release()
    assert device.client.until(lambda topic, value: bool(value.get("done")))[-1][1]["text"] == "ab"
