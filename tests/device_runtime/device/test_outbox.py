"""Answers of links outlive a broker that is away, and a power cut."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.device.delivery import Delivery
from device_runtime.device.outbox import Outbox
from device_runtime.device.service import Service
from device_runtime.errors import ConfigurationError
from device_runtime.fleet.links import Link
from device_runtime.fleet.settings import DeviceConfig
from device_runtime.mqtt.address import BrokerAddress
from tests.support.brokers import free_port, mosquitto
from tests.support.mqtt_peer import Peer
from tests.support.scripted_model import ScriptedModel

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
            "import sys, os, signal; from pathlib import Path; from device_runtime.device.outbox import Outbox\n"
            "box = Outbox(Path(sys.argv[1]))\n"
            "for i in range(20): box.put('t', str(i).encode())\n"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "o")], cwd=ROOT)
        assert done.returncode == -9
        assert [k.payload for k in Outbox(tmp_path / "o").waiting()] == [str(i).encode() for i in range(20)]

    def test_what_is_no_box_is_put_aside_whole(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A card may come back from a power cut with anything; a device that does not start loses more."""
        (tmp_path / "o").write_bytes(b"precious" * 100)
        box = Outbox(tmp_path / "o")
        assert (tmp_path / "o.damaged").read_bytes() == b"precious" * 100
        assert f"it is {tmp_path}/o.damaged now" in caplog.text
        number = box.put("a", b"1").number
        assert number > 2**32  # the damaged box may have used those from 1 on
        box.close()
        assert [k.number for k in Outbox(tmp_path / "o").waiting()] == [number]

    def test_a_box_with_a_spoilt_page_is_put_aside(self, tmp_path: Path) -> None:
        box = Outbox(tmp_path / "o")
        for i in range(50):
            box.put("a", bytes([i]) * 1000)
        box.close()
        with (tmp_path / "o").open("r+b") as file:
            file.seek(3 * 4096)
            file.write(b"\xff" * 4096)
        assert Outbox(tmp_path / "o").waiting() == []
        assert (tmp_path / "o.damaged").stat().st_size > 50_000

    def test_a_folder_in_its_place_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "o").mkdir()
        with pytest.raises(ConfigurationError, match=r"the box of unsent answers, .*o, cannot be used: unable to open"):
            Outbox(tmp_path / "o")

    def test_a_full_disk_is_told_and_what_was_confirmed_meanwhile_does_not_come_again(self, tmp_path: Path) -> None:
        box = Outbox(tmp_path / "o")
        first, second = box.put("a", b"1"), box.put("a", b"2")
        with no_room():
            with pytest.raises(ConfigurationError, match=r"cannot be used: .* Free some space"):
                box.put("a", b"3")
            with pytest.raises(ConfigurationError, match="Free some space"):
                box.done(first.number)
            assert box.waiting() == [second]
        third = box.put("a", b"4")
        box.done(second.number)
        box.close()
        assert Outbox(tmp_path / "o").waiting() == [third]


class FakeClient:
    """A connection that a test plugs and unplugs."""

    def __init__(self) -> None:
        self.connected, self.sent = False, []

    def publish(self, topic: str, payload: bytes, *, on_confirmed=None, **options) -> bool:
        self.sent.append((payload, on_confirmed))
        return self.connected


class TestDelivery:
    @pytest.fixture
    def parts(self, tmp_path: Path):
        box, client, lost = Outbox(tmp_path / "o", limit=3), FakeClient(), []
        yield Delivery("d", box, client, lost.append), box, client, lost
        box.close()

    def test_what_waits_goes_before_what_is_new(self, parts) -> None:
        """An old answer that came after a new one would be what a retained topic keeps."""
        delivery, _, client, _ = parts
        delivery.deliver("t", b"1")
        delivery.deliver("t", b"2")
        assert client.sent == []
        client.connected = True
        delivery.deliver("t", b"3")
        delivery.resume()
        assert [payload for payload, _ in client.sent] == [b"1", b"2", b"3"]

    def test_what_the_broker_does_not_take_is_told_and_not_sent_for_ever(self, parts) -> None:
        delivery, box, client, lost = parts
        client.connected = True
        delivery.deliver("plant/advice", b"1")
        client.sent[0][1]("Not authorized")
        assert lost == ["the broker did not take an answer on 'plant/advice': Not authorized"]
        assert box.waiting() == []

    def test_what_a_full_box_gives_up_is_told(self, parts) -> None:
        delivery, _, _, lost = parts
        for i in range(5):
            delivery.deliver("t", bytes([i]))
        assert lost == ["the box of unsent answers was full, and its oldest was given up"] * 2

    def test_a_full_disk_neither_holds_an_answer_back_nor_ends_anything(self, parts) -> None:
        delivery, box, client, _ = parts
        client.connected = True
        assert delivery.deliver("t", b"kept") == ""
        with no_room():
            assert "Free some space" in delivery.deliver("t", b"not kept")
            client.sent[0][1]("")
        assert [payload for payload, _ in client.sent] == [b"kept", b"not kept"]
        assert box.waiting() == []


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
            peer.until(lambda topic, value: value.get("state") == "ready", 60)
            peer.publish("plant/a/air", {"t": 9})
            peer.until(lambda topic, value: value.get("state") == "busy", 60)
            peer.close()
        for _ in range(3):  # the answer is ready while the broker is away
            model.gate.release()
        wait_until(lambda: len(service._outbox.waiting()) == 3)  # to the link, its topic, and its place
        with mosquitto(tmp_path, port=port):
            peer = self.collect(port)
            found = peer.until(lambda topic, value: topic == "plant/advice", 60)
            assert found[-1][1]["text"] == "open it"
            wait_until(lambda: service._outbox.waiting() == [])
            assert [t for t, _ in drained(peer) if t == "plant/advice"] == []  # and only once
            service.stop()
            thread.join(60)
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
            seen = peer.until(lambda topic, value: topic == "plant/advice", 60)
            assert seen[-1][1] == {"text": "before the cut"}
            wait_until(lambda: service._outbox.waiting() == [])
            service.stop()
            thread.join(60)
            peer.close()

    def test_a_full_disk_is_told_and_the_answer_comes(self, on_air) -> None:
        device = on_air(
            links=(Link(name="hot", source="full/+/air", prompt="{{ t }}", to="full/advice"),), health_s=0.2
        )
        device.client.deaf_to = "(nothing)"
        device.client.subscribe("full/advice")
        device.service._outbox._file.execute("PRAGMA max_page_count = 1")  # sqlite: no more pages than there are
        device.client.publish("full/a/air", {"t": 1, "note": "x" * 9000})
        seen = device.client.until(lambda topic, value: topic.endswith("/out/link/hot"))
        assert [value["text"] for topic, value in seen if topic == "full/advice"] == ["1"]
        (event,) = [value for topic, value in seen if topic == device.topics.event]
        assert (event["event"], event["link"], event["topic"]) == ("not_kept", "hot", "full/a/air")
        assert "database or disk is full. Free some space" in event["message"]
        device.client.until(lambda topic, value: value.get("links") == {"hot": {"not_kept": 1}})

    def test_an_answer_that_the_broker_does_not_take_is_told(self, tmp_path: Path) -> None:
        """An access list that forgets what a link writes is found out by reading `out/event`."""
        access = ["topic readwrite stonechat/#", "topic readwrite plant/+/air", "topic read plant/advice", ""]
        (tmp_path / "acl").write_text("\n".join(access))
        with mosquitto(tmp_path, f"acl_file {tmp_path}/acl", "user root") as port:
            peer = self.collect(port)
            peer.subscribe("stonechat/1/kept/out/event")
            service, thread = self.start(tmp_path / "state", port, ScriptedModel())
            peer.until(lambda topic, value: value.get("state") == "ready", 60)
            peer.publish("plant/a/air", {"t": 9})
            event = peer.until(lambda topic, value: topic.endswith("/event"), 60)[-1][1]
            assert (event["event"], event["kind"]) == ("dropped", "answers")
            assert event["message"] == "the broker did not take an answer on 'plant/advice': Not authorized"
            wait_until(lambda: service._outbox.waiting() == [])
            service.stop()
            thread.join(60)
            peer.close()

    def test_an_answer_is_named_so_that_a_copy_can_be_told(self, on_air, peer) -> None:
        device = on_air(links=(Link(name="hot", source="named/+/air", prompt="{{ t }}", to="named/advice"),))
        listener = peer()
        listener.subscribe("named/advice")
        names = []
        for t in (1, 2):
            listener.publish("named/a/air", {"t": t})
            names.append(listener.heard.get(timeout=60).properties.CorrelationData)
        assert len(set(names)) == 2
        assert all(name.startswith(device.topics.device.encode()) for name in names)


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """No file of this process can grow, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def wait_until(true, timeout_s: float = 60.0) -> None:
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
