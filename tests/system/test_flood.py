"""Junk from a client that may publish: the device neither falls over nor grows, and answers correctly afterwards."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from device_runtime.mqtt.client import BrokerAddress
from device_runtime.mqtt.remote import RemoteModel
from tests.brokers import mosquitto

ROOT = Path(__file__).parents[2]
DEVICE = ROOT / "tests" / "toolkit" / "scripted_device.py"
GENERATE, CANCEL = "stonechat/1/greenhouse-pi/in/generate", "stonechat/1/greenhouse-pi/in/cancel"
OWN_REPLY = "stonechat/1/greenhouse-pi/out/reply/flood/1"
REPLIES = [
    OWN_REPLY, "", "plant/valve/set", GENERATE, "stonechat/1/other/out/reply/a/b", "$SYS/x",
    "stonechat/1/greenhouse-pi/out/state", "stonechat/1/greenhouse-pi/out/reply/" + "a" * 500,
]  # fmt: skip
PAYLOADS = [
    b"", b"{", b"null", b"[]", b"7", b'"x"', b"\xff\xfe\x00", b'{"prompt":3}', b'{"prompt":null,"messages":null}',
    b'{"prompt":"x","max_new":-1}', b'{"prompt":"x","temperature":NaN}', b'{"prompt":"x","prompt":"y"}',
    b'{"messages":[' + b"{}," * 200 + b"{}]}", b"[" * 60_000, b'{"a":' * 10_000, b'{"prompt":"' + b"a" * 70_000 + b'"}',
    b'{"prompt":"\\ud800"}', b'{"prompt":"x","schema":{"type":"banana"}}', b'{"prompt":"x","deadline_ms":1e999}',
    b'{"prompt":"x","stop":[""]}', b'{"reply_to":"plant/valve/set","id":"1","prompt":"x"}', b"1" * 20_000,
]  # fmt: skip


@pytest.fixture
def device(tmp_path: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    with mosquitto(tmp_path, "message_size_limit 1000000") as port:
        fleet = ROOT / "examples" / "greenhouse" / "fleet.yaml"
        url = f"mqtt://127.0.0.1:{port}"
        command = [sys.executable, str(DEVICE), str(fleet), "--device", "greenhouse-pi", "--broker", url]
        with open(tmp_path / "log", "wb") as log:
            process = subprocess.Popen([*command, "--state-dir", str(tmp_path / "state")], stderr=log, stdout=log)
            try:
                yield port, process
            finally:
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0, (tmp_path / "log").read_text()[-2000:]
        assert "Traceback" not in (tmp_path / "log").read_text()


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def answer(port: int, prompt: str, timeout_s: float = 30.0) -> str:
    """Ask as a polite client does: again, when the device is busy."""
    from device_runtime.errors import UnreachableError

    end_s = time.monotonic() + timeout_s
    while True:
        try:
            with RemoteModel(BrokerAddress("127.0.0.1", port), "greenhouse-pi") as model:
                return "".join(model.generate(prompt, timeout_s=10.0))
        except UnreachableError:
            assert time.monotonic() < end_s
            time.sleep(0.2)


@pytest.mark.parametrize("messages", [6_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_junk_is_survived(device: tuple[int, subprocess.Popen[bytes]], messages: int) -> None:
    port, process = device
    assert answer(port, "before") == "BEFORE"
    before_mb = resident_mb(process.pid)
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    victims: list[str] = []
    client.on_message = lambda c, u, message: victims.append(message.topic)
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.subscribe([("plant/#", 0), ("stonechat/1/other/#", 0)])
    draw = random.Random(7)
    for number in range(messages):
        properties = Properties(PacketTypes.PUBLISH)
        if reply := draw.choice(REPLIES):
            properties.ResponseTopic = reply
        if draw.random() < 0.7:
            properties.CorrelationData = bytes(draw.randrange(256) for _ in range(draw.choice([0, 1, 16, 300])))
        topic = draw.choice([GENERATE, GENERATE, CANCEL, "greenhouse/x/air", "greenhouse/x/soil"])
        retain = topic in (GENERATE, CANCEL) and number % 50 == 0
        info = client.publish(topic, draw.choice(PAYLOADS), qos=1, retain=retain, properties=properties)
        if number % 200 == 199:
            info.wait_for_publish(30)
    for topic in (GENERATE, CANCEL):
        client.publish(topic, b"", qos=1, retain=True).wait_for_publish(30)
    assert process.poll() is None
    assert answer(port, "after the flood", 60.0) == "AFTER THE FLOOD"
    client.disconnect()
    client.loop_stop()
    assert victims == []  # no reply left the device's own tree
    # What it grew by is the allocator's: a payload of 70 kB at a time, 20 in flight, and paho's buffers.
    assert resident_mb(process.pid) - before_mb < 40


def test_an_unknown_field_of_a_flood_is_still_told(device: tuple[int, subprocess.Popen[bytes]]) -> None:
    """Junk does not cost an honest client its error message."""
    port, _ = device
    assert answer(port, "up") == "UP"
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    heard: list[bytes] = []
    client.on_message = lambda c, u, message: heard.append(message.payload)
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.subscribe(OWN_REPLY, qos=1)
    time.sleep(0.3)
    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic, properties.CorrelationData = OWN_REPLY, b"1"
    client.publish(GENERATE, b'{"prompt":"x","max_nwe":3}', qos=1, properties=properties).wait_for_publish(5)
    end_s = time.monotonic() + 10
    while not heard and time.monotonic() < end_s:
        time.sleep(0.02)
    client.disconnect()
    client.loop_stop()
    error = json.loads(heard[0])["error"]
    assert error["code"] == "invalid_request" and "did you mean 'max_new'?" in error["message"]
