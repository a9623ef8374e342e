"""Junk from a client that may publish: the device neither falls over nor grows, and answers correctly afterwards."""

from __future__ import annotations

import json
import queue
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from device_runtime.client.remote import RemoteModel
from device_runtime.errors import UnreachableError
from device_runtime.mqtt.address import BrokerAddress, Protocol
from tests.support.brokers import mosquitto
from tests.support.scripted_fleet import Device, resident_mb

ROOT = Path(__file__).parents[2]
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


LARGE = [b'{"prompt":"' + b"a" * 10_000_000 + b'"}', b"[" * 10_000_000, b"\xff" * 10_000_000]


@pytest.fixture(params=["5", "3.1.1"])
def device(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[BrokerAddress, Device]]:
    """A broker that sets no limit of its own, and a device."""
    fleet = (ROOT / "examples" / "greenhouse" / "fleet.yaml").read_text(encoding="utf-8")
    path = tmp_path / "fleet.yaml"
    path.write_text(fleet.replace("  url: ", f"  protocol: {request.param}\n  url: "), encoding="utf-8")
    with mosquitto(tmp_path) as port:
        device = Device(tmp_path, port, "greenhouse-pi", path)
        device.start(ready=True)
        try:
            protocol: Protocol = request.param
            yield BrokerAddress("127.0.0.1", port, protocol=protocol), device
        finally:
            device.stop()
        assert "Traceback" not in device.log.read_text()


def answer(broker: BrokerAddress, prompt: str, timeout_s: float = 30.0) -> str:
    """Ask as a polite client does: again, when the device is busy."""
    end_s = time.monotonic() + timeout_s
    while True:
        try:
            with RemoteModel(broker, "greenhouse-pi") as model:
                return "".join(model.generate(prompt, timeout_s=10.0))
        except UnreachableError:
            assert time.monotonic() < end_s
            time.sleep(0.2)


@pytest.mark.parametrize(
    "messages, large", [(6_000, 9), pytest.param(100_000, 300, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_junk_is_survived(device: tuple[BrokerAddress, Device], messages: int, large: int) -> None:
    broker, process = device
    assert process.process is not None
    assert answer(broker, "before") == "BEFORE"
    before_mb = peak_mb = resident_mb(process.process.pid)
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    victims: list[str] = []
    events: list[dict] = []
    replies: list[str] = []

    def hear(client: object, userdata: object, message: paho.MQTTMessage) -> None:
        if message.topic.endswith("/out/event"):
            events.append(json.loads(message.payload))
        else:
            (replies if message.topic.startswith("stonechat/1/greenhouse-pi/") else victims).append(message.topic)

    client.on_message = hear
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    client.subscribe([("plant/#", 0), ("stonechat/1/other/#", 0), ("stonechat/1/greenhouse-pi/out/reply/#", 0)])
    client.subscribe("stonechat/1/greenhouse-pi/out/event", qos=1)
    draw = random.Random(7)
    started_s = time.monotonic()
    for number in range(messages):
        properties = Properties(PacketTypes.PUBLISH)
        if reply := draw.choice(REPLIES):
            properties.ResponseTopic = reply
        if draw.random() < 0.7:
            properties.CorrelationData = bytes(draw.randrange(256) for _ in range(draw.choice([0, 1, 16, 300])))
        topic = draw.choice([GENERATE, GENERATE, CANCEL, "greenhouse/x/air", "greenhouse/x/soil"])
        retain = topic in (GENERATE, CANCEL) and number % 50 == 0
        payload = draw.choice(LARGE if number % (messages // large) == 0 else PAYLOADS)
        info = client.publish(topic, payload, qos=1, retain=retain, properties=properties)
        if number % 200 == 199:
            info.wait_for_publish(60)
            peak_mb = max(peak_mb, resident_mb(process.process.pid))
    for topic in (GENERATE, CANCEL):
        client.publish(topic, b"", qos=1, retain=True).wait_for_publish(60)
    assert process.process.poll() is None
    assert answer(broker, "after the flood", 60.0) == "AFTER THE FLOOD"
    seconds = time.monotonic() - started_s
    client.disconnect()
    client.loop_stop()
    end_mb = resident_mb(process.process.pid)
    print(
        f"\n{messages} junk messages, {large} of them of 10 MB, in {seconds:.0f} s: memory {before_mb:.0f} MB before, "
        f"{peak_mb:.0f} at most, {end_mb:.0f} after; {len(replies)} replies, {len(events)} events"
    )
    assert victims == []  # no reply left the device's own tree
    # What it grew by is the allocator's: a payload of 70 kB at a time, 20 in flight, and paho's buffers. Over MQTT
    # 3.1.1 the broker sends it the 10 MB, which are held once as they come in and once as a message.
    assert end_mb - before_mb < 40 and peak_mb - before_mb < 90
    # One event a minute for each kind of trouble: of two links and of the limits.
    assert len(events) <= 12 * (1 + seconds / 60)


def test_an_unknown_field_of_a_flood_is_still_told(device: tuple[BrokerAddress, Device]) -> None:
    """Junk does not cost an honest client its error message."""
    broker, _ = device
    assert answer(broker, "up") == "UP"
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    heard: queue.Queue[bytes] = queue.Queue()
    subscribed = threading.Event()
    client.on_message = lambda c, u, message: heard.put(message.payload)
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    client.subscribe(OWN_REPLY, qos=1)
    assert subscribed.wait(60)
    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic, properties.CorrelationData = OWN_REPLY, b"1"
    payload = b'{"prompt":"x","max_nwe":3}'
    if broker.protocol == "3.1.1":
        properties, payload = None, payload[:-1] + b',"reply_to":"%s","id":"1"}' % OWN_REPLY.encode()
    client.publish(GENERATE, payload, qos=1, properties=properties)
    error = json.loads(heard.get(timeout=60))["error"]
    client.disconnect()
    client.loop_stop()
    assert error["code"] == "invalid_request" and "did you mean 'max_new'?" in error["message"]
