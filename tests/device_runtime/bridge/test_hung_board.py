"""The watchdog of a bridge: a board whose model hangs trips it, and one that takes its time does not."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from desk import Desk, until

from device_runtime.bridge.link import Link
from device_runtime.bridge.model import SerialModel
from device_runtime.bridge.timing import Timing
from device_runtime.bundle.folder import Bundle
from device_runtime.device.service import Service
from device_runtime.device.watchdog import ServiceManager
from device_runtime.fleet.settings import DeviceConfig
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.client import Client
from device_runtime.mqtt.packets import Subscription
from device_runtime.mqtt.topics import DeviceTopics
from tests.support.brokers import mosquitto
from toolkit.emulate import model_board as peer

WATCHDOG_S = 1.6
TOPICS = DeviceTopics("watched")


class Watched:
    """A bridge, and what its service manager hears."""

    def __init__(self, port: int, folder: Path, desk: Desk, bundle: Path) -> None:
        self._heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._heard.bind(str(folder / "notify"))
        self.model = SerialModel(Link(str(desk.path), timing=Timing(reply_s=0.05)), Bundle.open(bundle))
        config = DeviceConfig("watched", BrokerAddress("127.0.0.1", port), folder / "state")
        manager = ServiceManager(str(folder / "notify"), WATCHDOG_S)
        self.service = Service(config, lambda name: self.model.open(30), manager, self.model)
        self._thread = threading.Thread(target=self.service.run)
        self._thread.start()

    def until(self, wanted: str, timeout_s: float = 60.0) -> None:
        self._heard.settimeout(timeout_s)
        while self._heard.recv(4096).decode() != wanted:
            pass

    def close(self) -> None:
        self.service.stop()
        self._thread.join(30)
        self._heard.close()
        self.model.close()
        assert not self._thread.is_alive()


@pytest.fixture
def desk(converted: Callable[..., Path], tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path, converted("yarn-biases", "micro"))
    yield made
    made.close()


def test_a_model_that_hangs_trips_the_watchdog_and_a_slow_one_does_not(desk, converted, tmp_path, monkeypatch):
    monkeypatch.setattr(peer, "PREFILL", 3)  # the prompt alone takes dozens of steps
    replies: list[dict] = []
    with mosquitto(tmp_path) as port:
        watched = Watched(port, tmp_path, desk, converted("yarn-biases", "micro"))
        client = Client(
            BrokerAddress("127.0.0.1", port), "asking", on_message=lambda m: replies.append(json.loads(m.payload))
        )
        reply_to = TOPICS.reply("asking", "1")
        client.subscribe(Subscription(reply_to))
        client.connect()
        try:
            watched.until("READY=1")
            desk.pace_s = 0.25
            question = {"prompt": "how are you " * 18, "max_new": 60, "temperature": 1, "seed": 5, "stream": True}
            client.publish(TOPICS.generate, json.dumps(question).encode(), qos=1, response_topic=reply_to)
            until(lambda: desk.board.working or replies)
            for _ in range(3):  # three halves of the interval, and not one token yet
                watched.until("WATCHDOG=1")
            assert desk.engine.completion_tokens == 0 and not replies
            desk.hung = True
            with pytest.raises(TimeoutError):
                while True:
                    watched.until("WATCHDOG=1", WATCHDOG_S)
            assert not watched.model.trouble  # the board still answers; nothing else would have noticed
            desk.hung, desk.pace_s = False, 0.0
            watched.until("WATCHDOG=1")
        finally:
            client.close()
            watched.close()
