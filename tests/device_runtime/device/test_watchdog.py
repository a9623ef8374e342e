"""The watchdog of a running device: it trips on a model that hangs, and on nothing else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_runtime.device.service import Service
from device_runtime.device.watchdog import ServiceManager
from device_runtime.fleet.settings import DeviceConfig
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.topics import DeviceTopics
from tests.support.mqtt_relay import PUBACK, relay
from tests.support.scripted_model import ScriptedModel

WATCHDOG_S = 1.0


class Device:
    """A device with a scripted model, and the socket of its service manager."""

    def __init__(self, port: int, folder: Path, model: ScriptedModel, name: str) -> None:
        self.model, self.topics = model, DeviceTopics(name)
        self.heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.heard.bind(str(folder / "notify"))
        self.heard.settimeout(60)
        config = DeviceConfig(name, BrokerAddress("127.0.0.1", port), folder / "state")
        manager = ServiceManager(str(folder / "notify"), WATCHDOG_S)
        self.service = Service(config, lambda name: model, manager)
        self.thread = threading.Thread(target=self.service.run)

    def until(self, wanted: str) -> list[str]:
        heard = [self.heard.recv(4096).decode()]
        while heard[-1] != wanted:
            heard.append(self.heard.recv(4096).decode())
        return heard


@pytest.fixture
def device(port: int, tmp_path: Path) -> Iterator[Device]:
    model = ScriptedModel([f"{number} " for number in range(1000)], gated=True)
    made = Device(port, tmp_path, model, "watched")
    made.thread.start()
    yield made
    made.service.stop()
    made.thread.join(10)
    assert not made.thread.is_alive()


def test_a_device_says_when_it_is_ready_and_what_it_does(device):
    heard = device.until("READY=1")
    assert heard[0].startswith("STATUS=connecting to 127.0.0.1")
    assert "STATUS=opening default" in heard
    assert device.heard.recv(4096).decode().startswith("STATUS=watched at 127.0.0.1")
    device.service.stop()
    assert "STOPPING=1" in device.until("STOPPING=1")


def test_a_device_is_ready_once_the_broker_has_its_state(port, tmp_path):
    """Who waits for it and then reads the retained state must not find what was left when it went."""
    held, released = threading.Event(), threading.Event()

    def hold_confirmations(kind: int, packet: bytes) -> bytes:
        if kind == PUBACK:
            held.set()
            released.wait(60)
        return packet

    with relay(port, hold_confirmations) as way:
        made = Device(way, tmp_path, ScriptedModel([]), "patient")
        made.thread.start()
        try:
            assert held.wait(60)
            early = [made.heard.recv(4096).decode() for _ in range(4)]
            while early.count("WATCHDOG=1") < 3:  # a second, five times as long as it takes to see a confirmation
                early.append(made.heard.recv(4096).decode())
            assert "READY=1" not in early
            released.set()
            made.until("READY=1")
        finally:
            released.set()
            made.service.stop()
            made.thread.join(10)


def test_an_idle_device_is_alive(device):
    device.until("READY=1")
    for _ in range(4):
        device.until("WATCHDOG=1")


def test_a_long_answer_is_no_stall_and_a_hanging_one_is(device, peer):
    device.until("READY=1")
    client = peer()
    client.publish(device.topics.generate, {"prompt": "count"}, ResponseTopic=device.topics.reply("t", "1"))
    for _ in range(5):  # five times half of the watchdog's interval, in one answer
        stop = threading.Event()
        talking = threading.Thread(target=lambda stop=stop: speak(device.model, stop))
        talking.start()
        device.until("WATCHDOG=1")
        stop.set()
        talking.join()
    device.heard.settimeout(2 * WATCHDOG_S)  # nobody lets it go on
    with pytest.raises(TimeoutError):
        while True:
            device.heard.recv(4096)
    device.heard.settimeout(60)
    device.model.gate.release()  # it does go on after all
    device.until("WATCHDOG=1")


def speak(model: ScriptedModel, stop: threading.Event) -> None:
    while not stop.wait(0.05):
        model.gate.release()
