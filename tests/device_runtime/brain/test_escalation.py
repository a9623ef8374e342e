"""A question goes on to a larger model when this device should not answer it alone; no local answer is lost."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from device_runtime.device.extensions import escalation as desks
from device_runtime.device.extensions.request_job import RequestJob
from device_runtime.errors import IncompleteError, OutdatedBundleError
from device_runtime.fleet.links import Link
from device_runtime.fleet.policies.escalation import Escalation, Redaction, Target
from device_runtime.fleet.policies.recording import Recording
from device_runtime.fleet.policies.routing import RouteRule, Routing
from device_runtime.fleet.questions import LinkExample, Unsure
from device_runtime.fleet.settings import ModelSettings
from tests.device_runtime.conftest import OnAir
from tests.support.brokers import free_port
from tests.support.far_server import FarServer
from tests.support.mqtt_peer import Peer
from tests.support.scripted_fleet import wait_until
from tests.support.scripted_model import ScriptedModel

ANSWER = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}, "required": ["kind"]}
OURS, THEIRS = {"kind": "a"}, {"kind": "b"}
_NUMBERS = itertools.count(1)
LINK = Link(name="sort", source="in/+/note", prompt="Note: {{ value }}", to="out/kind", answer=ANSWER, deadline_s=20)


def policy(far: FarServer, **fields: Any) -> Escalation:
    return Escalation(Target(url=far.url, model="large"), **fields)


def model(confidence: float = 0.5, pieces: Any = None, **fields: Any) -> ScriptedModel:
    made = ScriptedModel([json.dumps(OURS)] if pieces is None else pieces, **fields)
    made.confidence = {"kind": confidence}
    return made


def failing() -> ScriptedModel:
    made = model()
    made.fails_with = RuntimeError("of a kernel")
    return made


Start = Callable[..., tuple[OnAir, Peer]]


@pytest.fixture
def start(on_air: Callable[..., OnAir], peer: Callable[..., Peer], far: FarServer) -> Start:
    """A device with LINK, and a client that reads its answers."""
    far.say = lambda body: json.dumps(THEIRS)

    def make(
        script: ScriptedModel, escalate: Escalation | None, link: Link = LINK, **config: Any
    ) -> tuple[OnAir, Peer]:
        device, listener = on_air(script, links=(replace(link, escalate=escalate),), **config), peer()
        listener.subscribe("out/kind")
        return device, listener

    return make


def counts(device: OnAir) -> dict[str, Any]:
    found = next(e for e in device.service._extensions if isinstance(e, desks.Escalations))
    return found.health()["escalations"]["link sort"]


def kept(device: OnAir) -> list[dict[str, Any]]:
    found = next(e for e in device.service._extensions if isinstance(e, desks.Escalations))
    return found.examples.entries()


class TestLinks:
    def test_an_unsure_answer_is_replaced_by_the_larger_model_s(self, start: Start, far: FarServer) -> None:
        device, listener = start(model(0.5), policy(far))
        device.client.publish("in/7/note", "x")
        _, said = listener.next()
        assert said["answer"] == THEIRS and "unsure" not in said and said["reading"] == {"value": "x"}
        assert said["route"] == {
            "where": f"http://127.0.0.1:{far.port}", "model": "large",
            "why": "unsure: the confidence in kind is 0.50, below 0.8",
        }  # fmt: skip
        assert far.asked[0]["messages"] == [{"role": "user", "content": "Note: x"}]
        form = far.asked[0]["response_format"]["json_schema"]
        assert form["strict"] is True and form["schema"] == {**ANSWER, "additionalProperties": False}
        assert counts(device) == {"unsure": 1}

    @pytest.mark.parametrize(
        ("decides", "surely", "answer"),
        [
            ("unsure", None, {"kind": "a", "level": "high"}),  # what the device is sure of stays
            ("unsure", {"kind": 0.99, "level": 0.6}, {"kind": "a", "level": "high"}),
            ("unsure", {"kind": 0.99, "level": 0.4}, {"kind": "a", "level": "low"}),  # nobody knows: the less unsure
            ("all", {"kind": 0.99, "level": 0.4}, {"kind": "b", "level": "high"}),
        ],
    )
    def test_the_surer_of_both_has_each_field_unless_the_larger_model_decides_all(
        self,
        start: Start,
        far: FarServer,
        decides: Literal["unsure", "all"],
        surely: dict[str, float] | None,
        answer: dict[str, str],
    ) -> None:
        levels = {"enum": ["low", "high"]}
        form = {**ANSWER, "properties": {**ANSWER["properties"], "level": levels}, "required": ["kind", "level"]}
        script = model(pieces=[json.dumps({"kind": "a", "level": "low"})])
        script.confidence = {"kind": 0.9, "level": 0.5}
        device, listener = start(script, policy(far, decides=decides), replace(LINK, answer=form))
        far.say = lambda body: json.dumps({"kind": "b", "level": "high"})
        far.extra = {} if surely is None else {"stonechat": {"confidence": surely}}
        device.client.publish("in/7/note", "x")
        said = listener.next()[1]
        assert said["answer"] == answer and said["route"]["where"] != "here"
        if surely is not None and decides == "unsure":
            assert said["confidence"] == {"kind": 0.9, "level": max(0.5, surely["level"])}
        assert kept(device)[0]["answer"] == answer

    @pytest.mark.parametrize(
        ("theirs", "answer", "sure"),
        [
            ({"low": 0.4, "high": 0.6}, "low", 0.6 * 0.4 / (0.6 * 0.4 + 0.3 * 0.6)),  # by a little, theirs is "high"
            ({"low": 0.3, "high": 0.7}, "high", 0.3 * 0.7 / (0.6 * 0.3 + 0.3 * 0.7)),
            ({"low": 0.1, "high": 0.9}, "high", 0.3 * 0.9 / (0.6 * 0.1 + 0.3 * 0.9)),
            ({"low": 0.1, "normal": 0.4, "high": 0.5}, "high", None),  # below: of three
            ({"low": 0.1}, "high", 0.7),  # not the same values: the surer of both
            ({"low": -0.1, "high": 0.9}, "high", 0.7),
            ([["low", 0.9]], "high", 0.7),
        ],
    )
    def test_a_field_on_which_both_say_how_likely_each_value_is_has_what_both_together_find_likeliest(
        self, start: Start, far: FarServer, theirs: Any, answer: str, sure: float | None
    ) -> None:
        of_three = len(theirs) == 3
        levels = {"enum": ["low", "normal", "high"] if of_three else ["low", "high"]}
        form = {**ANSWER, "properties": {**ANSWER["properties"], "level": levels}, "required": ["kind", "level"]}
        script = model(pieces=[json.dumps({"kind": "a", "level": "low"})])
        script.confidence = {"kind": 0.9, "level": 0.6}
        script.probabilities = {
            "level": {"low": 0.5, "normal": 0.45, "high": 0.05} if of_three else {"low": 0.6, "high": 0.3}
        }
        device, listener = start(script, policy(far), replace(LINK, answer=form))
        far.say = lambda body: json.dumps({"kind": "b", "level": "high"})
        far.extra = {"stonechat": {"confidence": {"kind": 0.99, "level": 0.7}, "probabilities": {"level": theirs}}}
        device.client.publish("in/7/note", "x")
        said = listener.next()[1]
        if of_three:  # what neither finds likeliest alone
            answer, sure = "normal", 0.45 * 0.4 / (0.5 * 0.1 + 0.45 * 0.4 + 0.05 * 0.5)
        assert said["answer"] == {"kind": "a", "level": answer}
        assert said["confidence"] == pytest.approx({"kind": 0.9, "level": sure}, abs=1e-4)

    @pytest.mark.parametrize("decides", ["unsure", "all"])
    @pytest.mark.parametrize(
        "surely", [{"kind": 2}, {"kind": "much"}, [], "x", {"kind": None}, {"kind": True}, {"k": 1}]
    )
    def test_a_confidence_that_is_none_is_not_believed(
        self, start: Start, far: FarServer, surely: Any, decides: Literal["unsure", "all"]
    ) -> None:
        device, listener = start(model(0.5), policy(far, decides=decides))
        far.extra = {"stonechat": {"confidence": surely}}
        device.client.publish("in/7/note", "x")
        said = listener.next()[1]
        assert said["answer"] == THEIRS and "confidence" not in said

    @pytest.mark.parametrize("text", [json.dumps(THEIRS), "null"])
    def test_a_larger_model_that_says_it_is_unfamiliar_changes_no_answer(
        self, start: Start, far: FarServer, text: str
    ) -> None:
        device, listener = start(model(0.5), policy(far))
        far.say = lambda body: text
        far.extra = {"stonechat": {"unfamiliar": True, "reason": "x is 3; the model was trained for 0 to 2"}}
        device.client.publish("in/7/note", "x")
        said = listener.next()[1]
        assert said["answer"] == OURS and said["confidence"] == {"kind": 0.5} and said["unsure"] is True
        assert said["route"]["where"] == "here"
        where = f"http://127.0.0.1:{far.port}"
        assert said["route"]["failed"] == (
            f"{where}: it is unfamiliar there, too: x is 3; the model was trained for 0 to 2"
        )
        assert counts(device) == {"failed": 1} and kept(device) == []

    def test_where_the_device_has_no_answer_it_is_passed_on_with_what_is_said_of_it(
        self, start: Start, far: FarServer
    ) -> None:
        device, listener = start(failing(), policy(far))
        far.extra = {"stonechat": {"unfamiliar": True, "reason": "most of its words are new"}}
        device.client.publish("in/7/note", "x")
        said = listener.next()[1]
        assert said["answer"] == THEIRS and said["unsure"] is True
        assert said["reason"] == f"http://127.0.0.1:{far.port}: most of its words are new"
        assert counts(device) == {"malformed": 1}
        assert kept(device) == []  # nobody should be trained with it

    def test_no_answer_of_what_is_unfamiliar_there_says_so(self, start: Start, far: FarServer) -> None:
        device, _ = start(failing(), policy(far))
        far.say = lambda body: "null"
        far.extra = {"stonechat": {"unfamiliar": True, "reason": 7}}
        device.client.publish("in/7/note", "x")
        event = device.client.until(lambda topic, value: topic == device.topics.event)[-1][1]
        assert event["message"].endswith(f"http://127.0.0.1:{far.port}: it is unfamiliar there: it does not say why.")

    @pytest.mark.parametrize("other", [3, "x", ["confidence"], None])
    def test_what_another_server_calls_as_we_do_is_no_reason_to_refuse_its_answer(
        self, start: Start, far: FarServer, other: Any
    ) -> None:
        device, listener = start(model(0.5), policy(far))
        far.extra = {"stonechat": other}
        device.client.publish("in/7/note", "x")
        assert listener.next()[1]["answer"] == THEIRS

    def test_a_sure_one_stays_here_and_says_so(self, start: Start, far: FarServer) -> None:
        device, listener = start(model(0.9), policy(far))
        device.client.publish("in/7/note", "x")
        assert listener.next()[1]["route"] == {"where": "here", "model": "default"}
        assert far.asked == []

    def test_the_link_s_own_limit_counts(self, start: Start, far: FarServer) -> None:
        device, listener = start(model(0.6), policy(far), replace(LINK, unsure=Unsure(0.55, "escalate")))
        device.client.publish("in/7/note", "x")
        assert listener.next()[1]["answer"] == OURS

    def test_an_unfamiliar_reading_goes_on(self, start: Start, far: FarServer) -> None:
        script = model(0.99)
        script.unfamiliar = ("temp_c is 900",)
        device, listener = start(script, policy(far))
        device.client.publish("in/7/note", "x")
        assert listener.next()[1]["route"]["why"] == "unfamiliar: temp_c is 900"

    def test_so_does_one_on_which_the_model_fails(self, start: Start, far: FarServer) -> None:
        script = model()
        script.fails_with = RuntimeError("no")
        device, listener = start(script, policy(far))
        device.client.publish("in/7/note", "x")
        said = listener.next()[1]
        assert said["answer"] == THEIRS and said["route"]["why"] == "malformed: the model failed"

    def test_and_one_that_takes_too_long(self, start: Start, far: FarServer) -> None:
        device, listener = start(model(gated=True), policy(far, late_s=0.3))
        device.client.publish("in/7/note", "x")
        said = listener.next()[1]
        assert said["answer"] == THEIRS and said["route"]["why"].startswith("late")

    def test_a_hot_device_is_spared(self, start: Start, far: FarServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(desks, "temperature_c", lambda: 91.0)
        script = model(0.99)
        device, listener = start(script, policy(far))
        device.client.publish("in/7/note", "x")
        said = listener.next()[1]
        assert said["answer"] == THEIRS and said["route"]["why"] == "hot: the device has 91 °C"
        assert script.asked == []

    def test_and_answers_itself_where_nobody_else_does(
        self, start: Start, far: FarServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(desks, "temperature_c", lambda: 91.0)
        far.status = 503
        device, listener = start(model(0.99), policy(far))
        device.client.publish("in/7/note", "x")
        said = listener.next()[1]
        assert said["answer"] == OURS and said["route"]["where"] == "here" and "503" in said["route"]["failed"]

    def test_what_a_busy_device_has_no_time_for_goes_on(self, start: Start, far: FarServer) -> None:
        script = model(0.99, gated=True)
        device, listener = start(script, policy(far, busy=1, when=("busy",)))
        for number in range(3):  # one is under way, one waits, one goes on
            device.client.publish(f"in/{number}/note", "x")
            while not script.asked:
                time.sleep(0.01)
        said = listener.next()[1]
        assert said["topic"] == "in/2/note" and said["route"]["why"] == "busy: 1 wait already"

    def test_only_the_reasons_that_the_policy_names_count(self, start: Start, far: FarServer) -> None:
        device, listener = start(model(0.1), policy(far, when=("late",)))
        device.client.publish("in/7/note", "x")
        said = listener.next()[1]
        assert said["answer"] == OURS and said["unsure"] is True and far.asked == []

    def test_what_is_decided_here_is_this_device_s(self, start: Start, far: FarServer) -> None:
        answer = {"type": "object", "properties": {"who": {"type": "string"}, **ANSWER["properties"]}}  # type: ignore[dict-item]
        script = model(0.1, [json.dumps({"who": "Ann", **OURS})])
        far.say = lambda body: json.dumps({"who": "[withheld]", **THEIRS})
        link = replace(LINK, answer=answer, decide={"who": "name"}, prompt="Note: {{ note }} of {{ name }}")
        device, listener = start(script, policy(far, redact=(Redaction("name"),)), link)
        device.client.publish("in/7/note", {"note": "Ann is late", "name": "Ann"})
        assert listener.next()[1]["answer"] == {"who": "Ann", "kind": "b"}
        assert b"Ann" not in far.raw[0] and far.asked[0]["messages"][0]["content"] == "Note: [withheld] is late of N/A"

    def test_instruction_and_examples_say_nothing_of_what_is_withheld(self, start: Start, far: FarServer) -> None:
        link = replace(
            LINK, prompt="{{ note }} by {{ badge }}", system="Ask B-7 at +49 170 1234567.",
            examples=(
                LinkExample({"kind": "a"}, {"note": "B-8 is in", "badge": "B-8"}),
                LinkExample({"kind": "b"}, prompt="B-9"),
            ),
        )  # fmt: skip
        redact = (Redaction("badge"), Redaction(pattern=r"\+[0-9 ]{9,}", replace="<phone>"))
        device, listener = start(model(0.1), policy(far, redact=redact), link)
        device.client.publish("in/7/note", {"note": "late", "badge": "B-7"})
        assert listener.next()[1]["answer"] == THEIRS
        said = [message["content"] for message in far.asked[0]["messages"]]
        assert said == ["Ask [withheld] at <phone>.", "[withheld] is in by N/A", '{"kind": "a"}', "late by N/A"]


class TestFaults:
    """The local answer goes out, marked."""

    def check(self, said: dict[str, Any], failed: str) -> None:
        assert said["answer"] == OURS and said["unsure"] is True
        assert said["route"]["where"] == "here" and failed in said["route"]["failed"]
        assert said["route"]["why"] == "unsure: the confidence in kind is 0.50, below 0.8"

    @pytest.mark.parametrize(
        ("lie", "failed"),
        [
            ('{"kind": "c"}', "does not fit the schema"),
            ('{"kind": "b", "more": 1}', "does not fit the schema"),
            ("It is b.", "is no JSON"),
            ("", "is no JSON"),
            ('{"kind": NaN}', "is no JSON"),
            (None, "without a text"),
        ],
    )
    def test_a_far_side_that_lies_about_the_schema(
        self, start: Start, far: FarServer, lie: str | None, failed: str
    ) -> None:
        far.say = lambda body: lie
        device, listener = start(model(), policy(far))
        device.client.publish("in/7/note", "x")
        self.check(listener.next()[1], failed)
        assert counts(device) == {"failed": 1} and kept(device) == []

    def test_one_that_is_cut(self, start: Start, far: FarServer) -> None:
        far.finish = "length"
        device, listener = start(model(), policy(far))
        device.client.publish("in/7/note", "x")
        self.check(listener.next()[1], "limit of tokens")

    @pytest.mark.parametrize("drips", [False, True])
    def test_one_that_is_slow(
        self, start: Start, far: FarServer, drips: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "stonechat.serve")
        far.wait_s, far.drips = (0.0, True) if drips else (5.0, False)
        device, listener = start(model(), policy(far, timeout_s=0.5))
        begun_s = time.monotonic()
        device.client.publish("in/7/note", "x")
        self.check(listener.next()[1], "in time")
        assert time.monotonic() - begun_s < 4  # 0.5, on a busy machine
        assert re.search("a question that was passed on has no answer: .* in time", caplog.text)

    def test_one_that_is_slower_than_the_deadline(self, start: Start, far: FarServer) -> None:
        far.wait_s = 5.0
        device, listener = start(model(), policy(far), replace(LINK, deadline_s=1.0))
        device.client.publish("in/7/note", "x")
        self.check(listener.next()[1], "in time")

    def test_one_that_is_gone(self, start: Start, far: FarServer) -> None:
        gone = Escalation(Target(url=f"http://127.0.0.1:{free_port()}/v1", model="large"))
        device, listener = start(model(), gone)
        device.client.publish("in/7/note", "x")
        self.check(listener.next()[1], "cannot be reached")

    def test_one_that_asks_for_a_key(self, start: Start, far: FarServer) -> None:
        far.status = 401
        device, listener = start(model(), policy(far))
        device.client.publish("in/7/note", "x")
        self.check(listener.next()[1], "check `key_file`")

    def test_a_budget_that_is_spent_also_after_a_restart(self, start: Start, far: FarServer, tmp_path: Path) -> None:
        for number in range(2):
            folder = tmp_path / "kept"
            device, listener = start(model(), policy(far, requests_a_day=1), device=f"one-{number}", state_dir=folder)
            device.client.publish("in/7/note", "x")
            said = listener.next()[1]
            if number == 0:
                assert said["answer"] == THEIRS and counts(device) == {"unsure": 1, "today": 1}
            else:
                self.check(said, "today's budget of 1 question is spent")
            device.service.stop()
            wait_until(lambda client=device.service._client: not client.connected)  # or both would answer
        assert len(far.asked) == 1

    def test_a_device_that_stops_sends_what_it_has(self, start: Start, far: FarServer) -> None:
        far.wait_s = 20.0
        device, listener = start(model(), policy(far))
        device.client.publish("in/7/note", "x")
        while not far.asked:
            time.sleep(0.01)
        device.service.stop()
        self.check(listener.next()[1], "shutting down")

    def test_unsure_answers_that_are_skipped_are_skipped_when_nobody_knows_better(
        self, start: Start, far: FarServer
    ) -> None:
        far.status = 500
        device, listener = start(model(), policy(far), replace(LINK, unsure=Unsure(0.8, "skip")))
        own = device.topics.link("sort")
        device.client.publish("in/7/note", "x")
        said = device.client.until(lambda topic, value: topic == own)[-1][1]
        assert said["answer"] is None and "500" in said["route"]["failed"] and listener.silent()


def test_the_queue_goes_on_while_the_larger_model_thinks(start: Start, far: FarServer) -> None:
    far.wait_s = 2.0
    script = model(0.5)
    device, listener = start(script, policy(far, at_once=1))
    device.client.publish("in/0/note", "x")
    while not script.asked:
        time.sleep(0.01)
    script.confidence = {"kind": 0.9}
    begun_s = time.monotonic()
    device.client.publish("in/1/note", "y")
    assert listener.next()[1]["topic"] == "in/1/note" and time.monotonic() - begun_s < 2
    assert listener.next()[1]["topic"] == "in/0/note"
    retained = Peer(device.client.port)
    retained.subscribe(device.topics.link("sort"))
    assert retained.next()[1]["topic"] == "in/1/note"  # the newest reading's answer, though it came first
    retained.close()


@pytest.mark.parametrize("refusal", [422, 500])
def test_a_server_that_knows_no_json_schema_is_asked_in_its_own_way(start: Start, far: FarServer, refusal: int) -> None:
    far.refuses, far.refusal = {"json_schema"}, refusal
    device, listener = start(model(), policy(far))
    for _ in range(2):
        device.client.publish("in/7/note", "x")
        assert listener.next()[1]["answer"] == THEIRS
    kinds = [body["response_format"]["type"] for body in far.asked]
    assert kinds == ["json_schema", "json_object", "json_object"]
    far.refuses = {"json_schema", "json_object"}
    device.client.publish("in/7/note", "x")
    assert listener.next()[1]["answer"] == THEIRS
    assert "response_format" not in far.asked[-1] and "JSON schema" in far.asked[-1]["messages"][0]["content"]


def test_the_key_goes_along_and_is_in_no_message(
    start: Start, far: FarServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "key").write_text("sk-secret\n")
    target = Target(url=far.url, model="large", key_file=str(tmp_path / "key"))
    device, listener = start(model(), Escalation(target))
    device.client.publish("in/7/note", "x")
    assert "sk-secret" not in json.dumps(listener.next()[1]) and "sk-secret" not in caplog.text
    assert far.headers[0]["Authorization"] == "Bearer sk-secret"


def test_corrected_answers_are_kept_as_examples(start: Start, far: FarServer) -> None:
    device, listener = start(model(0.5), policy(far, redact=(Redaction(pattern="[0-9]+", replace="<n>"),)))
    device.client.publish("in/7/note", "room 12")
    listener.next()
    (example,) = kept(device)
    assert example["input"] == {"prompt": "Note: room <n>"} and example["answer"] == THEIRS
    assert example["local"] == {"text": json.dumps(OURS), "confidence": {"kind": 0.5}}
    assert (example["why"], example["link"]) == ("unsure", "sort")


class TestRequests:
    def ask(self, device: OnAir, **fields: Any) -> dict[str, Any]:
        number = next(_NUMBERS)
        asked = {"prompt": "x", "schema": ANSWER, **fields}
        reply_to = device.ask(session=str(number), correlation=number.to_bytes(2), **asked)
        return device.client.until(lambda topic, value: topic == reply_to and ("done" in value or "error" in value))[
            -1
        ][1]

    def test_an_unsure_answer_is_replaced(self, on_air: Callable[..., OnAir], far: FarServer) -> None:
        far.say = lambda body: json.dumps(THEIRS)
        device = on_air(model(0.4), escalate=policy(far))
        said = self.ask(device, stream=True)
        assert json.loads(said["text"]) == THEIRS and said["seq"] == 0  # no piece of the local answer went out
        assert said["route"]["where"].startswith("http://") and said["usage"]["completion_tokens"] == 7

    def test_a_free_answer_streams_as_ever(self, on_air: Callable[..., OnAir], far: FarServer) -> None:
        device = on_air(ScriptedModel(["one", " two"]), escalate=policy(far))
        reply_to = device.ask(prompt="x", stream=True)
        got = device.client.until(lambda topic, value: topic == reply_to and "done" in value)
        assert [value["text"] for topic, value in got if topic == reply_to] == ["one", " two", "one two"]

    def test_where_the_far_side_fails_the_answer_says_so(self, on_air: Callable[..., OnAir], far: FarServer) -> None:
        far.status = 500
        said = self.ask(on_air(model(0.4), escalate=policy(far)))
        assert json.loads(said["text"]) == OURS and "500" in said["route"]["failed"]

    @pytest.mark.parametrize("extra", [{}, {"stonechat": {"unfamiliar": True, "reason": "\ud800"}}])
    def test_half_a_character_of_the_far_side_goes_no_further(
        self, on_air: Callable[..., OnAir], far: FarServer, extra: dict[str, Any]
    ) -> None:
        """JSON can say it; neither an answer nor a record could."""
        far.say, far.extra = lambda body: json.dumps(THEIRS) if extra else '{"kind": "\ud800"}', extra
        device = on_air(model(0.4), escalate=policy(far), recording=Recording(keep=9))
        said = self.ask(device, record=True)
        assert json.loads(said["text"]) == OURS
        assert said["route"]["failed"].endswith("holds half of a surrogate pair, which is no character.")
        free = self.ask(device, schema=None, prompt="y")
        assert json.loads(free["text"]) == OURS  # the device goes on
        kept = (device.service.config.state_dir / "records.jsonl").read_bytes().decode()
        assert [json.loads(line)["text"] for line in kept.splitlines()] == [json.dumps(OURS)] * 2

    def test_nor_in_a_free_text(self, on_air: Callable[..., OnAir], far: FarServer) -> None:
        far.say = lambda body: "half \ud800"
        device = on_air(failing(), escalate=policy(far), recording=Recording(keep=9))
        for _ in range(2):
            assert "holds half of a surrogate pair" in self.ask(device, schema=None)["error"]["message"]

    @pytest.mark.parametrize(
        ("fails_with", "code", "words"),
        [
            (OutdatedBundleError("It is of before."), "bundle", "It is of before; and http"),
            (RuntimeError("no"), "failed", "the model failed; and http"),
            (IncompleteError("It was cut."), "incomplete", "It was cut; and http"),
        ],
    )
    def test_where_both_fail_the_error_is_this_device_s_own(
        self, on_air: Callable[..., OnAir], far: FarServer, fails_with: Exception, code: str, words: str
    ) -> None:
        far.status = 500
        script = model(0.4)
        script.fails_with = fails_with
        device = on_air(script, escalate=policy(far), links=(LINK,))
        error = self.ask(device)["error"]
        assert error["code"] == code and error["message"].startswith(words) and "500" in error["message"]
        assert not error["message"].endswith("..")
        device.client.publish("in/7/note", "x")
        event = device.client.until(lambda topic, value: topic == device.topics.event)[-1][1]
        assert event["event"] == code and event["message"].startswith(words)

    def test_fields_that_cannot_be_found_keep_a_request_here(
        self, on_air: Callable[..., OnAir], far: FarServer
    ) -> None:
        device = on_air(model(0.4), escalate=policy(far, redact=(Redaction("badge"),)))
        said = self.ask(device, prompt="my badge is 1234")
        assert json.loads(said["text"]) == OURS and "no JSON object" in said["route"]["failed"] and far.asked == []
        far.say = lambda body: json.dumps(THEIRS)
        said = self.ask(device, prompt=json.dumps({"badge": "1234", "note": "1234 is late"}))
        assert json.loads(said["text"]) == THEIRS and b"1234" not in far.raw[0]

    def test_a_schema_of_the_request_says_nothing_of_what_is_withheld(
        self, on_air: Callable[..., OnAir], far: FarServer
    ) -> None:
        far.say = lambda body: json.dumps(THEIRS)
        device = on_air(model(0.4), escalate=policy(far, redact=(Redaction("badge"),)))
        prompt = json.dumps({"badge": "B-1234", "note": "late"})
        about = {"description": "of B-1234", "examples": [{"badge": "B-77", "kind": "a"}], "title": "B-77 too"}
        said = self.ask(device, prompt=prompt, schema={**ANSWER, **about})
        assert json.loads(said["text"]) == THEIRS
        assert b"B-1234" not in far.raw[0] and b"B-77" not in far.raw[0]
        label = {"type": "object", "properties": {"kind": {"enum": ["a", "B-1234"]}}, "required": ["kind"]}
        said = self.ask(device, prompt=prompt, schema=label)
        assert json.loads(said["text"]) == OURS and "the answer's schema demands" in said["route"]["failed"]
        assert len(far.asked) == 1

    def test_a_cancel_reaches_a_question_that_was_passed_on(self, on_air: Callable[..., OnAir], far: FarServer) -> None:
        far.wait_s = 20.0
        device = on_air(model(0.4), escalate=policy(far))
        reply_to = device.ask(prompt="x", schema=ANSWER)
        while not far.asked:
            time.sleep(0.01)
        device.client.publish(device.topics.cancel, {}, ResponseTopic=reply_to, CorrelationData=b"c1")
        last = device.client.until(lambda topic, value: topic == reply_to)[-1][1]
        assert last["finish"] == "cancelled"

    def test_a_cancel_between_the_local_answer_and_the_larger_model_is_not_lost(
        self, on_air: Callable[..., OnAir], far: FarServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        far.wait_s = 20.0
        device = on_air(model(0.4), escalate=policy(far))
        question = desks.Escalations.question

        def take_long(*args: Any, **fields: Any) -> Any:
            reply_to = device.topics.reply("tester", "1")
            device.client.publish(device.topics.cancel, {}, ResponseTopic=reply_to, CorrelationData=b"c1")
            device.ask(prompt="the next", session="2", correlation=b"c2")
            device.until_waiting(1)  # so the cancel was read as well
            monkeypatch.undo()
            return question(*args, **fields)

        monkeypatch.setattr(desks.Escalations, "question", take_long)
        reply_to = device.ask(prompt="x", schema=ANSWER)
        last = device.client.until(lambda topic, value: topic == reply_to)[-1][1]
        assert last["finish"] == "cancelled"

    def test_a_cancel_between_the_larger_model_and_the_device_s_own_queue_is_not_lost(
        self,
        on_air: Callable[..., OnAir],
        peer: Callable[..., Peer],
        far: FarServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        far.status = 500
        script = model(0.9, gated=True)
        device = on_air(script, escalate=policy(far, when=("busy",), busy=1))
        listener, without = peer(), RequestJob._without
        listener.subscribe(device.topics.reply("tester", "4"))

        def take_long(*args: Any) -> None:
            reply_to = device.topics.reply("tester", "3")
            device.client.publish(device.topics.cancel, {}, ResponseTopic=reply_to, CorrelationData=b"c3")
            device.ask(prompt="to no model", session="4", correlation=b"c4", model="unknown")
            listener.next()  # so the cancel was read as well
            without(*args)

        monkeypatch.setattr(RequestJob, "_without", take_long)
        device.ask(prompt="runs", session="1", correlation=b"c1")
        device.client.until(lambda topic, value: value.get("state") == "busy")
        device.ask(prompt="waits", session="2", correlation=b"c2")
        device.until_waiting(1)
        reply_to = device.ask(prompt="is passed on", session="3", correlation=b"c3")
        last = device.client.until(lambda topic, value: topic == reply_to)[-1][1]
        assert last["finish"] == "cancelled"
        script.gate.release(100)
        device.client.until(lambda topic, value: topic == device.topics.reply("tester", "2"))
        wait_until(lambda: not len(device.service._device.queue))
        assert len(script.asked) == 2


class TestDevices:
    def test_a_device_asks_another_and_a_pool(self, start: Start, on_air: Callable[..., OnAir], far: FarServer) -> None:
        on_air(model(0.9, [json.dumps(THEIRS)]), device="big-one", pool="herd")
        for target, where in ((Target(device="big-one"), "device big-one"), (Target(pool="herd"), "pool herd")):
            device, listener = start(model(0.3), Escalation(target))
            device.client.publish("in/7/note", "x")
            said = listener.next()[1]
            assert said["answer"] == THEIRS and said["route"]["where"].startswith(where)
            device.service.stop()

    @pytest.mark.parametrize("routing", [None, Routing((RouteRule("'late' in text", "second"),))])
    def test_the_route_has_the_model_that_answered_there_where_the_policy_names_none(
        self, on_air: Callable[..., OnAir], peer: Callable[..., Peer], routing: Routing | None
    ) -> None:
        scripts = {name: model(0.9, [json.dumps(THEIRS)]) for name in ("first", "second")}
        models = tuple(ModelSettings(name) for name in scripts)
        there = "first" if routing is None else "second"
        other = on_air(scripts=scripts, models=models, routing=routing)
        name = other.topics.device
        device, listener = on_air(model(0.3), links=(LINK,), escalate=Escalation(Target(device=name))), peer()
        listener.subscribe("out/kind")
        device.client.publish("in/7/note", "late")
        route = listener.next()[1]["route"]
        assert (route["where"], route["model"]) == (f"device {name}", there)
        reply_to = device.ask(prompt="late again", schema=ANSWER)
        route = device.client.until(lambda topic, value: topic == reply_to)[-1][1]["route"]
        assert (route["where"], route["model"]) == (f"device {name}", there)
        reply_to = other.ask(prompt="late", schema=ANSWER)
        said = other.client.until(lambda topic, value: topic == reply_to)[-1][1]
        assert ("route" in said) == (routing is not None)  # its own client knows whom it has asked

    def test_a_chain_ends(self, start: Start, on_air: Callable[..., OnAir], far: FarServer) -> None:
        """Two devices that escalate to each other: `check` refuses that, two fleet files can still say so."""
        on_air(model(0.2), device="left", escalate=Escalation(Target(device="right")))
        on_air(model(0.2), device="right", escalate=Escalation(Target(device="left")))
        device, listener = start(model(0.3), Escalation(Target(device="left")))
        device.client.publish("in/7/note", "x")
        assert listener.next()[1]["answer"] == OURS

    def test_one_that_is_not_there_costs_nothing_but_time(self, start: Start, far: FarServer) -> None:
        device, listener = start(model(0.5), Escalation(Target(device="nobody")))
        device.client.publish("in/7/note", "x")
        said = listener.next()[1]
        assert said["answer"] == OURS and "no device 'nobody'" in said["route"]["failed"]
