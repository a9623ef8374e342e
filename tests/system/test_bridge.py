"""A microcontroller as a member of a fleet: mosquitto, `stonechat bridge`, the reference peer, `stonechat ask`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from device_runtime.client.remote import RemoteModel
from device_runtime.engine.language_model import LanguageModel
from device_runtime.engine.sampler import Sampling
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.client import Client
from device_runtime.mqtt.packets import Subscription
from device_runtime.mqtt.topics import DeviceTopics, PoolTopics
from device_runtime.update.active import read_state
from device_runtime.update.install import install
from device_runtime.update.slots import lock
from tests.support.brokers import await_ready, free_port, made_broker, mosquitto
from toolkit.cli import main
from toolkit.emulate.model_board import main as peer_main

STONECHAT = [sys.executable, "-m", "toolkit"]
GREEDY = Sampling()
FLEET = """\
schema: 1
broker: {{url: "mqtt://127.0.0.1:{port}"}}
models:
  tiny: {{bundle: "{bundle}", max_new: 8}}
devices:
  field-mcu: {{model: tiny, links: [too-hot]}}
  mcu-a: {{model: tiny, pool: herd}}
  mcu-b: {{model: tiny, pool: herd}}
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


@pytest.fixture(scope="module")
def local_answer(bundle: Path) -> Iterator[Callable[..., str]]:
    """What the engine answers without a bridge."""
    with LanguageModel.open(bundle, threads=1) as model:

        def answer(prompt: str, max_new: int, sampling: Sampling = GREEDY) -> str:
            return "".join(model.generate([{"role": "user", "content": prompt}], max_new=max_new, sampling=sampling))

        yield answer


@contextmanager
def peer(bundle: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The reference peer as a process of its own, and what to give to --port."""
    command = [sys.executable, "-m", "toolkit.emulate.model_board", str(bundle), *(flags or ["--pty"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


@contextmanager
def bridge(folder: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`stonechat bridge`; it leaves when it is asked to."""
    log = folder / "bridge.log"
    with log.open("a") as file:
        command = [*STONECHAT, "bridge", *arguments, "--state-dir", str(folder / "state")]
        process = subprocess.Popen(command, stdout=file, stderr=file, text=True, env=os.environ | environment)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0, log.read_text()


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
    return subprocess.run([*STONECHAT, "ask", *arguments], capture_output=True, text=True, timeout=120)


def until(condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end_s, "it did not come true"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def field(bundle: Path, port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A board of the fleet file on a pseudo-terminal, for the tests that do it no harm; its device id."""
    folder = tmp_path_factory.mktemp("field")
    (folder / "fleet.yaml").write_text(FLEET.format(port=port, bundle=bundle))
    fleet = str(folder / "fleet.yaml")
    with peer(bundle) as (name, _), bridge(folder, fleet, "--port", name, "--device", "field-mcu"):
        await_ready(port, "field-mcu")
        yield "field-mcu"


def test_ask_prints_what_run_prints(field, port, listener, local_answer):
    info = listener.wait(DeviceTopics(field).info, lambda value: value["board"] == "stonechat peer")
    assert info["models"] == ["tiny"]
    assert "schema" not in info["capabilities"] and "ota" not in info["capabilities"]
    flags = ("--max-new", "60", "--temperature", "1", "--seed", "5")
    done = ask(port, field, "how are you", *flags, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["text"] == local_answer("how are you", 60, Sampling(temperature=1, seed=5))


def test_a_link_wakes_the_board_and_a_cool_reading_does_not(field, listener, local_answer):
    for house, temp_c in (("north", 20), ("south", 35.5)):
        listener.publish(f"plant/{house}/air", {"temp_c": temp_c})
    topic, advice = listener.wait_for(lambda topic, value: topic.endswith("/advice"))
    assert topic == "plant/south/advice"
    assert advice["text"] == local_answer("south 35.5", 8)


def test_a_board_without_power_is_lost_and_ready_when_it_is_back(bundle, port, listener, tmp_path, local_answer):
    topics = DeviceTopics("mcu-lost")
    arguments = ["--device", "mcu-lost", "--bundle", str(bundle), "--broker", f"mqtt://127.0.0.1:{port}"]
    with peer(bundle, "--listen", "127.0.0.1:0") as (name, process), bridge(tmp_path, "--port", name, *arguments):
        listener.state("mcu-lost", "ready")
        health = listener.wait(topics.health)
        assert "rss_mb" not in health and health["board_resets"] == 0
        process.kill()
        process.wait()
        listener.state("mcu-lost", "lost")
        done = ask(port, "mcu-lost", "how are you")
        assert done.returncode == 3 and "is lost" in done.stderr
        reply_to = topics.reply("tester", "1")
        listener.publish(topics.generate, {"prompt": "x", "reply_to": reply_to, "id": "1"})
        error = listener.wait(reply_to)["error"]
        assert error == {"code": "unavailable", "message": "the board's serial port is gone; plug it in again."}
        assert not any(topic == topics.state for topic, _ in listener.heard)  # it stays lost
        with peer(bundle, "--listen", name.removeprefix("socket://")):
            listener.state("mcu-lost", "ready")
            done = ask(port, "mcu-lost", "how are you", "--max-new", "8")
            assert done.stdout == local_answer("how are you", 8) + "\n"


def test_a_pool_goes_on_without_a_member_whose_board_is_gone(bundle, port, listener, tmp_path, local_answer):
    """Both members are online all the time: only the board of one of them is not."""
    (tmp_path / "fleet.yaml").write_text(FLEET.format(port=port, bundle=bundle))
    fleet, pool = str(tmp_path / "fleet.yaml"), PoolTopics("herd")
    with ExitStack() as parts:
        name, board = parts.enter_context(peer(bundle, "--listen", "127.0.0.1:0"))
        for device, at in (("mcu-a", name), ("mcu-b", parts.enter_context(peer(bundle))[0])):
            (tmp_path / device).mkdir()
            parts.enter_context(bridge(tmp_path / device, fleet, "--port", at, "--device", device))
            await_ready(port, device)
        herd = parts.enter_context(RemoteModel(BrokerAddress("127.0.0.1", port), pool="herd"))

        def answers(count: int) -> list[str]:
            found = []
            for number in range(count):
                answer = herd.generate(f"question {number}", max_new=8)
                assert "".join(answer) == local_answer(f"question {number}", 8)
                found.append(answer.device)
            return found

        assert set(answers(4)) == {"mcu-a", "mcu-b"}
        drawn = Sampling(temperature=1, seed=7)
        while True:  # until it is the board that goes which answers
            answer = herd.generate("how are you", max_new=200, temperature=1, seed=7, stream=True)
            said = next(answer)
            if answer.device == "mcu-a":
                break
            list(answer)
        board.kill()
        board.wait()
        assert said + "".join(answer) == local_answer("how are you", 200, drawn)
        assert set(answers(6)) <= {"mcu-a", "mcu-b"}
        listener.state("mcu-a", "lost")
        reply_to = f"{pool.reply_root}/tester/1"
        for number in range(6):  # without a client that asks again
            listener.publish(pool.generate, {"prompt": "x", "max_new": 4, "reply_to": reply_to, "id": str(number)})
            reply = listener.wait(reply_to, lambda value, number=number: value["id"] == str(number))
            assert (reply["device"], reply["done"]) == ("mcu-b", True)
        parts.enter_context(peer(bundle, "--listen", name.removeprefix("socket://")))
        listener.state("mcu-a", "ready")
        until(lambda: "mcu-a" in answers(2))


def test_slots_signatures_and_the_service_manager_are_what_they_are_to_serve(bundle, port, listener, tmp_path):
    pytest.importorskip("cryptography", reason="cryptography is not installed (pip install '.[sign]')")
    from toolkit.signing.bundles import sign_bundle
    from toolkit.signing.keys import new_key

    (tmp_path / "keys").mkdir()
    key = new_key("plant", tmp_path / "secret", None)
    (tmp_path / "keys" / "plant.pub").write_text(key.public.to_text())
    arguments = ["--device", "mcu-slots", "--broker", f"mqtt://127.0.0.1:{port}", "--keys", str(tmp_path / "keys")]
    with peer(bundle) as (name, _):
        unsigned = bridge_once(tmp_path, "--port", name, *arguments, "--bundle", str(bundle))
        assert unsigned.returncode == 4 and "is not signed" in unsigned.stderr
        shutil.copytree(bundle, tmp_path / "signed")
        sign_bundle(tmp_path / "signed", {}, (key,))
        with lock(tmp_path / "model", make=True) as slots:
            install(tmp_path / "signed", slots)
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        with bridge(
            tmp_path, "--port", name, *arguments, "--bundle", str(tmp_path / "model"),
            NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="2000000",
        ):  # fmt: skip
            heard: set[str] = set()
            while not {"READY=1", "WATCHDOG=1"} <= heard:
                heard.add(manager.recv(4096).decode())
            info = listener.wait(DeviceTopics("mcu-slots").info)
            assert info["models"] == ["yarn-biases"] and "ota" not in info["capabilities"]
        manager.close()
    last = read_state(tmp_path / "model").last
    assert last is not None and last.outcome == "confirmed"  # its trial was held first


def bridge_once(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*STONECHAT, "bridge", *arguments, "--state-dir", str(tmp_path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


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
    _, err = process.communicate(timeout=120)
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


def test_a_link_that_wants_a_schema_which_the_board_lacks_is_left_out(bundle, port, listener, tmp_path):
    fleet = FLEET.format(port=port, bundle=bundle).replace("field-mcu", "narrow-mcu") + "    answer: {type: object}\n"
    (tmp_path / "fleet.yaml").write_text(fleet)
    with (
        peer(bundle) as (name, _),
        bridge(tmp_path, str(tmp_path / "fleet.yaml"), "--port", name, "--device", "narrow-mcu"),
    ):
        listener.state("narrow-mcu", "ready")
    why = "the answer of link 'too-hot' cannot be given: this board holds no answers to a JSON schema"
    assert f"link too-hot is left out until its model or the fleet file is another: {why}" in (
        (tmp_path / "bridge.log").read_text()
    )
    listener.state("narrow-mcu", "disconnected")


def test_on_a_broker_with_certificates_a_board_is_as_apart_from_others_as_a_pi(bundle, tmp_path, local_answer):
    pytest.importorskip("cryptography", reason="cryptography is not installed (pip install '.[sign]')")
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
            assert done.stdout == local_answer("how are you", 8) + "\n", done.stderr
            until(lambda: any("/reply/" in topic for topic, _ in list(anna.heard.queue)))
        heard = [topic for topic, _ in list(other.heard.queue)]
        assert not [topic for topic in heard if topic.startswith("stonechat/1/mcu-a/")]
        replies = [topic for user in (anna, spy) for topic, _ in list(user.heard.queue) if "/reply/" in topic]
        assert replies and not [topic for topic in replies if topic == topics.reply("anna", "7")]
        assert not [topic for topic, _ in list(spy.heard.queue) if "/reply/" in topic]
