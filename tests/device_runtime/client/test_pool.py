"""Asking a pool: whoever is free answers, and when that one vanishes, another does."""

from __future__ import annotations

import json
import queue
import threading
import time
from types import SimpleNamespace

import pytest

from device_runtime.client import pool as failover
from device_runtime.client.remote import RemoteModel
from device_runtime.errors import ConfigurationError, UnreachableError
from device_runtime.mqtt.address import BrokerAddress
from tests.support.scripted_model import ScriptedModel

POOL = "stonechat/1/pool/herd/generate"


@pytest.fixture
def herd(port, request):
    """A client of a pool that is this test's own, and the pool's name."""
    name = f"herd-{abs(hash(request.node.nodeid)) % 10**9}"
    with RemoteModel(BrokerAddress("127.0.0.1", port), pool=name) as model:
        yield SimpleNamespace(model=model, name=name, generate=model.generate)


@pytest.fixture
def play(peer, herd):
    """Workers that a test plays itself: `requests` fills with what they are asked."""
    made = []

    class Worker:
        def __init__(self, device: str, boot: int = 1) -> None:
            self.device, self.boot, self.peer = device, boot, peer()
            self.requests: queue.Queue = queue.Queue()
            self.cancels: queue.Queue = queue.Queue()
            self.peer.client.on_message = self._heard
            self.peer.subscribe(
                f"$share/{herd.name}/stonechat/1/pool/{herd.name}/generate", f"stonechat/1/{device}/in/cancel"
            )
            self.state("ready")
            made.append(self)

        def _heard(self, client, userdata, message) -> None:
            where = self.cancels if message.topic.endswith("/cancel") else self.requests
            where.put(message)

        def state(self, state: str) -> None:
            topic = f"stonechat/1/{self.device}/out/state"
            self.peer.publish(topic, {"state": state, "boot": self.boot}, retain=True)

        def take(self):
            """The next request, accepted."""
            message = self.requests.get(timeout=10)
            self.say(message, {"accepted": True, "boot": self.boot})
            return message

        def say(self, message, fields) -> None:
            self.peer.publish(
                message.properties.ResponseTopic, {**fields, "device": self.device},
                CorrelationData=message.properties.CorrelationData,
            )  # fmt: skip

        def finish(self, message, text: str, **fields) -> None:
            self.say(message, {"seq": 0, "done": True, "finish": "stop", "text": text, **fields})

    yield Worker
    for worker in made:
        worker.peer.publish(f"stonechat/1/{worker.device}/out/state", b"", retain=True)


def in_thread(answer):
    """Iterate an answer aside: what it said, and how it ended."""
    heard = SimpleNamespace(pieces=[], error=None)

    def run() -> None:
        try:
            for piece in answer:
                heard.pieces.append(piece)
        except Exception as error:
            heard.error = error

    heard.thread = threading.Thread(target=run)
    heard.thread.start()
    return heard


def wait_until(condition, timeout_s=10.0):
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_one_device_or_one_pool_and_not_both():
    for arguments in ({}, {"device": "a", "pool": "b"}):
        with pytest.raises(ConfigurationError, match="exactly one"):
            RemoteModel(BrokerAddress("127.0.0.1"), **arguments)


def test_devices_of_a_pool_answer_in_turn_and_say_who_they_are(on_air, herd):
    devices = [on_air(pool=herd.name), on_air(pool=herd.name)]
    answers = [herd.generate(f"question {i}") for i in range(6)]
    assert ["".join(answer) for answer in answers] == [f"QUESTION {i}" for i in range(6)]
    assert {answer.device for answer in answers} == {d.topics.device for d in devices}
    assert [len(d.model.asked) for d in devices] == [3, 3]


def test_mqtt_3_asks_a_pool_as_well(on_air, port, herd):
    on_air(pool=herd.name)
    with RemoteModel(BrokerAddress("127.0.0.1", port, protocol="3.1.1"), pool=herd.name) as model:
        answer = model.generate("hello")
        assert "".join(answer) == "HELLO"


def test_a_plain_client_gets_the_answer_first_and_no_acceptance(on_air, herd, peer):
    device = on_air(pool=herd.name)
    client, reply_to = peer(), f"stonechat/1/pool/{herd.name}/reply/plain/1"
    client.subscribe(reply_to)
    client.publish(f"stonechat/1/pool/{herd.name}/generate", {"prompt": "x"}, ResponseTopic=reply_to)
    answer = client.next()[1]
    assert (answer["text"], answer["device"]) == ("X", device.topics.device)


def test_a_worker_accepts_before_its_first_piece(on_air, herd, peer):
    device = on_air(pool=herd.name)
    client, reply_to = peer(), f"stonechat/1/pool/{herd.name}/reply/plain/1"
    client.subscribe(reply_to)
    request = {"prompt": "x", "accept": True, "stream": True}
    client.publish(f"stonechat/1/pool/{herd.name}/generate", request, ResponseTopic=reply_to)
    assert client.next()[1] == {"accepted": True, "device": device.topics.device, "boot": 1}


def test_a_busy_worker_says_so_and_the_next_one_is_asked(on_air, herd):
    """Each has a queue of one; the broker knows nothing of it and spreads blindly."""
    devices = [on_air(ScriptedModel(gated=True), pool=herd.name, queue=1) for _ in range(2)]
    answers = [in_thread(herd.generate(f"question {i}")) for i in range(8)]
    wait_until(lambda: all(d.model.asked for d in devices))
    for d in devices:
        for _ in range(100):
            d.model.gate.release()
    for number, heard in enumerate(answers):
        heard.thread.join(20)
        assert (heard.error, "".join(heard.pieces)) == (None, f"QUESTION {number}")
    assert sum(len(d.model.asked) for d in devices) == 8  # nothing was computed twice


def test_a_lost_worker_is_replaced_and_the_answer_goes_on_where_it_was(herd, play):
    first = play("played-1")
    answer = herd.generate("x")
    heard = in_thread(answer)
    taken = first.take()
    first.say(taken, {"seq": 0, "text": "Open "})
    wait_until(lambda: heard.pieces == ["Open "])
    first.peer.client.unsubscribe(f"$share/{herd.name}/stonechat/1/pool/{herd.name}/generate")
    second = play("played-2")
    first.state("lost")
    again = second.take()
    assert again.properties.ResponseTopic != taken.properties.ResponseTopic
    assert again.properties.CorrelationData != taken.properties.CorrelationData
    second.say(again, {"seq": 0, "text": "Op"})
    first.say(taken, {"seq": 1, "text": "nothing of this is heard"})
    second.say(again, {"seq": 1, "text": "en the"})
    second.finish(again, "Open the window.")
    heard.thread.join(10)
    assert (heard.error, heard.pieces) == (None, ["Open ", "the", " window."])
    assert (answer.device, answer.final.text) == ("played-2", "Open the window.")


def test_a_worker_that_answers_differently_is_not_mixed_in(herd, play):
    first = play("played-3")
    heard = in_thread(herd.generate("x"))
    taken = first.take()
    first.say(taken, {"seq": 0, "text": "Open "})
    wait_until(lambda: heard.pieces == ["Open "])
    first.state("lost")
    first.boot += 1  # it is back at once
    again = first.take()
    first.say(again, {"seq": 0, "text": "Close"})
    heard.thread.join(10)
    assert heard.pieces == ["Open "]
    assert isinstance(heard.error, UnreachableError)
    assert "answers differently" in str(heard.error)


def test_without_streaming_a_lost_worker_is_not_noticed(herd, play):
    worker = play("played-4")
    heard = in_thread(herd.generate("x", stream=False))
    worker.take()
    worker.boot += 1
    worker.state("ready")  # it was restarted between two messages
    worker.finish(worker.take(), "whatever")
    heard.thread.join(10)
    assert (heard.error, heard.pieces) == (None, ["whatever"])


def test_a_worker_that_is_stopped_on_purpose_hands_its_requests_over(on_air, herd):
    """The one that it answers, and those that wait."""
    first = on_air(ScriptedModel(["Open", " it"], gated=True), pool=herd.name)
    answers = [in_thread(herd.generate(f"question {i}")) for i in range(3)]
    first.model.gate.release()
    wait_until(lambda: any(heard.pieces for heard in answers))
    second = on_air(ScriptedModel(["Open", " it"]), pool=herd.name)
    first.service.stop()
    for heard in answers:
        heard.thread.join(20)
        assert (heard.error, heard.pieces) == (None, ["Open", " it"])
    assert len(second.model.asked) == 3


def test_a_state_from_before_the_acceptance_replaces_nobody(herd, play):
    """What the broker has kept of an earlier start may come after the acceptance."""
    worker = play("played-5")
    worker.state("lost")
    worker.boot += 1
    heard = in_thread(herd.generate("x"))
    taken = worker.take()
    worker.finish(taken, "once")
    heard.thread.join(10)
    assert heard.pieces == ["once"]
    assert worker.requests.empty()


def test_silence_is_asked_again_and_taken_back_from_whoever_comes_late(herd, play, monkeypatch):
    monkeypatch.setattr(failover, "SILENCE_S", 0.2)
    slow = play("played-6")
    heard = in_thread(herd.generate("x"))
    first = slow.requests.get(timeout=5)  # and says nothing
    second = slow.requests.get(timeout=5)
    slow.say(first, {"accepted": True, "boot": 1})  # too late
    cancel = slow.cancels.get(timeout=5)
    assert cancel.properties.CorrelationData == first.properties.CorrelationData
    slow.say(second, {"accepted": True, "boot": 1})
    slow.finish(second, "here")
    heard.thread.join(10)
    assert heard.pieces == ["here"]


def test_a_request_that_a_broker_gives_to_two_is_taken_back_from_the_second(herd, play):
    worker, other = play("played-7"), play("played-8")
    other.peer.client.unsubscribe(f"$share/{herd.name}/stonechat/1/pool/{herd.name}/generate")
    heard = in_thread(herd.generate("x"))
    wait_until(lambda: worker.requests.qsize() + other.requests.qsize() > 0)
    if other.requests.qsize():
        worker, other = other, worker
    taken = worker.take()
    worker.say(taken, {"seq": 0, "text": "a"})
    wait_until(lambda: heard.pieces == ["a"])
    other.say(taken, {"accepted": True, "boot": 1})
    assert other.cancels.get(timeout=5).properties.CorrelationData == taken.properties.CorrelationData
    other.say(taken, {"seq": 1, "text": "z"})
    worker.finish(taken, "ab")
    heard.thread.join(10)
    assert heard.pieces == ["a", "b"]


def test_a_pool_that_is_not_there_is_told_by_name(herd, monkeypatch):
    monkeypatch.setattr(failover, "SILENCE_S", 0.1)
    monkeypatch.setattr(failover, "NOBODY_S", 0.3)
    with pytest.raises(UnreachableError, match=f"nobody in the pool '{herd.name}' takes requests"):
        list(herd.generate("x"))


def test_the_deadline_says_how_often_it_was_asked_and_why(herd, play):
    worker = play("played-9")
    heard = in_thread(herd.generate("x", timeout_s=1.9))
    for _ in range(3):
        message = worker.take()
        worker.say(message, {"error": {"code": "busy", "message": "full", "retry_after_ms": 50}})
        assert json.loads(message.payload)["deadline_ms"] <= 1900
    heard.thread.join(10)  # it asks a fourth time; that nobody takes this one is no news in what is left of 1.9 s
    assert str(heard.error) == (
        f"pool {herd.name!r} gave no answer within 1.9 s; it was asked 4 times, and at last device 'played-9' was busy."
        " Try again, or allow more with --timeout."
    )


def test_an_error_of_the_request_itself_is_not_tried_elsewhere(herd, play):
    worker = play("played-10")
    heard = in_thread(herd.generate("x"))
    worker.say(worker.take(), {"error": {"code": "context_overflow", "message": "too long"}})
    heard.thread.join(10)
    assert isinstance(heard.error, ConfigurationError)
    assert worker.requests.empty()


def test_cancel_reaches_the_worker_that_has_it(on_air, herd):
    device = on_air(ScriptedModel(["a", "b", "c"], gated=True), pool=herd.name)
    answer = herd.generate("x")
    device.model.gate.release()
    assert next(answer) == "a"
    answer.cancel()
    assert list(answer) == []
    assert (answer.final.finish, answer.final.text) == ("cancelled", "a")


def test_cancel_before_anybody_took_it_stops_asking(herd):
    answer = herd.generate("x")
    heard = in_thread(answer)
    wait_until(lambda: answer._course._session is not None)
    answer.cancel()
    heard.thread.join(5)
    assert (heard.error, answer.final.finish) == (None, "cancelled")


def test_a_draw_has_a_seed_so_that_another_worker_draws_the_same(herd, play):
    worker = play("played-11")
    heard = in_thread(herd.generate("x", temperature=0.8))
    first = worker.take()
    worker.boot += 1
    worker.state("ready")
    second = worker.take()
    seeds = {json.loads(message.payload)["seed"] for message in (first, second)}
    worker.finish(second, "a")
    heard.thread.join(10)
    assert len(seeds) == 1
