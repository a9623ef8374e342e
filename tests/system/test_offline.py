"""A broker that is away: at the start, in the middle, and back under another address; and a power cut meanwhile."""

from __future__ import annotations

import contextlib
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from device_runtime.client.remote import RemoteModel
from device_runtime.device.extensions.link_places import place_of
from device_runtime.device.service import Service
from device_runtime.engine.language_model import Completion
from device_runtime.fleet.file import load as load_fleet
from device_runtime.fleet.settings import DeviceConfig
from device_runtime.mqtt import backoff as patience
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.messages import DeviceState, State
from device_runtime.mqtt.topics import DeviceTopics
from tests.support.brokers import free_port, mosquitto
from tests.support.scripted_fleet import Device, await_state, fleet_file, wait_until

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "toolkit" / "scripted_device.py"
LINKS = """\
links:
  - name: too-hot
    from: plant/+/air
    prompt: "{{ topic[1] }} has {{ temp_c }} degrees so do something about it"
    to: plant/{{ topic[1] }}/advice
"""


class Stepped:
    """A model that says one word for each `step.release()`."""

    def __init__(self, words: int) -> None:
        self.words, self.step, self.asked = words, threading.Semaphore(0), 0

    def generate(self, prompt: Any, **options: Any) -> Iterator[str]:
        """As `LanguageModel.generate`."""
        self.asked += 1
        return _SteppedAnswer(self)


class _SteppedAnswer(Iterator[str]):
    def __init__(self, model: Stepped) -> None:
        self._model, self._said, self._cancelled = model, 0, threading.Event()

    def __next__(self) -> str:
        while not self._model.step.acquire(timeout=0.01) and not self._cancelled.is_set():
            pass
        if self._cancelled.is_set() or self._said == self._model.words:
            text = "".join(f"w{i} " for i in range(self._said))
            finish: Any = "cancelled" if self._cancelled.is_set() else "stop"
            self.result = Completion(text, finish, 1, 0, self._said, 1.0, 1.0)
            raise StopIteration
        self._said += 1
        return f"w{self._said - 1} "

    def cancel(self) -> None:
        """Stop."""
        self._cancelled.set()


@contextlib.contextmanager
def serving(folder: Path, broker: BrokerAddress, model: Any, **config: Any) -> Iterator[Service]:
    """A device in a thread, that waits for its broker."""
    service = Service(DeviceConfig("off-pi", broker, folder / "state", **config), lambda name: model)
    thread = threading.Thread(target=service.run, kwargs={"wait_for_broker": True})
    thread.start()
    try:
        yield service
    finally:
        service.stop()
        thread.join(60)
        assert not thread.is_alive()


class Received(list[bytes]):
    """The payloads that a plain client has heard."""

    client: paho.Client
    subscribed: threading.Event


@contextlib.contextmanager
def listening(port: int, *filters: str) -> Iterator[Received]:
    """A plain client that comes back by itself, subscribed."""
    heard, subscribed = Received(), threading.Event()
    heard.client = client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_connect = lambda c, *_: c.subscribe([(f, SubscribeOptions(qos=1)) for f in filters or ["nothing"]])
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_disconnect = lambda *_: subscribed.clear()
    client.on_message = lambda c, u, message: heard.append(message.payload)
    client.reconnect_delay_set(1, 1)
    client.connect("127.0.0.1", port)
    client.loop_start()
    heard.subscribed = subscribed
    try:
        assert subscribed.wait(60)
        yield heard
    finally:
        client.disconnect()
        client.loop_stop()


class TestAtTheStart:
    def serve(self, port: int, folder: Path, *flags: str) -> subprocess.Popen[str]:
        fleet = fleet_file(folder, {"off-pi": ""})
        command = [sys.executable, str(SCRIPT), str(fleet), "--device", "off-pi", "--state-dir", str(folder / "s")]
        command += ["--broker", f"mqtt://127.0.0.1:{port}", *flags]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def test_serve_says_one_line_and_comes_up_with_the_broker(self, tmp_path: Path) -> None:
        port = free_port()
        process = self.serve(port, tmp_path)
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            assert f"no connection to the broker at 127.0.0.1:{port}: Connection refused." in first
            assert "Trying again until it is there." in first
            time.sleep(1.5)  # at least one more try, of which nothing is said
            with mosquitto(tmp_path, port=port):
                await_state(port, "off-pi", lambda state: state["state"] == "ready")
                second = process.stderr.readline()
                assert f"connected to 127.0.0.1:{port} as off-pi" in second
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
        finally:
            process.kill()

    def test_a_signal_ends_the_waiting(self, tmp_path: Path) -> None:
        process = self.serve(free_port(), tmp_path)
        assert process.stderr is not None
        assert "Trying again" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0

    def run(self, port: int, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        fleet = fleet_file(folder, {"off-pi": ""})
        command = [sys.executable, "-m", "toolkit", "serve", str(fleet), "--device", "off-pi", *flags]
        command += ["--broker", f"mqtt://127.0.0.1:{port}", "--state-dir", str(folder / "s")]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    def test_no_wait_exits_3_at_once(self, tmp_path: Path) -> None:
        port = free_port()
        done = self.run(port, tmp_path, "--no-wait")
        assert done.returncode == 3
        assert f"no connection to the broker at 127.0.0.1:{port}: Connection refused. Check that" in done.stderr

    def test_a_refused_user_ends_it_at_once(self, tmp_path: Path) -> None:
        with mosquitto(tmp_path, "allow_anonymous false") as port:
            done = self.run(port, tmp_path)
        assert done.returncode == 2
        assert "refuses this client" in done.stderr and "Trying again" not in done.stderr

    def test_another_reason_is_told_again(self, caplog: pytest.LogCaptureFixture) -> None:
        from device_runtime.errors import UnreachableError

        reasons = iter(["no route", "no route", "refused", "refused", None])

        def connect() -> None:
            if why := next(reasons):
                raise UnreachableError(f"It is {why}.")

        caplog.set_level("WARNING")
        stopping = SimpleNamespace(is_set=lambda: False, wait=lambda seconds: False)
        client: Any = SimpleNamespace(connect=connect)
        assert patience.connect(client, stopping)  # type: ignore[arg-type]
        assert [r.message.split(".")[0] for r in caplog.records] == ["It is no route", "It is refused"]


class TestInTheMiddle:
    def test_an_answer_under_way_is_made_once_and_comes_whole(self, tmp_path: Path) -> None:
        """Pieces are lost with the connection, and their text is not: it comes with the final answer."""
        port, model = free_port(), Stepped(6)
        broker = contextlib.ExitStack()
        broker.enter_context(mosquitto(tmp_path, port=port))
        with serving(tmp_path, BrokerAddress("127.0.0.1", port), model):
            await_state(port, "off-pi", lambda state: state["state"] == "ready")
            with listening(port, "stonechat/1/off-pi/out/reply/me/1") as heard:
                properties = Properties(PacketTypes.PUBLISH)
                properties.ResponseTopic = "stonechat/1/off-pi/out/reply/me/1"
                properties.CorrelationData = b"once"
                request = ("stonechat/1/off-pi/in/generate", b'{"prompt":"x","stream":true}', 1, False, properties)
                heard.client.publish(*request).wait_for_publish(60)
                model.step.release()
                wait_until(lambda: len(heard) == 1)
                broker.close()
                wait_until(lambda: not heard.subscribed.is_set())
                for _ in range(3):  # these are said to nobody
                    model.step.release()
                wait_until(lambda: model.step._value == 0)
                broker.enter_context(mosquitto(tmp_path, port=port))
                await_state(port, "off-pi", lambda state: state["state"] == "busy")
                assert heard.subscribed.wait(60)
                # A client that does not know whether its request arrived sends it again, as it was.
                heard.client.publish(*request).wait_for_publish(60)
                for _ in range(3):
                    model.step.release()
                wait_until(lambda: any(b'"done":true' in payload for payload in heard))
                await_state(port, "off-pi", lambda state: state["state"] == "ready")
        broker.close()
        finals = [payload for payload in heard if b'"done":true' in payload]
        assert (
            len(set(finals)) == 1 and b"w0 w1 w2 w3 w4 w5" in finals[0]
        )  # a repeat after the end is told the same end
        assert model.asked == 1

    def test_a_broker_that_is_back_under_another_address_is_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The host's name is resolved again for each try."""
        address = ["127.0.0.1"]
        resolve = socket.getaddrinfo

        def answer(host: Any, *more: Any, **options: Any) -> Any:
            return resolve(address[0] if host == "broker.test" else host, *more, **options)

        monkeypatch.setattr(socket, "getaddrinfo", answer)
        port, model = free_port(), Stepped(1)
        for _ in range(100):
            model.step.release()
        broker = BrokerAddress("broker.test", port)
        with contextlib.ExitStack() as parts:
            with mosquitto(tmp_path, port=port):
                parts.enter_context(serving(tmp_path, broker, model))
                await_state(port, "off-pi", lambda state: state["state"] == "ready")
                remote = parts.enter_context(RemoteModel(broker, "off-pi"))
                assert "".join(remote.generate("x", timeout_s=60)) == "w0 "
            address[0] = "127.0.0.2"
            parts.enter_context(mosquitto(tmp_path, port=port, address="127.0.0.2"))
            await_state(port, "off-pi", lambda state: state["state"] == "ready", host="127.0.0.2")
            wait_until(lambda: remote._exchange.watch("off-pi") == State(DeviceState.READY, 1))
            assert "".join(remote.generate("x", timeout_s=60)) == "w0 "


class TestPowerCut:
    def test_an_answer_given_while_offline_outlives_it(self, tmp_path: Path) -> None:
        """A reading comes, the broker goes, the link answers to its disk, the power goes: the next start delivers."""
        port = free_port()
        fleet = fleet_file(tmp_path, {"cut-pi": ", links: [too-hot]"}, LINKS)
        device = Device(tmp_path, port, "cut-pi", fleet)
        box = device.state_dir / "outbox.sqlite"

        def waiting() -> list[str]:
            with contextlib.closing(sqlite3.connect(f"file:{box}?mode=ro", uri=True)) as file:
                return [topic for (topic,) in file.execute("SELECT topic FROM kept ORDER BY number")]

        (link,) = load_fleet(fleet).links
        topics, place = DeviceTopics("cut-pi"), place_of(link, "plant/north/air")[0]
        answers = ["plant/north/advice", topics.link("too-hot"), topics.link("too-hot", place)]

        try:
            with mosquitto(tmp_path, port=port):
                device.start(ready=True)
                device.hold.touch()
                with listening(port) as sensor:
                    sensor.client.publish("plant/north/air", b'{"temp_c": 38}', qos=1).wait_for_publish(60)
                await_state(port, "cut-pi", lambda state: state["state"] == "busy")
            device.hold.unlink()
            wait_until(lambda: waiting() == answers)
            device.kill()
            assert waiting() == answers
            with mosquitto(tmp_path, port=port), listening(port, "plant/+/advice") as heard:
                device.start()
                wait_until(lambda: waiting() == [])
                wait_until(lambda: len(heard) > 0)
                with listening(port, *answers[1:]) as late:  # these two are retained
                    wait_until(lambda: len(late) == 2)
            assert [b"NORTH HAS 38 DEGREES" in payload for payload in heard] == [True]
            assert late == [*heard, *heard]  # the same answer on each topic
        finally:
            device.kill()
