"""`stonechat ask` and `stonechat serve` as a person runs them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from device_runtime.client.remote import RemoteModel
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.messages import Final, Piece, State
from device_runtime.mqtt.strict_json import dump
from tests.support.brokers import free_port, mosquitto
from tests.support.scripted_fleet import Device, await_state, fleet_file

ROOT = Path(__file__).parents[2]
STONECHAT = [sys.executable, "-c", "import sys; from toolkit.cli import main; sys.exit(main())"]


def stonechat(*arguments, timeout=60):
    return subprocess.run(
        [*STONECHAT, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="module")
def port(tmp_path_factory) -> Iterator[int]:
    with mosquitto(tmp_path_factory.mktemp("broker")) as port:
        yield port


@pytest.fixture(scope="module")
def url(port, tmp_path_factory) -> Iterator[str]:
    """A broker with a scripted device called greenhouse-pi on it."""
    device = Device(tmp_path_factory.mktemp("device"), port, "greenhouse-pi")
    device.start(ready=True)
    yield f"mqtt://127.0.0.1:{port}"
    device.stop()


def test_an_answer_is_printed(url):
    done = stonechat("ask", "--broker", url, "--device", "greenhouse-pi", "open the window")
    assert (done.returncode, done.stdout, done.stderr) == (0, "OPEN THE WINDOW\n", "")


def test_json_is_one_object(url):
    done = stonechat("ask", "--broker", url, "--device", "greenhouse-pi", "hi", "--json")
    answer = json.loads(done.stdout)
    assert (answer["text"], answer["finish"], answer["device"]) == ("HI", "stop", "greenhouse-pi")


def test_a_pool_is_asked_like_a_device(port, tmp_path):
    worker = Device(tmp_path, port, "asked-pi", fleet_file(tmp_path, {"asked-pi": ", pool: asked"}))
    worker.start(ready=True)
    try:
        broker = ["--broker", f"mqtt://127.0.0.1:{port}"]
        done = stonechat("ask", *broker, "--pool", "asked", "open the window")
        assert (done.returncode, done.stdout, done.stderr) == (0, "OPEN THE WINDOW\n", "")
        answer = json.loads(stonechat("ask", *broker, "--pool", "asked", "hi", "--json").stdout)
        assert (answer["text"], answer["device"]) == ("HI", "asked-pi")
    finally:
        worker.stop()


def test_a_pool_of_nobody_exits_3_and_says_what_to_do(url):
    done = stonechat("ask", "--broker", url, "--pool", "nobody", "hi")
    assert done.returncode == 3
    assert "nobody in the pool 'nobody' takes requests" in done.stderr
    assert "start a device that has `pool: nobody` in its fleet file" in done.stderr


@pytest.mark.parametrize("whom", [[], ["--device", "a", "--pool", "b"]])
def test_a_device_or_a_pool_is_asked_and_not_both(whom):
    done = stonechat("ask", *whom, "hi")
    assert done.returncode == 2
    assert "--device" in done.stderr and "--pool" in done.stderr


def test_no_broker_exits_3_and_says_where_it_looked():
    port = free_port()
    done = stonechat("ask", "--broker", f"mqtt://127.0.0.1:{port}", "--device", "x", "hi")
    assert done.returncode == 3
    assert f"127.0.0.1:{port}: Connection refused" in done.stderr
    assert done.stdout == ""


def test_an_unknown_device_exits_3(url):
    done = stonechat("ask", "--broker", url, "--device", "nobody", "hi", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["code"] == "unreachable"
    assert "no device 'nobody'" in done.stdout


@pytest.mark.parametrize(("state", "says"), [("lost", "vanished"), ("disconnected", "was stopped")])
def test_a_device_that_is_away_exits_3_and_says_how(url, port, state, says):
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", port)
    client.loop_start()
    topic = f"stonechat/1/{state}/out/state"
    client.publish(topic, dump({"state": state, "boot": 1}), qos=1, retain=True).wait_for_publish(60)
    done = stonechat("ask", "--broker", url, "--device", state, "hi")
    client.disconnect()
    client.loop_stop()
    assert done.returncode == 3
    assert says in done.stderr


@pytest.mark.parametrize(
    "flags", [["--temperature", "11"], ["--max-new", "0"], ["--timeout", "0"], ["--device", "NO"], ["--broker", "x"]]
)
def test_a_flag_that_cannot_be_is_a_configuration_error(url, flags):
    done = stonechat("ask", "--broker", url, "--device", "greenhouse-pi", "hi", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("stonechat: ")


def test_ctrl_c_cancels_at_the_device_and_exits_130(url):
    prompt = "slowly " * 8_000  # takes 40 s
    command = [*STONECHAT, "ask", "--broker", url, "--device", "greenhouse-pi", prompt]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.read(6) == "SLOWLY"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    done = stonechat("ask", "--broker", url, "--device", "greenhouse-pi", "hi", "--timeout", "20")
    assert done.stdout == "HI\n"  # the device is free again


def test_ctrl_c_with_json_is_an_object(url, port):
    command = [*STONECHAT, "ask", "--broker", url, "--device", "greenhouse-pi", "slowly " * 8_000, "--json"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    await_state(port, "greenhouse-pi", lambda state: state["state"] == "busy")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out) == {"error": {"code": "interrupted", "message": "interrupted"}}


def test_lost_and_disordered_pieces_are_healed_by_the_final_text(port):
    """A device that we play ourselves loses piece 1 and sends piece 3 before piece 2."""
    device = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    ready = threading.Event()

    def answer(client, userdata, message):
        for reply in (Piece(0, "a"), Piece(3, "d"), Piece(2, "c"), Final(4, "abcd", "stop")):
            client.publish(message.properties.ResponseTopic, dump(reply.to_fields()), qos=1)

    device.on_message = answer
    device.on_subscribe = lambda *_: ready.set()
    device.connect("127.0.0.1", port)
    device.loop_start()
    device.subscribe("stonechat/1/played/in/generate", qos=1)
    assert ready.wait(60)
    state = State.from_json(b'{"state":"ready","boot":1}')
    device.publish("stonechat/1/played/out/state", state.to_json(), qos=1, retain=True).wait_for_publish(60)
    with RemoteModel(BrokerAddress("127.0.0.1", port), "played") as model:
        assert list(model.generate("x", timeout_s=60.0)) == ["a", "bcd"]
    device.disconnect()
    device.loop_stop()


def test_serve_refuses_an_unknown_device_with_the_nearest_name():
    done = stonechat("serve", "examples/greenhouse/fleet.yaml", "--device", "greenhous-pi")
    assert done.returncode == 2
    assert "did you mean 'greenhouse-pi'?" in done.stderr


def test_a_broker_that_is_restarted_in_order_does_not_cost_the_answer(tmp_path):
    """It stops on SIGTERM, and publishes the last will of a device that is well."""
    port = free_port()
    device = Device(tmp_path, port, "greenhouse-pi")
    with ExitStack() as broker:
        broker.enter_context(mosquitto(tmp_path, port=port))
        device.start(ready=True)
        try:
            device.hold.touch()
            command = ["ask", "--broker", f"mqtt://127.0.0.1:{port}", "--device", "greenhouse-pi", "open it", "--json"]
            asking = subprocess.Popen(
                [*STONECHAT, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            await_state(port, "greenhouse-pi", lambda state: state["state"] == "busy")
            broker.close()
            broker.enter_context(mosquitto(tmp_path, port=port))
            device.hold.unlink()
            out, errors = asking.communicate(timeout=60)
            assert (asking.returncode, errors) == (0, "") and json.loads(out)["text"] == "OPEN IT"
        finally:
            device.stop()
