"""Answers of links outlive a broker that is away, and a power cut."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedModel

from device_runtime.errors import ConfigurationError
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.config import DeviceConfig
from device_runtime.mqtt.links import Link
from device_runtime.mqtt.outbox import Outbox
from device_runtime.mqtt.service import Service
from tests.brokers import free_port, mosquitto
from tests.mqtt_peer import Peer

ROOT = Path(__file__).parents[3]
LINK = Link(name="hot", source="plant/+/air", prompt="{{ t }}", to="plant/advice")


class TestTheBox:
    def test_it_keeps_order_and_content(self, tmp_path: Path) -> None:
        box = Outbox(tmp_path / "o")
        for i in range(3):
            box.put(f"t/{i}", bytes([i]), retain=i == 1)
        assert [(k.topic, k.payload, k.retain) for k in box.waiting()] == [
            ("t/0", b"\0", False), ("t/1", b"\1", True), ("t/2", b"\2", False),
        ]  # fmt: skip

    def test_what_is_done_is_gone_for_good(self, tmp_path: Path) -> None:
        box = Outbox(tmp_path / "o")
        first, second = box.put("a", b""), box.put("b", b"")
        box.done(first.number)
        box.close()
        assert [k.number for k in Outbox(tmp_path / "o").waiting()] == [second.number]

    def test_numbers_are_never_used_twice(self, tmp_path: Path) -> None:
        """They are the Correlation Data by which a reader knows a message that came twice."""
        box = Outbox(tmp_path / "o")
        numbers = []
        for _ in range(3):
            kept = box.put("a", b"")
            numbers.append(kept.number)
            box.done(kept.number)
        box.close()
        numbers.append(Outbox(tmp_path / "o").put("a", b"").number)
        assert len(set(numbers)) == 4 and numbers == sorted(numbers)

    @given(st.lists(st.sampled_from(["put", "done"]), max_size=40))
    @settings(max_examples=30)
    def test_it_never_holds_more_than_its_limit_and_gives_up_the_oldest(
        self, tmp_path_factory: pytest.TempPathFactory, actions: list[str]
    ) -> None:
        box, expected = Outbox(tmp_path_factory.mktemp("box") / "o", limit=5), []
        for action in actions:
            if action == "put":
                expected.append(box.put("t", b"x").number)
                expected = expected[-5:]
            elif expected:
                box.done(expected.pop(0))
            assert [k.number for k in box.waiting()] == expected
        box.close()

    def test_a_process_that_is_killed_has_lost_nothing(self, tmp_path: Path) -> None:
        code = (
            "import sys, os, signal; from pathlib import Path; from device_runtime.mqtt.outbox import Outbox\n"
            "box = Outbox(Path(sys.argv[1]))\n"
            "for i in range(20): box.put('t', str(i).encode())\n"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "o")], cwd=ROOT)
        assert done.returncode == -9
        assert [k.payload for k in Outbox(tmp_path / "o").waiting()] == [str(i).encode() for i in range(20)]

    def test_another_file_is_not_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "o").write_bytes(b"precious" * 100)
        with pytest.raises(
            ConfigurationError, match=r"the box of unsent answers, .*cannot be used: file is not a data"
        ):
            Outbox(tmp_path / "o")
        assert (tmp_path / "o").read_bytes() == b"precious" * 100


class TestOnAir:
    def start(self, folder: Path, port: int, model: ScriptedModel) -> tuple[Service, threading.Thread]:
        config = DeviceConfig("kept", BrokerAddress("127.0.0.1", port), folder, links=(LINK,), home_assistant=False)
        service = Service(config, lambda name: model)
        thread = threading.Thread(target=service.run)
        thread.start()
        return service, thread

    def collect(self, port: int):
        peer = Peer(port)
        peer.subscribe("plant/advice", "stonechat/1/kept/out/state")
        return peer

    def test_an_answer_that_finds_no_broker_comes_when_there_is_one_again(self, tmp_path: Path) -> None:
        port, model = free_port(), ScriptedModel(["open", " it"], gated=True)
        with mosquitto(tmp_path, port=port):
            peer = self.collect(port)
            service, thread = self.start(tmp_path / "state", port, model)
            peer.until(lambda topic, value: value.get("state") == "ready", 10)
            peer.publish("plant/a/air", {"t": 9})
            peer.until(lambda topic, value: value.get("state") == "busy", 10)
            peer.close()
        for _ in range(3):  # the answer is ready while the broker is away
            model.gate.release()
        wait_until(lambda: len(service._outbox.waiting()) == 2)
        with mosquitto(tmp_path, port=port):
            peer = self.collect(port)
            found = peer.until(lambda topic, value: topic == "plant/advice", 20)
            assert found[-1][1]["text"] == "open it"
            wait_until(lambda: service._outbox.waiting() == [])
            assert [t for t, _ in drained(peer) if t == "plant/advice"] == []  # and only once
            service.stop()
            thread.join(10)
            peer.close()

    def test_a_power_cut_while_offline_loses_nothing(self, tmp_path: Path) -> None:
        """What a device had put in the box is said by its next start."""
        (tmp_path / "state").mkdir()
        box = Outbox(tmp_path / "state" / "outbox.sqlite")
        box.put("plant/advice", b'{"text":"before the cut"}')
        box.close()
        port = free_port()
        with mosquitto(tmp_path, port=port):
            peer = self.collect(port)
            service, thread = self.start(tmp_path / "state", port, ScriptedModel())
            seen = peer.until(lambda topic, value: topic == "plant/advice", 10)
            assert seen[-1][1] == {"text": "before the cut"}
            wait_until(lambda: service._outbox.waiting() == [])
            service.stop()
            thread.join(10)
            peer.close()

    def test_an_answer_is_named_so_that_a_copy_can_be_told(self, on_air, peer) -> None:
        device = on_air(links=(Link(name="hot", source="named/+/air", prompt="{{ t }}", to="named/advice"),))
        listener = peer()
        listener.subscribe("named/advice")
        names = []
        for t in (1, 2):
            listener.publish("named/a/air", {"t": t})
            names.append(listener.heard.get(timeout=5).properties.CorrelationData)
        assert len(set(names)) == 2
        assert all(name.startswith(device.topics.device.encode()) for name in names)


def wait_until(true, timeout_s: float = 10.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def drained(peer) -> list:
    time.sleep(0.7)
    messages = []
    while not peer.heard.empty():
        messages.append(peer.next())
    return messages
