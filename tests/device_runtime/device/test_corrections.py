"""A person corrects an answer over MQTT; it is kept for the next training, and `task harvest` takes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_runtime.brain.budget import Budget
from device_runtime.brain.kept_examples import KeptLines
from device_runtime.client.corrections import correct
from device_runtime.client.records import kept_records
from device_runtime.device.extensions.link_places import LinkPlaces
from device_runtime.errors import CannotRedactError, DiskFullError, StonechatError
from device_runtime.fleet.links import MAX_SENT_BYTES, Link, Window
from device_runtime.fleet.policies.escalation import Redaction
from device_runtime.fleet.policies.recording import Recording
from device_runtime.fleet.policies.routing import RouteRule, Routing
from device_runtime.fleet.settings import ModelSettings
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.update.active import open_bundle
from tests.device_runtime.conftest import OnAir
from tests.support.scripted_fleet import wait_until
from tests.support.scripted_model import ScriptedModel
from toolkit.broker.files import write_private
from toolkit.cli import main
from toolkit.train.arrays import write_arrays

EXAMPLES = Path(__file__).parents[3] / "examples"
RIGHT, WRONG = {"category": "network", "priority": "high"}, {"category": "none", "priority": "low"}
LOGS = Link(name="logs", source="logs/+", prompt="{{ value }}", to="out/logs", parse="text", answer_of_model=True)
BOILER = Link(
    name="boiler", source="plant/+", prompt="{{ dict(reading, window=window) | tojson }}", to="out/b",
    window=Window(), answer_of_model=True,
)  # fmt: skip
Correct = Callable[..., Mapping[str, Any]]


def model(task: str = "log-triage") -> ScriptedModel:
    made = ScriptedModel([json.dumps(WRONG)])
    made.manifest = open_bundle(EXAMPLES / task / "bundle").manifest  # type: ignore[attr-defined]
    return made


def kept(device: OnAir) -> list[dict[str, Any]]:
    return list(kept_records(broker(device), device.topics.device, "examples"))


def broker(device: OnAir) -> BrokerAddress:
    return BrokerAddress("127.0.0.1", device.client.port)


def send(device: OnAir, answer: Mapping[str, Any] = RIGHT, **fields: Any) -> Mapping[str, Any]:
    return correct(broker(device), device.topics.device, {"answer": answer, **fields})


def test_what_the_page_sends_of_a_link_is_kept_and_harvested(on_air: Callable[..., OnAir], tmp_path: Path) -> None:
    device = on_air(model(), links=(LOGS,))
    said = send(device, link="logs", topic="logs/a", reading="eth3: link down", said=WRONG, who="anna")
    assert said["kept"] is True and said["task"] == "log-triage"
    (example,) = kept(device)
    assert example["input"] == {"text": "eth3: link down"} and example["answer"] == RIGHT
    assert (example["by"], example["who"], example["vouched"], example["why"]) == ("person", "anna", False, "corrected")
    assert json.loads(example["local"]["text"]) == WRONG and example["time"].endswith("Z")
    state, out = device.service.config.state_dir, tmp_path / "corrected.jsonl"
    assert main(["task", "harvest", str(EXAMPLES / "log-triage"), "--from", str(state), "-o", str(out)]) == 0
    assert json.loads(out.read_text()) == {"input": {"text": "eth3: link down"}, "answer": RIGHT}


def test_a_name_that_the_broker_vouches_for_counts_more_than_what_somebody_says(on_air: Callable[..., OnAir]) -> None:
    device = on_air(model(), links=(LOGS,))
    found = {"answer": RIGHT, "prompt": "disk full", "who": "somebody else"}
    device.client.publish(device.topics.correct_by("anna"), found)  # nobody waits for a reply
    wait_until(lambda: kept(device))
    (example,) = kept(device)
    assert (example["who"], example["vouched"], example["input"]) == ("anna", True, {"text": "disk full"})


def test_a_reading_with_earlier_ones(on_air: Callable[..., OnAir]) -> None:
    device = on_air(model("boiler-advisor"), links=(BOILER,))
    reading = {"temp_c": 99, "bar": 1.4, "flow_l_min": 12}
    answer = {"severity": "alarm", "cause": "overheat", "advice": "Switch it off."}
    send(device, answer, link="boiler", reading=reading, window=[{**reading, "temp_c": 90}])
    assert kept(device)[0]["input"] == {**reading, "window": [{**reading, "temp_c": 90}]}


def test_an_answer_tells_the_earlier_readings_that_it_is_about(on_air: Callable[..., OnAir], tmp_path: Path) -> None:
    device = on_air(model("boiler-advisor"), links=(BOILER,))
    device.client.subscribe("out/b")
    reading = {"temp_c": 99, "bar": 1.4, "flow_l_min": 12}
    for temp_c in (80, 90, 99):
        device.client.publish("plant/1", {**reading, "temp_c": temp_c})
        heard = dict(device.client.until(lambda topic, value: topic == device.topics.link("boiler")))
        told, sent = heard[device.topics.link("boiler")], heard["out/b"]
        assert "window" not in sent  # who listens for answers has no use for it
    assert told["window"] == [{**reading, "temp_c": 80}, {**reading, "temp_c": 90}]
    answer = {"severity": "alarm", "cause": "overheat", "advice": "Switch it off."}
    assert TestTheCommand().run(device, "--link", "boiler", json.dumps(answer)) == 0
    state, out = device.service.config.state_dir, tmp_path / "corrected.jsonl"
    assert main(["task", "harvest", str(EXAMPLES / "boiler-advisor"), "--from", str(state), "-o", str(out)]) == 0
    assert json.loads(out.read_text()) == {"input": {**reading, "window": told["window"]}, "answer": answer}
    device.client.client.publish(device.topics.link("boiler"), b"", qos=1, retain=True).wait_for_publish(9)


def test_earlier_readings_that_are_too_many_are_not_told_and_have_to_be_named(on_air: Callable[..., OnAir]) -> None:
    device = on_air(model("boiler-advisor"), links=(BOILER,))
    reading = {"temp_c": 99, "bar": 1.4, "flow_l_min": 12}
    for padding in (MAX_SENT_BYTES, 0):
        device.client.publish("plant/1", {**reading, "note": "x" * padding})
        _, told = device.client.until(lambda topic, value: topic == device.topics.link("boiler"))[-1]
    assert "window" not in told and told["answer"] == WRONG
    answer = {"severity": "alarm", "cause": "overheat", "advice": "Switch it off."}
    with pytest.raises(StonechatError, match=r"give them as `window`, the oldest first.*more than 16 KiB"):
        send(device, answer, link="boiler", reading=reading)
    words = ["--link", "boiler", "--reading", json.dumps(reading), "--window", "[]", json.dumps(answer)]
    assert TestTheCommand().run(device, *words) == 0
    assert kept(device)[0]["input"] == {**reading, "window": []}
    device.client.client.publish(device.topics.link("boiler"), b"", qos=1, retain=True).wait_for_publish(9)


def test_what_is_withheld_of_earlier_readings_is_neither_recorded_nor_kept(on_air: Callable[..., OnAir]) -> None:
    link = replace(LOGS, parse="json", window=Window(), prompt="{{ note }} after {{ window | tojson }}")
    device = on_air(model(), links=(link,), recording=Recording(keep=9, redact=(Redaction("badge"),)))
    for note in ("came", "B-77 went"):
        device.client.publish("logs/a", {"note": note, "badge": "B-77"})
        _, told = device.client.until(lambda topic, value: topic == device.topics.link("logs"))[-1]
    send(device, link="logs", **{name: told[name] for name in ("reading", "topic", "window")})
    _, record = kept_records(broker(device), device.topics.device)
    assert record["reading"] == {"note": "[withheld] went"} and record["window"] == [{"note": "came"}]
    assert kept(device)[0]["input"] == {"text": '[withheld] went after [{"note": "came"}]'}
    assert "B-77" not in json.dumps([record, *kept(device)])
    device.client.client.publish(device.topics.link("logs"), b"", qos=1, retain=True).wait_for_publish(9)


def test_a_device_with_a_router_takes_what_its_router_would(on_air: Callable[..., OnAir]) -> None:
    rules = (RouteRule("topic[0] == 'logs'", "triage"), RouteRule("'link' in text", "triage"))
    models = {"home": model("home-commands"), "triage": model()}
    names = (ModelSettings("home"), ModelSettings("triage"))
    device = on_air(models=names, scripts=models, links=(LOGS,), routing=Routing(rules))
    assert send(device, prompt="eth3: link down")["task"] == "log-triage"
    assert send(device, link="logs", topic="logs/a", reading="eth3 is down")["task"] == "log-triage"
    assert [(entry["model"], entry["input"]) for entry in kept(device)] == [
        ("triage", {"text": "eth3: link down"}), ("triage", {"text": "eth3 is down"}),
    ]  # fmt: skip
    for fields in ({"prompt": "what is the time?"}, {"link": "logs", "topic": "other/a", "reading": "the time?"}):
        with pytest.raises(
            StonechatError, match="no router's file distinguishes home, triage, so no training could use it"
        ):
            send(device, **fields)


def test_what_is_withheld_is_not_kept(on_air: Callable[..., OnAir], capsys: pytest.CaptureFixture[str]) -> None:
    link = replace(LOGS, prompt="{{ note }} by {{ badge }}", parse="json")
    device = on_air(model(), links=(link,), recording=Recording(redact=(Redaction("badge"),)))
    send(device, link="logs", reading={"note": "B-77 is late", "badge": "B-77"}, said={**WRONG, "category": "B-77"})
    with pytest.raises(CannotRedactError, match=r"badge cannot be found in it.*give the prompt as a JSON object"):
        send(device, prompt="by B-77")
    words = ["--device", device.topics.device, "--broker", f"mqtt://127.0.0.1:{device.client.port}"]
    assert main(["correct", "category=network", "--prompt", "by B-77", *words, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "cannot_redact"
    assert "B-77" not in json.dumps(kept(device)) and len(kept(device)) == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"answer": {"category": "unheard", "priority": "high"}, "prompt": "x"}, "category is \"unheard\"; expected"),
        ({"answer": {"category": "network"}, "prompt": "x"}, "'priority' is missing"),
        ({"answer": RIGHT}, "needs either link and reading, or prompt"),
        ({"answer": RIGHT, "prompt": "x", "link": "logs"}, "needs either link and reading, or prompt"),
        ({"answer": RIGHT, "link": "log", "reading": "x"}, "no link 'log'; it has logs"),
        ({"answer": RIGHT, "link": "logs"}, "needs the reading"),
        ({"answer": RIGHT, "prompt": "x", "model": "m"}, "no model 'm'; it has default"),
        ({"prompt": "x"}, "answer"),
        ({"answer": RIGHT, "prompt": "x", "anwser": 1}, "anwser"),
        ({"answer": RIGHT, "link": "logs", "reading": " "}, "default cannot read what is corrected: there is no text"),
        ({"answer": RIGHT, "link": "logs", "reading": {"temp": 3}}, "'value' is undefined"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_nothing_is_kept(
    on_air: Callable[..., OnAir], fields: dict[str, Any], said: str
) -> None:
    device = on_air(model(), links=(LOGS,))
    with pytest.raises(StonechatError, match=said.replace("(", r"\(")):
        correct(broker(device), device.topics.device, fields)
    assert kept(device) == []


def test_what_is_no_json_is_answered_too(on_air: Callable[..., OnAir]) -> None:
    device = on_air(model(), links=(LOGS,))
    reply = device.topics.reply("me", "1")
    for topic in (device.topics.correct, device.topics.records):
        device.client.publish(topic, b"not json", ResponseTopic=reply)
        *_, (_, refused) = device.client.until(lambda topic, value: topic == reply)
        assert "the payload is not JSON" in refused["error"]["message"]


def test_a_reading_without_a_field_is_refused_also_where_others_are_withheld(on_air: Callable[..., OnAir]) -> None:
    link = replace(LOGS, prompt="{{ note }} by {{ badge }}", parse="json")
    device = on_air(model(), links=(link,), recording=Recording(redact=(Redaction("badge"),)))
    with pytest.raises(StonechatError, match="'note' is undefined"):
        send(device, link="logs", reading={"badge": "B-77"})
    send(device, link="logs", reading={"note": "late"}, who="B-77")  # as a record has it: without the badge
    send(device, link="logs", reading={"note": "late", "badge": "B-77"}, who="B-77")
    first, second = kept(device)
    assert first["input"] == second["input"] == {"text": "late by N/A"} and second["who"] == "[withheld]"


def test_a_links_own_schema_is_held_to_in_all_its_depth(on_air: Callable[..., OnAir]) -> None:
    inner = {"type": "object", "properties": {"kind": {"enum": ["leak", "noise"]}}, "required": ["kind"]}
    schema = {"type": "object", "properties": {"fault": inner, "note": {"type": "string"}}, "required": ["fault"]}
    device = on_air(ScriptedModel(["{}"]), links=(replace(LOGS, answer=schema, answer_of_model=False),))
    for wrong, said in (
        ({"fault": {"kind": "lek"}}, "does not fit the schema with fault, note"),
        ({"note": "x"}, "'fault' is missing"),
        ({"fault": {"kind": "leak"}, "note": 3}, "note is 3; expected string"),
    ):
        with pytest.raises(StonechatError, match=said):
            send(device, wrong, link="logs", reading="drip")
    assert kept(device) == []
    assert (
        send(device, {"fault": {"kind": "leak"}}, link="logs", reading="drip")["kept"] is True
    )  # `note` may be absent


class TestTheCommand:
    """`stonechat correct`, against a device on a broker."""

    def run(self, device: OnAir, *words: str) -> int:
        own = ["--device", device.topics.device, "--broker", f"mqtt://127.0.0.1:{device.client.port}"]
        return main(["correct", *own, *words])

    def test_the_last_answer_with_another_field(self, on_air: Callable[..., OnAir], capsys: Any) -> None:
        device = on_air(model(), links=(LOGS,))
        device.client.publish("logs/a", b"eth3: link down")
        device.client.until(lambda topic, value: topic == device.topics.link("logs"))
        assert self.run(device, "--link", "logs", "category=network") == 0
        (example,) = kept(device)
        assert example["input"] == {"text": "eth3: link down"} and example["answer"] == {**WRONG, "category": "network"}
        assert json.loads(example["local"]["text"]) == WRONG
        assert "kept on" in capsys.readouterr().out
        device.client.client.publish(device.topics.link("logs"), b"", qos=1, retain=True).wait_for_publish(9)

    def test_a_reading_or_a_prompt_that_is_named(self, on_air: Callable[..., OnAir]) -> None:
        device = on_air(model(), links=(LOGS,))
        words = ["category=network", "priority=high"]
        assert self.run(device, "--link", "logs", "--reading", "eth3: link down", *words) == 0
        assert self.run(device, "--prompt", "eth4: link down", json.dumps(RIGHT)) == 0
        assert [entry["input"]["text"] for entry in kept(device)] == ["eth3: link down", "eth4: link down"]
        assert [entry["answer"] for entry in kept(device)] == [RIGHT, RIGHT]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--link", "none", "a=1"], "no answer of link 'none'"),
            (["--prompt", "x", "a"], "'a' is no part of an answer; expected FIELD=VALUE"),
            (["--prompt", "x", "a=1", "a=2"], "'a' is given twice"),
            (["--prompt", "x", '{"a":'], "the answer is not JSON"),
            (["--prompt", "x", "--reading", "y", "a=1"], "--reading is of a link"),
            (["--link", "logs", "--topic", "logs/a", "a=1"], "--topic goes with --reading"),
            (["--link", "logs", "--window", "[]", "a=1"], "--window goes with --reading"),
            (["--link", "logs", "--reading", "x", "--window", "{}", "a=1"], "--window is {}; expected a JSON list"),
            (["--link", "logs", "--reading", '{"temp_c": 9', "a=1"], "begins as a JSON object and is none"),
            (["--prompt", "x", "category=netwrk", "priority=low"], "expected one of none, network"),
            (["--prompt", "caf\udce9", "a=1"], "'\\udce9' in what is sent is no character; give it in UTF-8."),
            (["--link", "logs", "--reading", r'{"a": "\ud800"}', "a=1"], "'\\ud800' in what is sent is no character"),
            (["--link", "logs", "--reading", "x", "--window", "[NaN]", "a=1"], "JSON has no NaN"),
        ],
    )
    def test_what_is_wrong(
        self, on_air: Callable[..., OnAir], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        device = on_air(model(), links=(LOGS,))
        assert self.run(device, *words) == 2
        assert said in capsys.readouterr().err and kept(device) == []


class TestAFullDisk:
    """What cannot be written is said to who waits for it, and leaves nothing behind."""

    @pytest.fixture
    def full(self, on_air: Callable[..., OnAir], small_disk: Path) -> OnAir:
        device = on_air(model(), links=(LOGS,), state_dir=small_disk / "state")
        send(device, prompt="eth1: link down")
        fill(small_disk)
        return device

    def test_a_correction_is_not_said_to_be_kept(self, full: OnAir, small_disk: Path, capsys: Any, caplog: Any) -> None:
        caplog.set_level("INFO", "stonechat.serve")
        words = ["--prompt", "x" * 9000, json.dumps(RIGHT), "--json"]
        assert TestTheCommand().run(full, *words) == 1
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["code"] == "failed" and "answers failed: the correction is not kept" in error["message"]
        assert "corrections.jsonl cannot be written: No space left on device. Free some space" in error["message"]
        assert "kept a correction" not in caplog.text
        (small_disk / "filler").unlink()
        assert send(full, prompt="eth2: link down")["kept"] is True
        lines = (full.service.config.state_dir / "corrections.jsonl").read_bytes().splitlines()
        assert [json.loads(line)["input"]["text"] for line in lines] == ["eth1: link down", "eth2: link down"]

    def test_what_cannot_be_replaced_leaves_nothing_beside_it(self, small_disk: Path, caplog: Any) -> None:
        budget, places = Budget(small_disk / "budget.json"), LinkPlaces((LOGS,), small_disk)
        fill(small_disk)
        assert budget.spend("device", 3)
        places.note(LOGS, "logs/a")
        with pytest.raises(DiskFullError, match=r"ca\.key cannot be written: No space left"):
            write_private(small_disk / "ca.key", b"x" * 9000)
        with pytest.raises(OSError, match="No space left"):
            write_arrays(small_disk / "weights.npz", {"a": np.zeros(9000)})
        assert caplog.text.count("No space left on device") == 2
        assert [file.name for file in small_disk.iterdir()] == ["filler"]

    def test_old_records_that_cannot_be_taken_out_end_no_device(self, small_disk: Path, caplog: Any) -> None:
        path = small_disk / "records.jsonl"
        path.write_text(json.dumps({"time": "2020"}) + "\n" + json.dumps({"time": "2999", "text": "x" * 9000}) + "\n")
        records = KeptLines(path, 9)
        fill(small_disk)
        for _ in range(2):  # at the start, and an hour later
            records.keep_only(lambda entry: entry["time"] > "2026")
        assert caplog.text.count("records.jsonl cannot be written: No space left on device") == 2
        assert sorted(file.name for file in small_disk.iterdir()) == ["filler", "records.jsonl"]
        (small_disk / "filler").unlink()
        records.keep_only(lambda entry: entry["time"] > "2026")
        assert [entry["time"] for entry in records.entries()] == ["2999"]


def test_files_of_the_state_that_are_damaged_are_told_at_the_start(tmp_path: Path, caplog: Any) -> None:
    for made in (False, True):
        if made:
            (tmp_path / "budget.json").write_text('{"day": "2999-01-01", "spent": [3]}')
            (tmp_path / "links.json").write_text("{")
        budget = Budget(tmp_path / "budget.json")
        assert budget.spent() == {} and LinkPlaces((LOGS,), tmp_path).left_behind == []
        assert caplog.text.count("cannot be read: it is damaged") == 2 * made
    assert budget.spend("device", 1) and not budget.spend("device", 1)


def fill(disk: Path) -> None:
    """To the last page; a line of a few hundred bytes may still fit into one that a file has already."""
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_device_may_take_none(on_air: Callable[..., OnAir]) -> None:
    device = on_air(model(), links=(LOGS,), recording=Recording(corrections=0))
    device.client.publish(device.topics.correct, {"answer": RIGHT, "prompt": "x"})
    device.ask(prompt="y")
    device.client.until(lambda topic, value: "done" in value)
    assert not list(device.service.config.state_dir.glob("*.jsonl"))
