"""A record says what an answer was given to and by what, and never holds what `redact` names."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_runtime.brain.budget import Budget
from device_runtime.brain.kept_examples import KeptLines
from device_runtime.client.records import kept_records
from device_runtime.errors import StonechatError
from device_runtime.fleet.links import Link, Window
from device_runtime.fleet.policies.escalation import Escalation, Redaction, Target
from device_runtime.fleet.policies.recording import Recording
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.update.active import open_bundle
from tests.device_runtime.conftest import OnAir
from tests.support.far_server import FarServer
from tests.support.mqtt_peer import Peer
from tests.support.scripted_fleet import wait_until
from tests.support.scripted_model import ScriptedModel

ANSWER = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}}
LINK = Link(name="sort", source="in/note", prompt="Note: {{ note }} by {{ badge }}", to="out/kind", answer=ANSWER)
BUNDLE = Path(__file__).parents[3] / "examples" / "log-triage" / "bundle"


def model() -> ScriptedModel:
    made = ScriptedModel(['{"kind": "a"}'])
    made.confidence = {"kind": 0.6}
    made.encode = lambda messages: [len(m["content"]) for m in messages]  # type: ignore[attr-defined]
    made.manifest = replace(open_bundle(BUNDLE).manifest, purpose=None)  # type: ignore[attr-defined]
    return made


def ask(device: OnAir, **fields: Any) -> dict[str, Any]:
    reply_to = device.ask(schema=ANSWER, **fields)
    return device.client.until(lambda topic, value: topic == reply_to)[-1][1]


def test_a_request_gets_the_record_of_its_answer(on_air: Callable[..., OnAir]) -> None:
    record = ask(on_air(model()), prompt="hello", record=True)["record"]
    assert record["tokens"] == [5] and record["schema"] == ANSWER and record["text"] == '{"kind": "a"}'
    assert record["confidence"] == {"kind": 0.6} and record["took_ms"] > 0
    manifest = open_bundle(BUNDLE).manifest
    assert record["bundle"] == {
        "name": manifest.name, "version": manifest.version, "sha256": manifest.files["model.tflite"].sha256,
    }  # fmt: skip


def test_its_schema_says_nothing_of_what_is_withheld(on_air: Callable[..., OnAir]) -> None:
    device = on_air(model(), recording=Recording(redact=(Redaction("badge"),)))
    label = {"type": "object", "properties": {"kind": {"enum": ["a", "B-77"]}}, "description": "B-77 or B-78"}
    prompt = json.dumps({"badge": "B-77", "note": "x"})
    reply_to = device.ask(schema={**label, "default": {"badge": "B-78"}}, prompt=prompt, record=True)
    record = device.client.until(lambda topic, value: topic == reply_to)[-1][1]["record"]
    assert record["schema"]["properties"] == {"kind": {"enum": ["a", "[withheld]"]}}
    assert "B-77" not in json.dumps(record) and "B-78" not in json.dumps(record)


def test_they_can_be_switched_off(on_air: Callable[..., OnAir]) -> None:
    device = on_air(model(), recording=Recording(on_request=False))
    assert "record" not in ask(device, prompt="hello", record=True)
    assert not (device.service.config.state_dir / "records.jsonl").exists()


def test_without_a_word_none_is_kept(on_air: Callable[..., OnAir]) -> None:
    device = on_air(model())
    ask(device, prompt="hello")
    assert not (device.service.config.state_dir / "records.jsonl").exists()


def test_a_fleet_s_records_are_read_page_by_page(
    on_air: Callable[..., OnAir], peer: Callable[..., Peer], port: int
) -> None:
    device, listener = on_air(model(), recording=Recording(keep=100), links=(LINK,)), peer()
    listener.subscribe("out/kind")
    for number in range(60):
        device.client.publish("in/note", {"note": f"n{number}", "badge": "B"})
        listener.next()
    found = list(kept_records(BrokerAddress("127.0.0.1", port), device.topics.device))
    assert [entry["reading"]["note"] for entry in found] == [f"n{number}" for number in range(60)]
    assert found[0]["link"] == "sort" and found[0]["tokens"] == [len("Note: n0 by B")]


def test_what_is_redacted_is_in_no_record_and_no_example(
    on_air: Callable[..., OnAir], peer: Callable[..., Peer], far: FarServer
) -> None:
    far.say = lambda body: '{"kind": "b"}'
    policy = Escalation(Target(url=far.url, model="m"), redact=(Redaction("badge"),))
    script, listener = model(), peer()
    seen: list[str] = []
    script.encode = lambda messages: seen.extend(m["content"] for m in messages) or [1]  # type: ignore[attr-defined]
    recording = Recording(keep=10, redact=(Redaction(pattern="[0-9]{5}", replace="<n>"),))
    device = on_air(script, recording=recording, links=(LINK,), escalate=policy)
    listener.subscribe("out/kind")
    device.client.publish("in/note", {"note": "S-77 left 12345", "badge": "S-77"})
    assert listener.next()[1]["reading"]["badge"] == "S-77"  # the answer goes to the site, whole
    kept = "".join(file.read_text() for file in device.service.config.state_dir.glob("*.jsonl"))
    assert kept.count("\n") == 2 and "S-77" not in kept and "12345" not in (seen[0] + json.dumps(seen))
    assert seen == ["Note: [withheld] left <n> by N/A"]


def test_a_prompt_that_cannot_be_redacted_is_left_out(on_air: Callable[..., OnAir]) -> None:
    device = on_air(model(), recording=Recording(redact=(Redaction("badge"),)))
    record = ask(device, prompt="badge S-77", record=True)["record"]
    assert "tokens" not in record and "cannot be found in it" in record["withheld"] and "S-77" not in json.dumps(record)


def test_a_link_s_prompt_is_kept_without_what_its_window_topic_and_filters_say(
    on_air: Callable[..., OnAir], peer: Callable[..., Peer]
) -> None:
    window = "{{ window | map(attribute='badge') | list }}"
    prompt = f"{{{{ topic[1] }}}}|{{{{ badge | upper }}}}|{{{{ n }}}}|{window}|{{{{ reading | tojson }}}}"
    link = replace(LINK, source="in/+", prompt=prompt, window=Window(60, 3))
    script, listener, seen = model(), peer(), list[str]()
    script.encode = lambda messages: seen.extend(m["content"] for m in messages) or [1]  # type: ignore[attr-defined]
    redact = (Redaction("badge"), Redaction("topic"), Redaction("n"))
    device = on_air(script, recording=Recording(keep=10, redact=redact), links=(link,))
    listener.subscribe("out/kind")
    for badge in ('Ann "A"', "Bob B"):
        device.client.publish("in/ward7", {"badge": badge, "n": 7, "ok": 1})
        listener.next()
    assert seen[0] == '[withheld]|N/A|N/A|[]|{"ok": 1}'
    assert not [secret for secret in ("Ann", "ANN", "Bob", "BOB", "ward", "7") if secret in seen[1]]
    kept = [json.loads(line) for line in (device.service.config.state_dir / "records.jsonl").read_text().splitlines()]
    assert [(entry["reading"], entry["redacted"]) for entry in kept] == [({"ok": 1}, True)] * 2


def test_lines_that_no_json_in_utf_8_can_hold_end_neither_the_device_nor_a_query(
    on_air: Callable[..., OnAir], port: int, tmp_path: Path
) -> None:
    """Another program may have written them: what they say could not be sent, nor be written once more."""
    lines = [r'{"time": "2999", "text": "half \ud800"}', '{"time": "2999", "text": "whole"}']
    lines += ['{"time": "2999", "text": NaN}', '{"time": "2999", "text": 1e999}', '{"time": "2000", "text": "old"}']
    (tmp_path / "state").mkdir()
    for name in ("records.jsonl", "examples.jsonl", "corrections.jsonl"):
        (tmp_path / "state" / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    device = on_air(model(), recording=Recording(keep=9), state_dir=tmp_path / "state")
    wait_until(lambda: b"old" not in (tmp_path / "state" / "records.jsonl").read_bytes())
    assert ask(device, prompt="hello", record=True)["record"]["tokens"] == [5]
    here = BrokerAddress("127.0.0.1", port), device.topics.device
    assert [entry["text"] for entry in kept_records(*here)] == ["whole", '{"kind": "a"}']
    assert [entry["text"] for entry in kept_records(*here, "examples")] == ["whole", "old"] * 2
    kept = (tmp_path / "state" / "records.jsonl").read_bytes().splitlines()
    assert [json.loads(line.decode())["text"] for line in kept] == ["whole", '{"kind": "a"}']


def test_a_query_of_another_kind_is_refused(on_air: Callable[..., OnAir], port: int) -> None:
    device = on_air(model())
    with pytest.raises(StonechatError, match="kind"):
        list(kept_records(BrokerAddress("127.0.0.1", port), device.topics.device, "secrets"))  # type: ignore[arg-type]


def test_what_is_added_while_old_ones_are_forgotten_is_kept(tmp_path: Path) -> None:
    """It was written over, once an hour and at each start, by what had been read before it came."""
    kept = KeptLines(tmp_path / "r.jsonl", 10)
    for number in range(3):
        kept.add({"n": number})
    adding = threading.Thread(target=kept.add, args=({"n": 3},))

    def wanted(entry: dict[str, Any]) -> bool:
        if not adding.ident:
            adding.start()
            adding.join(0.2)  # it waits; before, it was through
        return bool(entry["n"] != 0)

    kept.keep_only(wanted)
    adding.join(10)
    assert [entry["n"] for entry in kept.entries()] == [1, 2, 3]


def test_the_file_is_bounded_and_forgets(tmp_path: Path) -> None:
    kept = KeptLines(tmp_path / "r.jsonl", 10)
    for number in range(100):
        kept.add({"n": number})
    assert [entry["n"] for entry in kept.entries()] == list(range(90, 100))
    assert (tmp_path / "r.jsonl").read_text().count("\n") <= 13
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write('{"n": 10')  # a power cut
    again = KeptLines(tmp_path / "r.jsonl", 10)
    assert [entry["n"] for entry in again.entries()][-1] == 99
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write("\n" + "[" * 100_000 + "\n")
    assert [entry["n"] for entry in KeptLines(tmp_path / "r.jsonl", 11).entries()][-1] == 99
    again.keep_only(lambda entry: entry["n"] > 97)
    assert [entry["n"] for entry in KeptLines(tmp_path / "r.jsonl", 10).entries()] == [98, 99]


@pytest.mark.parametrize(
    "damage", ["", "[]", '{"day": "2000-01-01"', '{"day": "2999-01-01", "spent": {"a": Infinity}}', "[" * 100_000]
)
def test_a_damaged_budget_is_begun_again(tmp_path: Path, damage: str) -> None:
    (tmp_path / "budget.json").write_text(damage)
    assert Budget(tmp_path / "budget.json").spend("a", 1)
    assert not Budget(tmp_path / "budget.json").spend("a", 1)
