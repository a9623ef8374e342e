"""What a device does online, against a real broker, with a scripted model."""

from __future__ import annotations

import json
import queue
import re
import subprocess
import threading
import time
from pathlib import Path

import paho.mqtt.client as paho
import pytest

from device_runtime.device import runner
from device_runtime.device.boot_counter import next_boot
from device_runtime.device.service import Service
from device_runtime.device.watchdog import ServiceManager
from device_runtime.errors import BundleError, ConfigurationError, SchemaError, SignatureError, UnreachableError
from device_runtime.fleet.settings import DeviceConfig, ModelSettings
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.topics import DeviceTopics
from tests.support.brokers import free_port
from tests.support.scripted_fleet import wait_until
from tests.support.scripted_model import ScriptedModel


def replies(device):
    """What the device sends on reply topics, up to the first final answer or error."""

    def done(topic, value):
        return "/reply/" in topic and (value.get("done") or "error" in value)

    return [value for topic, value in device.client.until(done) if "/reply/" in topic]


def test_a_request_gets_one_whole_answer(on_air):
    device = on_air(ScriptedModel(["Open", " the", " window."]), models=(ModelSettings("assistant", max_new=9),))
    device.ask(prompt="It is hot.")
    (answer,) = replies(device)
    assert answer == {
        "seq": 0, "done": True, "finish": "stop", "text": "Open the window.", "ttft_ms": 12.5, "tps": 100.0,
        "usage": {"prompt_tokens": 7, "cached_tokens": 2, "completion_tokens": 3},
    }  # fmt: skip
    ((messages, options),) = device.model.asked
    assert messages == ({"role": "user", "content": "It is hot."},)
    assert options["max_new"] == 9
    assert options["sampling"].temperature == 0.0


def test_the_answer_carries_the_correlation_data(on_air):
    device = on_air()
    reply_to = device.ask(prompt="x", correlation=b"\x00\xffid")
    while (message := device.client.heard.get(timeout=30)).topic != reply_to:
        pass
    assert message.properties.CorrelationData == b"\x00\xffid"
    assert message.qos == 1
    assert not message.retain


def test_sampling_fields_reach_the_model(on_air):
    device = on_air()
    device.ask(prompt="x", temperature=0.5, top_k=4, top_p=0.9, seed=3, max_new=2, stop=["."])
    replies(device)
    options = device.model.asked[0][1]
    s = options["sampling"]
    assert (s.temperature, s.top_k, s.top_p, s.seed, options["max_new"], options["stop"]) == (0.5, 4, 0.9, 3, 2, (".",))


SCHEMA = {"type": "object", "properties": {"open": {"type": "boolean"}}, "required": ["open"]}


def test_a_schema_reaches_the_model(on_air):
    device = on_air(ScriptedModel(['{"open":', "true}"]))
    device.ask(prompt="x", schema=SCHEMA)
    assert json.loads(replies(device)[0]["text"]) == {"open": True}
    assert device.model.asked[0][1]["schema"] == SCHEMA


def test_an_answer_that_a_deadline_cuts_before_it_fits_its_schema_is_an_error(on_air):
    """Half of an object is nothing that its reader could use."""
    device = on_air(ScriptedModel(['{"open":', "true}"], gated=True))
    device.ask(prompt="x", schema=SCHEMA, deadline_ms=300)
    error = replies(device)[-1]["error"]
    assert error["code"] == "incomplete"
    assert "met the deadline after 0 tokens" in error["message"]


def test_nor_is_nothing_an_answer_that_fits(on_air):
    """The deadline of this one passes before its turn comes."""
    device = on_air(ScriptedModel(gated=True))
    device.ask(prompt="running", correlation=b"1")
    device.client.until(lambda topic, value: value.get("state") == "busy")
    device.ask(prompt="late", correlation=b"2", session="2", schema=SCHEMA, deadline_ms=50)
    assert replies(device)[0]["error"]["code"] == "incomplete"


def test_a_schema_that_cannot_be_used_is_told_so(on_air):
    device = on_air()
    device.model.fails_with = SchemaError("The schema cannot be used: Invalid type: objet.")
    device.ask(prompt="x", schema={"type": "objet"})
    assert replies(device)[0]["error"] == {
        "code": "schema", "message": "The schema cannot be used: Invalid type: objet.",
    }  # fmt: skip


def test_the_fleets_system_message_goes_first_unless_the_client_has_one(on_air):
    device = on_air(models=(ModelSettings(system="Be brief."),))
    device.ask(prompt="x")
    replies(device)
    device.ask(messages=[{"role": "system", "content": "Be long."}, {"role": "user", "content": "y"}], correlation=b"2")
    replies(device)
    assert [[m["content"] for m in asked[0]] for asked in device.model.asked] == [["Be brief.", "x"], ["Be long.", "y"]]


def test_a_request_names_one_of_several_models_or_gets_the_first(on_air):
    scripts = {"small": ScriptedModel(["small"]), "large": ScriptedModel(["large"])}
    models = (ModelSettings("small", max_new=7), ModelSettings("large", system="Be brief."))
    device = on_air(models=models, scripts=scripts)
    device.ask(session="0", correlation=b"0", prompt="x", model="huge")
    error = device.client.until(lambda t, v: v.get("error"))[-1][1]["error"]
    assert error["code"] == "unknown_model"
    assert "it has 'small', 'large'" in error["message"]
    for session, named in (("1", {}), ("2", {"model": "large"}), ("3", {"model": "small"})):
        device.ask(session=session, correlation=session.encode(), prompt="x", **named)
    answers = [device.client.until(lambda t, v: v.get("done"))[-1][1]["text"] for _ in range(3)]
    assert answers == ["small", "large", "small"]
    assert [options["max_new"] for _, options in scripts["small"].asked] == [7, 7]
    ((messages, options),) = scripts["large"].asked
    assert (messages[0]["content"], options["max_new"]) == ("Be brief.", None)


BROKEN = {
    "a damaged file": BundleError("model.tflite has 1,000 bytes; 660,672 were expected. Copy the bundle again."),
    "no such folder": ConfigurationError("there is no bundle at trunc."),
    "no right to read it": PermissionError(13, "Permission denied", "trunc/model.tflite"),
    "no signature": SignatureError("nobody who is trusted has signed it."),
    "too little memory": MemoryError(),
}


@pytest.mark.parametrize("error", BROKEN.values(), ids=BROKEN.keys())
def test_a_model_that_cannot_be_opened_leaves_the_others_serving(on_air, monkeypatch, error):
    scripts = {"broken": error, "whole": ScriptedModel(["whole"])}
    status = []
    monkeypatch.setattr(ServiceManager, "status", lambda self, text: status.append(text))
    device = on_air(models=(ModelSettings("broken"), ModelSettings("whole")), scripts=scripts)
    wait_until(lambda: status[-1].endswith(", serving whole; not open: broken"))
    info = device.service._device.runner.not_open
    device.client.subscribe(device.topics.info)
    said = device.client.until(lambda t, v: t == device.topics.info)[-1][1]
    why = said["not_open"]["broken"]
    assert said["not_open"] == info and set(info) == {"broken"}
    assert (str(error) or "too little free memory") in why

    for session, named in (("0", {}), ("1", {"model": "broken"})):  # the first, unless one is named
        device.ask(session=session, correlation=session.encode(), prompt="x", **named)
        refused = device.client.until(lambda t, v: v.get("error"))[-1][1]["error"]
        assert (refused["code"], refused["message"]) == ("bundle", f"the model 'broken' is not open: {why}")
    device.ask(session="2", correlation=b"2", prompt="x", model="whole")
    assert device.client.until(lambda t, v: v.get("done"))[-1][1]["text"] == "whole"


def test_a_model_that_could_not_be_opened_is_tried_again_with_a_request_now_and_then(on_air, monkeypatch):
    scripts = {"mended": BROKEN["a damaged file"], "whole": ScriptedModel(["whole"])}
    device = on_air(models=(ModelSettings("mended"), ModelSettings("whole")), scripts=scripts)
    scripts["mended"] = ScriptedModel(["mended"])
    device.ask(session="0", correlation=b"0", prompt="x")
    assert device.client.until(lambda t, v: v.get("error"))[-1][1]["error"]["code"] == "bundle"  # 30 s have not passed
    monkeypatch.setattr(runner, "RETRY_S", 0.0)
    device.ask(session="1", correlation=b"1", prompt="x")
    seen = device.client.until(lambda t, v: t == device.topics.info and "not_open" not in v)
    assert [value["text"] for _, value in seen if value.get("done")] == ["mended"]


@pytest.mark.parametrize("names", [("one",), ("one", "two")])
def test_without_any_model_a_device_ends_with_the_error_of_the_first(port, tmp_path, names):
    def open_model(name):
        raise BundleError(f"{name} is damaged.")

    models = tuple(ModelSettings(name) for name in names)
    config = DeviceConfig("none-open", BrokerAddress("127.0.0.1", port), tmp_path, models)
    with pytest.raises(BundleError, match=r"^one is damaged\.$"):
        Service(config, open_model).run()


def test_a_model_that_an_update_leaves_closed_leaves_the_others_serving(on_air):
    scripts = {"one": ScriptedModel(["one"]), "two": ScriptedModel(["two"])}
    device = on_air(models=(ModelSettings("one"), ModelSettings("two")), scripts=scripts)
    scripts["one"] = BROKEN["a damaged file"]
    device.service._device.runner.reopen("one")
    assert set(device.service._device.runner.not_open) == {"one"}
    scripts["two"] = BundleError("two is damaged, too.")
    with pytest.raises(BundleError, match="has 1,000 bytes"):
        device.service._device.runner.reopen("two")


def test_the_first_piece_is_not_held_back_until_the_end(on_air):
    device = on_air(ScriptedModel(["a", "b", "c"], gated=True))
    device.ask(prompt="x", stream=True)
    for seq, text in enumerate("abc"):
        device.model.gate.release()  # the model computes one token, and only then the next
        device.client.until(lambda topic, value: value == {"seq": seq, "text": text})  # noqa: B023
    device.model.gate.release()
    (final,) = replies(device)
    assert (final["seq"], final["text"]) == (3, "abc")


def test_generation_never_runs_in_the_network_thread(on_air):
    device = on_air()
    device.ask(prompt="x")
    replies(device)
    assert device.model.threads == {"stonechat-worker"}


def test_many_pieces_join_to_the_final_text(on_air):
    text = [f"{i} " for i in range(300)]
    device = on_air(ScriptedModel(text))
    device.ask(prompt="x", stream=True)
    *pieces, final = replies(device)
    assert [p["seq"] for p in pieces] == list(range(len(pieces)))
    assert final["text"] == "".join(text)
    assert final["text"].startswith("".join(p["text"] for p in pieces))
    assert final["seq"] == len(pieces)


def test_an_mqtt_3_client_says_reply_to_and_id_in_the_payload(on_air, peer):
    device = on_air()
    client = peer(paho.MQTTv311)
    reply_to = device.topics.reply("old", "s")
    client.subscribe(reply_to)
    client.publish(device.topics.generate, {"prompt": "hello", "reply_to": reply_to, "id": "q7"})
    topic, value = client.next()
    assert (topic, value["id"], value["text"]) == (reply_to, "q7", "HELLO")


def test_a_device_may_itself_speak_mqtt_3(on_air, peer, port):
    device = on_air(broker=BrokerAddress("127.0.0.1", port, protocol="3.1.1"))
    client = peer(paho.MQTTv311)
    reply_to = device.topics.reply("old", "s")
    client.subscribe(reply_to)
    client.publish(device.topics.generate, {"prompt": "hello", "reply_to": reply_to, "id": "q8"})
    assert client.next()[1]["text"] == "HELLO"


def test_a_retained_command_is_refused(on_air, peer):
    device = on_air()
    client = peer()
    reply_to = device.topics.reply("tester", "r")
    client.publish(device.topics.generate, {"prompt": "x"}, retain=True, ResponseTopic=reply_to, CorrelationData=b"r")
    try:
        (answer,) = replies(device)
        assert answer["error"]["code"] == "retained"
        assert device.model.asked == []
    finally:
        client.client.publish(device.topics.generate, b"", qos=1, retain=True).wait_for_publish(30)


def test_a_retained_command_that_waits_at_the_broker_is_refused_too(on_air, peer):
    client = peer()
    topic = "stonechat/1/stored/in/generate"
    reply_to = "stonechat/1/stored/out/reply/tester/r"
    client.publish(topic, {"prompt": "x"}, retain=True, ResponseTopic=reply_to, CorrelationData=b"r")
    try:
        device = on_air(device="stored")
        device.ask(prompt="y", correlation=b"2", session="2")
        answers = [v for t, v in device.client.until(lambda t, v: t.endswith("/2")) if "/reply/" in t]
        assert [a.get("text", a.get("error", {}).get("code")) for a in answers] in (["retained", "Y"], ["Y"])
        assert len(device.model.asked) == 1
    finally:
        client.client.publish(topic, b"", qos=1, retain=True).wait_for_publish(30)


@pytest.mark.parametrize(
    "target",
    [
        "plant/valve/set",
        "stonechat/1/other/in/generate",
        "stonechat/1/{device}/in/generate",
        "stonechat/1/{device}/out/state",
        "stonechat/1/other/out/reply/a/b",
        "stonechat/1/{device}/out/reply/a",
        "stonechat/1/{device}/out/reply/a/b/c",
        "stonechat/1/{device}/out/reply/../state",
        "stonechat/1/{device}/out/reply/A/B",
        "x/stonechat/1/{device}/out/reply/a/b",
        "stonechat/1/pool/g/reply/a/b",
    ],
)
def test_a_reply_topic_outside_the_devices_own_tree_gets_nothing(on_air, peer, target):
    device = on_air()
    everything = peer()
    everything.subscribe("#")
    while everything.heard.qsize():
        everything.heard.get()
    target = target.format(device=device.topics.device)
    client = peer()
    client.publish(device.topics.generate, {"prompt": "x"}, ResponseTopic=target, CorrelationData=b"1")
    client.publish(device.topics.generate, {"prompt": "x", "reply_to": target, "id": "2"})
    device.ask(client, prompt="the end", correlation=b"3")
    seen = everything.until(lambda topic, value: isinstance(value, dict) and value.get("text") == "THE END")
    answers = [t for t, v in seen if isinstance(v, dict) and (("text" in v and "done" in v) or "error" in v)]
    assert answers == [device.topics.reply("tester", "1")]
    assert len(device.model.asked) == 1


def test_a_repeated_request_is_answered_once(on_air):
    device = on_air(ScriptedModel(["a"], gated=True))
    device.ask(prompt="x", correlation=b"same")
    device.client.until(lambda topic, value: value == {"state": "busy", "boot": 1})
    device.ask(prompt="x", correlation=b"same")
    device.ask(prompt="y", correlation=b"other")
    device.until_waiting(1)
    device.model.gate.release(4)
    assert [replies(device)[0]["text"], replies(device)[0]["text"]] == ["a", "a"]
    assert len(device.model.asked) == 2


def test_a_request_that_comes_again_after_its_end_is_told_that_end(on_air):
    """Its client may have been away when it was said. One that asks something else must not get an old answer."""
    device = on_air()
    device.ask(prompt="x", correlation=b"same", deadline_ms=60_000)
    (first,) = replies(device)
    device.ask(prompt="x", correlation=b"same", deadline_ms=30_000)
    assert replies(device) == [first] and first["text"] == "X"
    device.ask(prompt="y", correlation=b"same")
    (refused,) = replies(device)
    assert refused["error"]["code"] == "invalid_request" and "its own Correlation Data" in refused["error"]["message"]
    device.ask(prompt="x", correlation=b"same")
    assert replies(device) == [first] and len(device.model.asked) == 1


def test_two_clients_may_use_the_same_correlation_data(on_air):
    device = on_air()
    device.ask(prompt="x", session="1", correlation=b"1")
    device.ask(prompt="y", session="2", correlation=b"1")
    assert {replies(device)[0]["text"], replies(device)[0]["text"]} == {"X", "Y"}


def test_a_full_queue_says_busy_and_the_same_request_may_come_again(on_air):
    device = on_air(ScriptedModel(["a"], gated=True), queue=1)
    device.ask(prompt="running", correlation=b"1")
    device.client.until(lambda topic, value: value == {"state": "busy", "boot": 1})
    device.ask(prompt="waiting", correlation=b"2")
    device.ask(prompt="too many", correlation=b"3")
    (busy,) = replies(device)
    assert busy["error"]["code"] == "busy"
    assert busy["error"]["retry_after_ms"] > 0
    for _ in range(4):
        device.model.gate.release()
    replies(device), replies(device)
    device.ask(prompt="again", correlation=b"3")
    device.model.gate.release(), device.model.gate.release()
    assert replies(device)[0]["done"]


def test_a_deadline_cuts_the_answer(on_air):
    device = on_air(ScriptedModel(["a", "b"], gated=True))
    device.ask(prompt="x", deadline_ms=2000, stream=True)
    device.model.gate.release()
    piece, final = replies(device)
    assert piece == {"seq": 0, "text": "a"}
    assert (final["finish"], final["text"]) == ("deadline", "a")


def test_a_deadline_that_passes_in_the_queue_is_kept_there_and_makes_room(on_air):
    """The answer before it may take much longer."""
    device = on_air(ScriptedModel(["a"], gated=True), queue=1)
    device.ask(prompt="running", correlation=b"1")
    device.client.until(lambda topic, value: value.get("state") == "busy")
    device.ask(prompt="late", correlation=b"2", deadline_ms=50, session="2")
    assert replies(device)[0] | {"usage": None} == {
        "seq": 0, "done": True, "finish": "deadline", "text": "", "usage": None, "ttft_ms": 0, "tps": 0
    }  # fmt: skip
    device.ask(prompt="in its place", correlation=b"3", session="3")
    device.until_waiting(1)
    for _ in range(4):
        device.model.gate.release()
    assert [replies(device)[0]["finish"], replies(device)[0]["finish"]] == ["stop", "stop"]
    assert len(device.model.asked) == 2


def test_a_request_whose_message_expiry_passes_in_the_queue_is_not_started(on_air):
    device = on_air(ScriptedModel(["a"], gated=True))
    device.ask(prompt="running", correlation=b"1")
    device.client.until(lambda topic, value: value.get("state") == "busy")
    device.client.publish(
        device.topics.generate, {"prompt": "x"}, MessageExpiryInterval=2, CorrelationData=b"2",
        ResponseTopic=device.topics.reply("tester", "2"),
    )  # fmt: skip
    assert replies(device)[0]["finish"] == "deadline"
    device.model.gate.release(), device.model.gate.release()
    assert replies(device)[0]["finish"] == "stop"
    assert len(device.model.asked) == 1


def test_cancel_cuts_the_running_answer(on_air):
    device = on_air(ScriptedModel(["a", "b"], gated=True))
    reply_to = device.ask(prompt="x", stream=True, correlation=b"1")
    device.model.gate.release()
    device.client.until(lambda topic, value: value == {"seq": 0, "text": "a"})
    device.client.publish(device.topics.cancel, {}, ResponseTopic=reply_to, CorrelationData=b"1")
    (final,) = replies(device)
    assert (final["finish"], final["text"]) == ("cancelled", "a")


def test_cancel_takes_a_waiting_request_out_of_the_line(on_air):
    device = on_air(ScriptedModel(["a"], gated=True))
    device.ask(prompt="running", correlation=b"1")
    reply_to = device.topics.reply("tester", "1")
    device.client.publish(device.topics.generate, {"prompt": "x", "reply_to": reply_to, "id": "2"})
    device.client.publish(device.topics.cancel, {"reply_to": reply_to, "id": "2"})
    (final,) = replies(device)
    assert (final["finish"], final["id"]) == ("cancelled", "2")
    device.model.gate.release(), device.model.gate.release()
    assert replies(device)[0]["finish"] == "stop"
    assert len(device.model.asked) == 1


def test_nobody_cancels_the_request_of_another_reply_topic(on_air):
    device = on_air(ScriptedModel(["a"], gated=True))
    device.ask(prompt="x", correlation=b"1", session="1")
    device.client.publish(
        device.topics.cancel, {}, ResponseTopic=device.topics.reply("tester", "2"), CorrelationData=b"1"
    )  # fmt: skip
    device.model.gate.release(), device.model.gate.release()
    assert replies(device)[0]["finish"] == "stop"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, "invalid_request"),
        ({"prompt": "x", "max_nwe": 3}, "invalid_request"),
        ({"prompt": 3}, "invalid_request"),
        ({"prompt": "x", "model": "gpt-9"}, "unknown_model"),
        ({"prompt": "x", "schema": ["object"]}, "invalid_request"),
        ({"prompt": "x", "schema": {}, "stop": ["."]}, "invalid_request"),
    ],
)
def test_a_wrong_request_is_told_so(on_air, fields, code):
    device = on_air()
    device.ask(**fields)
    assert replies(device)[0]["error"]["code"] == code


def test_a_model_that_fails_does_not_stop_the_device(on_air):
    device = on_air()
    device.model.fails_with = RuntimeError("secret prompt text")
    device.ask(prompt="x", correlation=b"1")
    error = replies(device)[0]["error"]
    assert error["code"] == "failed"
    assert "secret" not in error["message"]
    device.model.fails_with = ConfigurationError("too long")
    device.ask(prompt="x", correlation=b"2")
    assert replies(device)[0]["error"] == {"code": "configuration", "message": "too long"}
    device.model.fails_with = None
    device.ask(prompt="x", correlation=b"3")
    assert replies(device)[0]["text"] == "X"


def test_prompts_and_answers_stay_out_of_logs(on_air, caplog):
    caplog.set_level("DEBUG")
    device = on_air()
    device.ask(prompt="mysecret")
    replies(device)
    device.client.until(lambda topic, value: value.get("state") == "ready")  # the line is written before this
    assert "answered tester/1" in caplog.text
    assert "mysecret" not in caplog.text.lower()


def test_info_and_state_are_retained(on_air, peer):
    device = on_air(models=(ModelSettings("assistant"),))
    late = peer()
    late.subscribe(device.topics.info, device.topics.state)
    values = dict([late.next(), late.next()])
    assert values[device.topics.state] == {"state": "ready", "boot": 1}
    assert values[device.topics.info]["models"] == ["assistant"]


def test_a_clean_stop_says_disconnected_and_refuses_what_waits(on_air):
    device = on_air(ScriptedModel(["a"], gated=True))
    device.ask(prompt="running", correlation=b"1")
    device.client.until(lambda topic, value: value.get("state") == "busy")
    device.ask(prompt="waiting", correlation=b"2", session="2")
    device.until_waiting(1)
    device.service.stop()
    seen = device.client.until(lambda topic, value: value.get("state") == "disconnected")
    said = {t[-1]: v for t, v in seen if "/reply/" in t}
    assert said["1"]["finish"] == "cancelled"
    assert said["2"]["error"]["code"] == "unavailable"


def test_devices_of_a_pool_share_its_requests(on_air):
    devices = [on_air(pool="flock"), on_air(pool="flock")]
    client = devices[0].client
    client.subscribe("stonechat/1/pool/flock/reply/#")
    for i in range(10):
        client.publish(
            "stonechat/1/pool/flock/generate", {"prompt": f"q{i}"}, CorrelationData=b"%d" % i,
            ResponseTopic="stonechat/1/pool/flock/reply/tester/1",
        )  # fmt: skip
    texts = [client.until(lambda topic, value: "/pool/" in topic)[-1][1]["text"] for _ in range(10)]
    assert sorted(texts) == [f"Q{i}" for i in range(10)]
    assert [len(d.model.asked) for d in devices] == [5, 5]


@pytest.mark.parametrize("apart_s", [0.05, 0.7, 2.5])
def test_of_two_devices_of_one_id_the_one_that_started_later_ends(port, tmp_path, peer, caplog, apart_s):
    ended, services, threads, device = queue.Queue(), [], [], f"twin-{apart_s}".replace(".", "-")

    def run(number, service):
        try:
            service.run()
        except ConfigurationError as e:
            ended.put((number, str(e)))

    for number in range(2):
        config = DeviceConfig(device, BrokerAddress("127.0.0.1", port), tmp_path / str(number))
        services.append(Service(config, lambda name: ScriptedModel()))
        threads.append(threading.Thread(target=run, args=(number, services[-1]), daemon=True))
        threads[-1].start()
        time.sleep(apart_s)
    number, said = ended.get(timeout=60)
    assert number == 1 and f"is '{device}' running elsewhere? The one that started later ends" in said
    threads[1].join(30)
    topics, client = DeviceTopics(device), peer()
    time.sleep(3)  # in which the other used to end, too
    assert threads[0].is_alive() and ended.empty()
    client.subscribe(topics.state)
    client.until(lambda topic, value: value.get("state") == "ready")
    client.subscribe(topics.reply("tester", "1"))
    client.publish(topics.generate, {"prompt": "x"}, ResponseTopic=topics.reply("tester", "1"), CorrelationData=b"c")
    assert client.until(lambda topic, value: "done" in value)[-1][1]["text"] == "X"
    assert caplog.text.count("It started later, and so it is the one that ends") == 1
    services[0].stop()
    threads[0].join(30)


def test_what_another_process_has_left_behind_is_no_second_device(on_air):
    """An earlier life of the device, or a broker that came back with what it had kept: the number does not rise."""
    device = on_air()
    for _ in range(3):
        device.client.publish(device.topics.instance, {"instance": "earlier", "connects": 7}, retain=True)
    device.client.publish(device.topics.instance, b"[1]")
    device.ask(prompt="x")
    assert replies(device)[-1]["text"] == "X"
    assert not device.service.stopping


def test_a_second_process_in_the_same_state_folder_is_refused_at_once(on_air, port, tmp_path):
    device = on_air(device="only-one")
    second = Service(device.service.config, lambda name: ScriptedModel())
    with pytest.raises(ConfigurationError, match=r"'only-one' runs on this machine already: process \d+ holds .*lock"):
        second.run()
    device.ask(prompt="x")
    assert replies(device)[-1]["text"] == "X"


def test_no_broker_is_unreachable_with_host_port_reason_and_next_step(tmp_path):
    port = free_port()
    service = Service(DeviceConfig("d", BrokerAddress("127.0.0.1", port), tmp_path), lambda name: ScriptedModel())
    with pytest.raises(UnreachableError, match=f"127.0.0.1:{port}: Connection refused. Check that it runs") as e:
        service.run()
    assert e.value.exit_code == 3


def test_boots_are_counted(tmp_path):
    assert [next_boot(tmp_path / "new"), next_boot(tmp_path / "new"), next_boot(tmp_path / "new")] == [1, 2, 3]
    (tmp_path / "new" / "boot").write_text("rubbish")
    assert next_boot(tmp_path / "new") == 1


def test_a_state_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"file/boot: Not a directory|--state-dir"):
        next_boot(tmp_path / "file")


def mosquitto_commands():
    """The shell examples of docs/reference/mqtt.md."""
    text = (Path(__file__).parents[3] / "docs" / "reference" / "mqtt.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [b for b in blocks if b.startswith("mosquitto_rr")]


@pytest.mark.parametrize("command", mosquitto_commands())
def test_the_examples_of_the_documentation_work_as_written(on_air, port, command):
    device = on_air(ScriptedModel(["Open", " it."]), device="greenhouse-pi", pool="herd")
    command = command.replace("-h localhost", f"-h 127.0.0.1 -p {port}")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert '"text":"Open it."' in done.stdout
    assert len(device.model.asked) == 1


class TestClients:
    """A topic that ends with a client's name is one that the broker's access list lets that client alone write to."""

    def ask_as(self, device, client, session="1", correlation=b"c", reply_client=None, **fields):
        reply_to = device.topics.reply(reply_client or client, session)
        topic = device.topics.generate_by(client)
        device.client.publish(topic, fields, ResponseTopic=reply_to, CorrelationData=correlation)
        return reply_to

    def test_a_request_in_a_clients_name_is_answered(self, on_air):
        device = on_air()
        reply_to = self.ask_as(device, "anna", prompt="hello")
        assert device.client.until(lambda topic, value: topic == reply_to)[-1][1]["text"] == "HELLO"

    @pytest.mark.parametrize("name", ["mallory", "generate", "cancel"])
    def test_answers_go_to_nobody_but_the_client_who_asks(self, on_air, name):
        device = on_air()
        self.ask_as(device, name, reply_client="anna", prompt="boo")
        self.ask_as(device, "anna", session="2", prompt="mine")
        seen = device.client.until(lambda topic, value: value.get("done"))
        assert [value["text"] for _, value in seen if "done" in value] == ["MINE"]
        assert len(device.model.asked) == 1

    def test_a_request_of_one_client_is_no_repeat_of_anothers(self, on_air):
        device = on_air()
        anna = device.topics.reply("anna", "1")  # anybody who may write to the plain topic can call itself so
        device.client.publish(device.topics.generate, {"prompt": "boo"}, ResponseTopic=anna, CorrelationData=b"c")
        device.client.until(lambda topic, value: value.get("text") == "BOO")
        self.ask_as(device, "anna", prompt="mine")
        device.client.until(lambda topic, value: value.get("text") == "MINE")
        self.ask_as(device, "anna", prompt="again")  # a repeat of her own is one
        self.ask_as(device, "anna", correlation=b"d", prompt="next")
        seen = device.client.until(lambda topic, value: value.get("text") == "NEXT")
        assert [value["text"] for _, value in seen if "text" in value] == ["NEXT"]

    @pytest.mark.parametrize("how", ["plain", "named"])
    def test_nobody_cancels_the_request_of_another(self, on_air, how):
        device = on_air(ScriptedModel(["a", "b"], gated=True))
        reply_to = self.ask_as(device, "anna", prompt="x")
        waiting = self.ask_as(device, "anna", session="2", correlation=b"w", prompt="y")
        device.until_waiting(1)
        topic = device.topics.cancel if how == "plain" else device.topics.cancel_by("mallory")
        for target, correlation in ((reply_to, b"c"), (waiting, b"w")):
            device.client.publish(topic, {}, ResponseTopic=target, CorrelationData=correlation)
        for _ in range(10):
            device.model.gate.release()
        done = [device.client.until(lambda topic, value: bool(value.get("done")))[-1][1] for _ in range(2)]
        assert [value["finish"] for value in done] == ["stop", "stop"]

    def test_a_client_cancels_its_own(self, on_air):
        device = on_air(ScriptedModel(["a", "b"], gated=True))
        reply_to = self.ask_as(device, "anna", prompt="x")
        device.client.publish(device.topics.cancel_by("anna"), {}, ResponseTopic=reply_to, CorrelationData=b"c")
        assert device.client.until(lambda topic, value: bool(value.get("done")))[-1][1]["finish"] == "cancelled"

    def test_a_pool_is_asked_by_name_too(self, on_air):
        device = on_air(pool="named-pool")
        device.client.subscribe("stonechat/1/pool/named-pool/reply/#")
        reply_to = "stonechat/1/pool/named-pool/reply/anna/1"
        topic = "stonechat/1/pool/named-pool/generate/anna"
        device.client.publish(topic, {"prompt": "x"}, ResponseTopic=reply_to, CorrelationData=b"1")
        assert device.client.until(lambda topic, value: topic == reply_to)[-1][1]["text"] == "X"

    def test_a_crowd_is_refused_in_words_each_of_it(self, on_air):
        """200 clients ask at once: whoever gets no place hears so."""
        device = on_air(ScriptedModel(gated=True), queue=4)
        for number in range(200):
            for request in range(3):
                self.ask_as(device, f"client-{number}", str(request), b"%d" % request, prompt="x")
        answered = set()
        while len(answered) < 600 - 4 - 1:
            (topic, value) = device.client.next(60)
            if "error" in value:
                assert value["error"]["code"] == "busy"
                answered.add(topic)
        for _ in range(600):
            device.model.gate.release()
        while len(answered) < 600:
            topic, value = device.client.next(60)
            if value.get("done"):
                answered.add(topic)

    def test_nobody_keeps_the_queue_full(self, on_air):
        device = on_air(ScriptedModel(["a"], gated=True), queue=4)
        self.ask_as(device, "greedy", prompt="x")
        wait_until(lambda: len(device.model.asked) == 1)
        for request in range(1, 5):  # one is being answered, four wait
            self.ask_as(device, "greedy", str(request), b"%d" % request, prompt="x")
        device.until_waiting(4)
        reply_to = self.ask_as(device, "anna", prompt="x")
        seen = device.client.until(lambda topic, value: "error" in value)
        assert seen[-1][0] == device.topics.reply("greedy", "4") and seen[-1][1]["error"]["code"] == "busy"
        for _ in range(20):
            device.model.gate.release()
        seen = device.client.until(lambda topic, value: topic == reply_to)
        assert seen[-1][1]["finish"] == "stop"
