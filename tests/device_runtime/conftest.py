"""A broker for the session, and devices and clients on it for each test."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from device_runtime.device.service import Service
from device_runtime.fleet.settings import DeviceConfig
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.topics import DeviceTopics
from tests.support.brokers import mosquitto
from tests.support.mqtt_peer import Peer
from tests.support.scripted_fleet import wait_until
from tests.support.scripted_model import ScriptedModel

_numbers = itertools.count(1)


@dataclass
class OnAir:
    """A running device."""

    service: Service
    model: ScriptedModel
    topics: DeviceTopics
    client: Peer  # subscribed to everything the device says

    def until_waiting(self, count: int) -> None:
        """Wait until so many requests wait for the model."""
        wait_until(lambda: len(self.service._device.queue) == count)

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
        models = config.pop("scripts", {})  # by name, where there are several; an error: why it cannot be opened

        def open_model(name: str) -> Any:
            found = models.get(name, model)
            if isinstance(found, Exception):
                raise found
            return found

        settings = {"state_dir": tmp_path / device, "broker": BrokerAddress("127.0.0.1", port)} | config
        service = Service(DeviceConfig(device, **settings), open_model)
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
        thread.join(30)
        assert not thread.is_alive()
