"""A request that comes again: it is answered once, and who asks again gets that answer and no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from device_runtime.brain import escalator
from device_runtime.client.remote import RemoteModel
from device_runtime.device import runner
from device_runtime.device.extensions import request_job
from device_runtime.errors import BundleError
from device_runtime.fleet.policies.escalation import Escalation, Target
from device_runtime.fleet.settings import ModelSettings
from device_runtime.mqtt.address import BrokerAddress
from tests.device_runtime.conftest import OnAir
from tests.support.far_server import far_server
from tests.support.scripted_fleet import wait_until
from tests.support.scripted_model import ScriptedModel

Start = Callable[..., OnAir]


def said(device: OnAir) -> dict[str, Any]:
    """The next end of a request: an answer or an error."""
    return device.client.until(lambda topic, value: "/reply/" in topic and ("done" in value or "error" in value))[-1][1]


def cancel(device: OnAir, correlation: bytes, fields: dict[str, Any]) -> None:
    device.client.publish(
        device.topics.cancel, fields, ResponseTopic=device.topics.reply("tester", "1"), CorrelationData=correlation
    )


def until_running(device: OnAir) -> None:
    device.client.until(lambda topic, value: value == {"state": "busy", "boot": 1})


class TestWhatElseHasItsAddress:
    """A command that cannot be read says so at the address that it names, and is not the end of a request."""

    def test_is_not_its_end_while_it_waits(self, on_air: Start) -> None:
        device = on_air(ScriptedModel(["a"], gated=True))
        device.ask(prompt="x", correlation=b"1")
        until_running(device)
        cancel(device, b"1", {"unknown": 1})
        assert said(device)["error"]["code"] == "invalid_request"
        device.ask(prompt="x", correlation=b"1")
        device.ask(prompt="x", correlation=b"2", nothing=1)
        assert "'nothing'" in said(device)["error"]["message"]  # and nothing was said of the repeat
        device.model.gate.release(2)
        assert said(device)["text"] == "a"

    def test_is_not_its_end_afterwards(self, on_air: Start) -> None:
        device = on_air()
        device.ask(prompt="x", correlation=b"1")
        assert said(device)["text"] == "X"
        device.ask(prompt="x", correlation=b"1", unknown=1)
        assert said(device)["error"]["code"] == "invalid_request"
        device.ask(prompt="x", correlation=b"1")
        assert said(device)["text"] == "X" and len(device.model.asked) == 1


def test_what_was_refused_takes_no_ends_place(on_air: Start) -> None:
    device = on_air()
    device.ask(prompt="x", correlation=b"1")
    assert said(device)["text"] == "X"
    for number in range(request_job.KEPT):
        device.ask(prompt="x", model="unknown", correlation=b"other %d" % number)
        assert said(device)["error"]["code"] == "unknown_model"
    device.ask(prompt="x", correlation=b"1")
    assert said(device)["text"] == "X" and len(device.model.asked) == 1


def test_one_whose_end_is_not_kept_any_more_is_told_so(on_air: Start) -> None:
    """It is not computed twice, and its client does not wait for what does not come."""
    device = on_air()
    for number in range(request_job.KEPT + 1):
        device.ask(prompt=f"x {number}", correlation=b"%d" % number)
        assert said(device)["text"] == f"X {number}"
    device.ask(prompt="x 1", correlation=b"1")
    assert said(device)["text"] == "X 1"
    device.ask(prompt="x 0", correlation=b"0")
    error = said(device)["error"]
    assert error["code"] == "unavailable" and "not kept any more; ask again with other" in error["message"]
    assert len(device.model.asked) == request_job.KEPT + 1


def test_one_that_asks_something_else_meanwhile_ends_nothing(on_air: Start) -> None:
    device = on_air(ScriptedModel(["a"], gated=True))
    device.ask(prompt="x", correlation=b"1")
    until_running(device)
    device.ask(prompt="y", correlation=b"1")
    device.ask(prompt="z", correlation=b"2")
    device.until_waiting(1)
    device.model.gate.release(100)
    assert [said(device)["text"] for _ in range(2)] == ["a", "a"] and len(device.model.asked) == 2


def test_one_under_way_is_known_however_many_come_after_it(on_air: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_job, "REMEMBERED", 2)
    device = on_air(ScriptedModel(["a"], gated=True))
    for number in range(4):
        device.ask(prompt="x", correlation=b"%d" % number)
    device.until_waiting(3)
    device.ask(prompt="x", correlation=b"0")
    device.ask(prompt="the last", correlation=b"last")
    device.until_waiting(4)
    device.model.gate.release(100)
    assert [said(device)["text"] for _ in range(5)] == ["a"] * 5
    wait_until(lambda: not len(device.service._device.queue))
    assert len(device.model.asked) == 5 and device.model.asked[-1][0][-1]["content"] == "the last"


@pytest.mark.parametrize("ended", [True, False])
def test_a_cancel_that_comes_after_the_end_is_told_it(on_air: Start, ended: bool) -> None:
    """Its client may have been away when it was said, and waits for the end."""
    device = on_air()
    device.ask(prompt="x", correlation=b"1")
    first = said(device)
    cancel(device, b"1" if ended else b"2", {})  # nobody is told of what never was
    device.ask(prompt="y", correlation=b"3")
    assert [said(device)["text"] for _ in range(1 + ended)] == [first["text"]] * ended + ["Y"]


def test_one_that_was_passed_on_in_vain_and_found_no_place_may_come_again(
    on_air: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(escalator, "MAX_WAITING", 1)
    with far_server() as far:
        far.wait_s = 60
        policy = Escalation(Target(url=far.url, model="large"), when=("busy",), at_once=1, timeout_s=60)
        device = on_air(ScriptedModel(["a"], gated=True), queue=1, escalate=policy)
        device.ask(prompt="x", correlation=b"1")
        until_running(device)
        device.ask(prompt="x", correlation=b"2")
        device.until_waiting(1)
        device.ask(prompt="x", correlation=b"3")
        wait_until(lambda: bool(far.asked))
        device.ask(prompt="x", correlation=b"4")
        device.ask(prompt="x", correlation=b"5")
        assert said(device)["error"]["code"] == "busy"
        device.model.gate.release(100)
        assert [said(device)["text"] for _ in range(2)] == ["a", "a"]
        device.ask(prompt="x", correlation=b"5")
        assert said(device)["text"] == "a"


def test_one_that_was_refused_for_a_bundle_may_come_again(on_air: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "RETRY_S", 0.0)
    models: dict[str, Any] = {"good": ScriptedModel(["g"]), "bad": BundleError("it is damaged.")}
    device = on_air(scripts=models, models=(ModelSettings("good"), ModelSettings("bad")))
    device.ask(prompt="x", model="bad", correlation=b"1")
    assert said(device)["error"]["code"] == "bundle"
    models["bad"] = ScriptedModel(["mended"])
    device.ask(prompt="x", model="bad", correlation=b"1")
    assert said(device)["text"] == "mended"


def test_a_pool_is_told_at_once_who_has_taken_what_is_passed_on(on_air: Start, port: int) -> None:
    """Else its client asks the next one after 2 s, and gives up what this one has."""
    with far_server() as far:
        far.say, far.wait_s = (lambda body: "from afar"), 4
        policy = Escalation(Target(url=far.url, model="large"), when=("busy",), timeout_s=60)
        device = on_air(ScriptedModel(["a"], gated=True), queue=1, escalate=policy, pool="herd-far")
        device.ask(prompt="x", correlation=b"1")
        until_running(device)
        device.ask(prompt="x", correlation=b"2")
        device.until_waiting(1)
        with RemoteModel(BrokerAddress("127.0.0.1", port), pool="herd-far") as remote:
            answer = remote.generate("x", timeout_s=20)
            assert "".join(answer) == "from afar" and answer.device == device.topics.device
        assert len(far.asked) == 1
        device.model.gate.release(100)
