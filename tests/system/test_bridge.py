"""A microcontroller as a member of a fleet: mosquitto, `stonechat bridge`, the reference peer, `stonechat ask`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from device_runtime.mqtt.client import BrokerAddress, Client, Subscription
from device_runtime.mqtt.topics import DeviceTopics
from device_runtime.serial.peer import main as peer_main
from tests.brokers import free_port, made_broker, mosquitto
from toolkit.cli import main

STONECHAT = [sys.executable, "-m", "toolkit"]
FLEET = """\
schema: 1
broker: {{url: "mqtt://127.0.0.1:{port}"}}
models:
  tiny: {{bundle: "{bundle}", max_new: 8}}
devices:
  field-mcu: {{model: tiny, links: [too-hot]}}
links:
  - name: too-hot
    from: plant/+/air
    when: temp_c > 30
    prompt: "{{{{ topic[1] }}}} {{{{ temp_c }}}}"
    to: plant/{{{{ topic[1] }}}}/advice
"""


@pytest.fixture(scope="module")
def bundle(converted: Callable[..., Path]) -> Path:
    return converted("yarn-biases", "micro")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with mosquitto(tmp_path_factory.mktemp("broker")) as port:
        yield port


@contextmanager
def peer(bundle: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The reference peer as a process of its own, and what to give to --port."""
    command = [sys.executable, "-m", "device_runtime.serial.peer", str(bundle), *(flags or ["--pty"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


@contextmanager
def bridge(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`stonechat bridge`; it leaves when it is asked to."""
    log = folder / "bridge.log"
    with log.open("a") as file:
        command = [*STONECHAT, "bridge", *arguments, "--state-dir", str(folder / "state")]
        process = subprocess.Popen(command, stdout=file, stderr=file, text=True)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0, log.read_text()


class Listener:
    """Hears everything, and waits for what is wanted."""

    def __init__(self, port: int) -> None:
        self.heard: list[tuple[str, dict]] = []
        self._more = threading.Condition()
        self._client = Client(BrokerAddress("127.0.0.1", port), "listener", on_message=self._receive)
        self._client.subscribe(Subscription("stonechat/#"), Subscription("plant/#"))
        self._client.connect()

    def _receive(self, message) -> None:
        with self._more:
            self.heard.append((message.topic, json.loads(message.payload)))
            self._more.notify_all()

    def wait(self, topic: str, wanted: Callable[[dict], bool] = lambda value: True) -> dict:
        """The first message of this kind; what came up to it is forgotten."""
        return self.wait_for(lambda t, value: t == topic and wanted(value))[1]

    def wait_for(self, wanted: Callable[[str, dict], bool]) -> tuple[str, dict]:
        """As `wait`, with its topic."""

        def place() -> int | None:
            return next((n for n, message in enumerate(self.heard) if wanted(*message)), None)

        with self._more:
            assert self._more.wait_for(lambda: place() is not None, 60), self.heard
            at = place()
            assert at is not None
            found = self.heard[at]
            del self.heard[: at + 1]
            return found

    def state(self, device: str, state: str) -> None:
        """Until the device says so."""
        self.wait(DeviceTopics(device).state, lambda value: value["state"] == state)

    def publish(self, topic: str, value: dict) -> None:
        self._client.publish(topic, json.dumps(value).encode(), qos=1)

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def listener(port: int) -> Iterator[Listener]:
    made = Listener(port)
    yield made
    made.close()


def ask(port: int, device: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return ask_with("--broker", f"mqtt://127.0.0.1:{port}", "--device", device, *arguments)


def ask_with(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*STONECHAT, "ask", *arguments], capture_output=True, text=True, timeout=60)


def until(condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end_s, "it did not come true"
        time.sleep(0.02)


def local_answer(bundle: Path, prompt: str, *flags: str) -> str:
    command = [*STONECHAT, "run", str(bundle), prompt, *flags, "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["text"]


@pytest.mark.parametrize("wire", [("--pty",), ("--listen", "127.0.0.1:0")], ids=["pty", "tcp"])
def test_ask_prints_what_run_prints(wire, bundle, port, listener, tmp_path):
    device = "mcu-" + wire[0].strip("-")
    flags = ("--max-new", "60", "--temperature", "1", "--seed", "5")
    with peer(bundle, *wire) as (name, _):
        arguments = [
            "--port",
            name,
            "--device",
            device,
            "--bundle",
            str(bundle),
            "--broker",
            f"mqtt://127.0.0.1:{port}",
        ]
        with bridge(tmp_path, *arguments):
            info = listener.wait(DeviceTopics(device).info, lambda value: value["board"] == "stonechat peer")
            assert info["models"] == ["yarn-biases"]
            assert "schema" not in info["capabilities"]
            listener.state(device, "ready")
            done = ask(port, device, "how are you", *flags, "--json")
            assert (done.returncode, done.stderr) == (0, "")
            assert json.loads(done.stdout)["text"] == local_answer(bundle, "how are you", *flags)
        listener.state(device, "disconnected")


def test_a_link_wakes_the_board_and_a_cool_reading_does_not(bundle, port, listener, tmp_path):
    (tmp_path / "fleet.yaml").write_text(FLEET.format(port=port, bundle=bundle))
    fleet = str(tmp_path / "fleet.yaml")
    with peer(bundle) as (name, _), bridge(tmp_path, fleet, "--port", name, "--device", "field-mcu"):
        listener.state("field-mcu", "ready")
        for house, temp_c in (("north", 20), ("south", 35.5)):
            listener.publish(f"plant/{house}/air", {"temp_c": temp_c})
        topic, advice = listener.wait_for(lambda topic, value: topic.endswith("/advice"))
        assert topic == "plant/south/advice"
        assert advice["text"] == local_answer(bundle, "south 35.5", "--max-new", "8")


def test_a_board_without_power_is_lost_and_ready_when_it_is_back(bundle, port, listener, tmp_path):
    arguments = ["--device", "mcu-lost", "--bundle", str(bundle), "--broker", f"mqtt://127.0.0.1:{port}"]
    with peer(bundle, "--listen", "127.0.0.1:0") as (name, process), bridge(tmp_path, "--port", name, *arguments):
        listener.state("mcu-lost", "ready")
        process.kill()
        process.wait()
        listener.state("mcu-lost", "lost")
        done = ask(port, "mcu-lost", "how are you")
        assert done.returncode == 3 and "is lost" in done.stderr
        with peer(bundle, "--listen", name.removeprefix("socket://")):
            listener.state("mcu-lost", "ready")
            done = ask(port, "mcu-lost", "how are you", "--max-new", "8")
            assert done.stdout == local_answer(bundle, "how are you", "--max-new", "8") + "\n"


def test_a_request_to_a_lost_board_is_refused_as_unavailable(bundle, port, listener, tmp_path):
    arguments = ["--device", "mcu-gone", "--bundle", str(bundle), "--broker", f"mqtt://127.0.0.1:{port}"]
    topics = DeviceTopics("mcu-gone")
    with peer(bundle) as (name, process), bridge(tmp_path, "--port", name, *arguments):
        listener.state("mcu-gone", "ready")
        process.kill()
        listener.state("mcu-gone", "lost")
        reply_to = topics.reply("tester", "1")
        listener.publish(topics.generate, {"prompt": "x", "reply_to": reply_to, "id": "1"})
        assert listener.wait(reply_to)["error"]["code"] == "unavailable"
        assert not any(value.get("state") == "ready" for topic, value in listener.heard if topic == topics.state)


def test_health_carries_the_boards_figures(bundle, port, listener, tmp_path):
    arguments = ["--device", "mcu-health", "--bundle", str(bundle), "--broker", f"mqtt://127.0.0.1:{port}"]
    with peer(bundle) as (name, _), bridge(tmp_path, "--port", name, *arguments):
        health = listener.wait(DeviceTopics("mcu-health").health)
        assert "rss_mb" not in health and health["board_resets"] == 0


def bridge_once(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*STONECHAT, "bridge", *arguments, "--state-dir", str(tmp_path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_wrong_port_ends_with_3_and_says_so(bundle, port, listener, tmp_path):
    broker = f"mqtt://127.0.0.1:{port}"
    done = bridge_once(tmp_path, "--port", "/dev/ttyNONE7", "--device", "mcu-none", "--broker", broker)
    assert done.returncode == 3
    assert "/dev/ttyNONE7 cannot be opened: No such file or directory. " in done.stderr
    listener.state("mcu-none", "disconnected")


def test_ctrl_c_while_it_waits_for_a_board_leaves_it_disconnected(bundle, port, listener, tmp_path):
    own, others = os.openpty()  # nobody is there
    tty.setraw(others)
    command = [*STONECHAT, "bridge", "--port", os.ttyname(others), "--device", "mcu-mute", "--wait", "300"]
    flags = ["--bundle", str(bundle), "--broker", f"mqtt://127.0.0.1:{port}", "--state-dir", str(tmp_path)]
    process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True)
    listener.state("mcu-mute", "init")
    assert os.read(own, 100)  # it has greeted
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.endswith("stonechat: interrupted\n")
    listener.state("mcu-mute", "disconnected")
    os.close(own)
    os.close(others)


def test_a_peer_says_what_is_wrong_with_its_arguments(bundle, capsys):
    assert peer_main([str(bundle), "--listen", "nowhere"]) == 2
    assert "expected HOST:PORT" in capsys.readouterr().err
    assert peer_main([str(bundle / "missing"), "--pty"]) == 2
    assert "Make a bundle with" in capsys.readouterr().err


def test_a_link_that_wants_a_schema_is_refused_before_anything_is_opened(bundle, port, tmp_path):
    fleet = FLEET.format(port=port, bundle=bundle) + "    answer: {type: object}\n"
    (tmp_path / "fleet.yaml").write_text(fleet)
    done = bridge_once(tmp_path, str(tmp_path / "fleet.yaml"), "--port", "/dev/ttyNONE7", "--device", "field-mcu")
    assert done.returncode == 2
    assert "the answer of link 'too-hot' cannot be given: a microcontroller cannot hold" in done.stderr


def test_on_a_broker_with_certificates_a_board_is_as_apart_from_others_as_a_pi(bundle, tmp_path):
    pytest.importorskip("cryptography", reason="cryptography is not installed (pip install 'stonechat[broker]')")
    from tests.system.test_broker_security import Site, User

    keys, port = tmp_path / "keys", free_port()
    names = ["--device", "mcu-a", "--device", "mcu-b", "--client", "anna", "--client", "spy"]
    assert main(["broker", "init", str(keys), "--host", "localhost", "--port", str(port), *names]) == 0
    topics = DeviceTopics("mcu-a")
    secure = ["--broker", f"mqtts://localhost:{port}", "--certs", str(keys)]
    with made_broker(keys, port), ExitStack() as leaving:
        anna, other, spy = users = [User(Site(tmp_path, port, "keys"), name) for name in ("anna", "mcu-b", "spy")]
        for user in users:
            leaving.callback(user.client.loop_stop)
            leaving.callback(user.client.disconnect)
            user.subscribe("stonechat/#")
        board = ["--device", "mcu-a", "--bundle", str(bundle)]
        with peer(bundle) as (name, _), bridge(tmp_path, "--port", name, *board, *secure):
            until(lambda: (topics.state, b'{"state":"ready","boot":1}') in list(anna.heard.queue))
            other.publish(topics.generate, ResponseTopic=topics.reply("anna", "7"), CorrelationData=b"7")
            done = ask_with(*secure, "--as", "anna", "--device", "mcu-a", "how are you", "--max-new", "8")
            assert done.stdout == local_answer(bundle, "how are you", "--max-new", "8") + "\n", done.stderr
        heard = [topic for topic, _ in list(other.heard.queue)]
        assert not [topic for topic in heard if topic.startswith("stonechat/1/mcu-a/")]
        replies = [topic for user in (anna, spy) for topic, _ in list(user.heard.queue) if "/reply/" in topic]
        assert replies and not [topic for topic in replies if topic == topics.reply("anna", "7")]
        assert not [topic for topic, _ in list(spy.heard.queue) if "/reply/" in topic]
