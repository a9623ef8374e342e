"""A broker for the session, and devices and clients on it for each test."""

from __future__ import annotations

import itertools
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from scripted import ScriptedModel

from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.config import DeviceConfig
from device_runtime.mqtt.service import Service
from device_runtime.mqtt.topics import DeviceTopics
from tests.brokers import mosquitto

_numbers = itertools.count(1)


@dataclass
class Peer:
    """An independent client: plain paho, MQTT 5 or 3.1.1."""

    port: int
    protocol: int = paho.MQTTv5
    heard: queue.Queue[paho.MQTTMessage] = field(default_factory=queue.Queue)
    deaf_to: str = "(nothing)"  # messages whose topics end like that are not for this test

    def __post_init__(self) -> None:
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=self.protocol)
        self.client.on_message = lambda c, u, m: None if m.topic.endswith(self.deaf_to) else self.heard.put(m)
        subscribed = self._subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.connect("127.0.0.1", self.port)
        self.client.loop_start()

    def subscribe(self, *filters: str) -> None:
        self._subscribed.clear()
        self.client.subscribe([(f, 1) for f in filters])
        assert self._subscribed.wait(5)

    def publish(self, topic: str, payload: Any, *, retain: bool = False, **properties: Any) -> None:
        p = None
        if properties:
            p = Properties(PacketTypes.PUBLISH)
            for name, value in properties.items():
                setattr(p, name, value)
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.client.publish(topic, data, qos=1, retain=retain, properties=p).wait_for_publish(5)

    def next(self, timeout_s: float = 5.0) -> tuple[str, Any]:
        """The next message: topic and parsed payload."""
        message = self.heard.get(timeout=timeout_s)
        return message.topic, json.loads(message.payload)

    def until(self, wanted: Callable[[str, Any], bool], timeout_s: float = 5.0) -> list[tuple[str, Any]]:
        """All messages up to the first one that is `wanted`."""
        end_s, got = time.monotonic() + timeout_s, []
        while True:
            got.append(self.next(max(0.01, end_s - time.monotonic())))
            if wanted(*got[-1]):
                return got

    def silent(self, for_s: float = 0.3) -> bool:
        """Whether nothing comes for a while."""
        try:
            self.heard.get(timeout=for_s)
        except queue.Empty:
            return True
        return False

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@dataclass
class OnAir:
    """A running device."""

    service: Service
    model: ScriptedModel
    topics: DeviceTopics
    client: Peer  # subscribed to everything the device says

    def ask(self, client: Peer | None = None, session: str = "1", correlation: bytes = b"c1", **fields: Any) -> str:
        """Send a request; return its reply topic."""
        reply_to = self.topics.reply("tester", session)
        (client or self.client).publish(
            self.topics.generate, fields, ResponseTopic=reply_to, CorrelationData=correlation
        )  # fmt: skip
        return reply_to


@pytest.fixture(scope="session")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with mosquitto(tmp_path_factory.mktemp("broker")) as port:
        yield port


@pytest.fixture
def peer(port: int) -> Iterator[Callable[..., Peer]]:
    """Make a client; it is closed after the test."""
    peers: list[Peer] = []

    def make(protocol: int = paho.MQTTv5) -> Peer:
        peers.append(Peer(port, protocol))
        return peers[-1]

    yield make
    for p in peers:
        p.close()


@pytest.fixture
def on_air(port: int, peer: Callable[..., Peer], tmp_path: Path) -> Iterator[Callable[..., OnAir]]:
    """Start a device with a scripted model; it is stopped after the test."""
    running: list[tuple[Service, threading.Thread]] = []

    def start(script: ScriptedModel | None = None, **config: Any) -> OnAir:
        device = config.pop("device", f"dev-{next(_numbers)}")
        model = script or ScriptedModel()
        models = config.pop("scripts", {})  # by name, where there are several
        settings = {"state_dir": tmp_path / device, "broker": BrokerAddress("127.0.0.1", port)} | config
        service = Service(DeviceConfig(device, **settings), lambda name: models.get(name, model))
        thread = threading.Thread(target=service.run)
        topics = DeviceTopics(device)
        client = peer()
        client.deaf_to = "/out/health"
        client.subscribe(f"stonechat/1/{device}/out/#")
        thread.start()
        running.append((service, thread))
        client.until(lambda topic, value: topic == topics.state and value["state"] == "ready")
        return OnAir(service, model, topics, client)

    yield start
    for service, thread in running:
        service.stop()
        thread.join(5)
        assert not thread.is_alive()
