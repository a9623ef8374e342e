"""A microcontroller on MQTT without a host: the firmware's lwIP over QEMU's network card, and a real mosquitto."""

from __future__ import annotations

import json
import queue
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from boards import load_board
from device_runtime.bundle.folder import Bundle
from device_runtime.client.remote import RemoteModel
from device_runtime.client.roll_call import roll_call
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.messages import DeviceState
from device_runtime.tasks.answering import Answerer
from tests.support.brokers import free_port, mosquitto
from toolkit.firmware.build import build_firmware
from toolkit.firmware.images import image_for
from toolkit.firmware.lwip import find_lwip, network_of
from toolkit.firmware.qemu import Emulator
from toolkit.firmware.slots import firmware_image, model_image, write_flash

pytestmark = pytest.mark.slow  # about a minute

EXAMPLE = Path(__file__).parents[2] / "examples" / "boiler-advisor" / "bundle"
ROOT = Path(__file__).parents[2]
DEVICE = "boiler-room"
States = queue.Queue[tuple[str, int]]
Site = tuple[int, Emulator, States]  # the broker's port, the board, its states as they come
READINGS = [{"temp_c": 61.0, "bar": 1.6, "flow_l_min": 12.0}, {"temp_c": 97.5, "bar": 2.4, "flow_l_min": 0.4}]


@pytest.fixture(scope="module")
def lwip() -> Path:
    if shutil.which("arm-none-eabi-gcc") is None or shutil.which("qemu-system-arm") is None:
        pytest.skip("arm-none-eabi-gcc or qemu-system-arm is not installed")
    folder = ROOT / "build" / "lwip"
    if not (folder / "src").is_dir():
        pytest.skip("lwIP's sources are not in build/lwip: scripts/setup_lwip.sh")
    return find_lwip(folder)


def states(port: int) -> tuple[paho.Client, States]:
    """What the device says of its state, and which start it says it in, from now on."""
    heard: States = queue.Queue()
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda c, u, message: heard.put(_state(message.payload))
    client.connect("127.0.0.1", port)
    client.subscribe(f"stonechat/1/{DEVICE}/out/state", 1)
    client.loop_start()
    return client, heard


def _state(payload: bytes) -> tuple[str, int]:
    found = json.loads(payload)
    return found["state"], found["boot"]


def await_state(heard: States, wanted: tuple[str, int], timeout_s: float) -> None:
    end_s = time.monotonic() + timeout_s
    while heard.get(timeout=max(0.1, end_s - time.monotonic())) != wanted:
        pass


@pytest.fixture(params=["mps2-an386", "mps3-an547"])
def site(
    request: pytest.FixtureRequest, lwip: Path, tmp_path: Path
) -> Iterator[tuple[int, Emulator, queue.Queue[str]]]:
    """A broker, and a board that connects to it; its serial line is nobody's."""
    port = free_port()
    bundle, board = Bundle.open(EXAMPLE), load_board(request.param)
    network = network_of(f"mqtt://10.0.2.2:{port}", DEVICE, lwip, None)
    image = image_for(bundle, tmp_path, current=True)
    build = build_firmware(image, board, tmp_path / "firmware", network=network, model="boiler")
    flash = tmp_path / "flash.bin"
    model = model_image(build.image.read_bytes(), bundle.manifest, board)
    write_flash(flash, board, firmware_image(build, board), model)
    with mosquitto(tmp_path, port=port), Emulator(build, board, flash, networked=True) as emulator:
        assert "ready" in emulator.wait_until_ready()
        client, heard = states(port)
        await_state(heard, ("ready", 1), 60)
        yield port, emulator, heard
        client.loop_stop()


def test_a_board_is_a_device_of_the_fleet_by_itself(site: Site) -> None:
    """Presence, a typed answer to an ordinary client, and the last will of a board whose power goes."""
    port, emulator, heard = site
    broker = BrokerAddress("127.0.0.1", port)
    report = roll_call(broker)[DEVICE]
    assert report.info is not None and report.info.models == ("boiler",) and "schema" in report.info.capabilities
    assert report.state is not None and report.state.state is DeviceState.READY and report.state.boot == 1
    answerer = Answerer.open(EXAMPLE)
    with RemoteModel(broker, DEVICE) as model:
        for reading in READINGS:
            expected = answerer.answer(reading)
            prompt = answerer.purpose.inputs.prompt(reading).text
            answer = model.generate(prompt, schema=answerer.purpose.answer)
            assert "".join(answer) == expected.text
            assert answer.final.confidence == pytest.approx(expected.confidence, abs=6e-5, rel=2e-3)  # four decimals
    assert b"bytes lost 0" in b"".join(emulator.ask("/status"))  # its console is there beside it
    emulator.reset()
    await_state(heard, ("ready", 2), 90)  # the old connection is taken over; the boot counter tells them apart
    emulator.process.kill()
    await_state(heard, ("lost", 2), 90)  # by the broker, after one and a half times the keep-alive of 15 s
