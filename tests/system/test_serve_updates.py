"""`stonechat serve` takes an update over the air, or gives it back: what the device's own fleet file and board ask."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from converters.encoders.checkpoint import open_encoder
from converters.encoders.convert import EncoderOptions, convert_encoder
from device_runtime.bundle.folder import Bundle
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.messages import DeviceState, State
from device_runtime.mqtt.ota_messages import Order, Phase, Report
from device_runtime.update.active import read_state
from device_runtime.update.install import install
from device_runtime.update.slots import lock
from tests.support.brokers import mosquitto
from tests.support.update_bundles import confirm, variant
from toolkit.rollout.sender import Sender
from toolkit.signing.bundles import sign_bundle
from toolkit.signing.keys import SigningKey, new_key

SMALL = "generic-x86-64"
ENCODERS = Path(__file__).parents[1] / "data" / "encoders"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return new_key("plant", tmp_path_factory.mktemp("keys"), None)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with mosquitto(tmp_path_factory.mktemp("broker")) as port:
        yield port


class Device:
    """A folder as `device init` leaves it, with version 1 of a model, and the process that serves from it."""

    def __init__(self, fleet: Path, port: int, key: SigningKey, bundle: Path) -> None:
        folder = fleet.parent
        self.fleet, self.folder, self.port, self.key, self._source = fleet, folder, port, key, bundle
        (folder / "keys").mkdir()
        (folder / "keys" / "plant.pub").write_text(key.public.to_text())
        self.note(None)
        with lock(folder / "model", make=True) as slots:
            install(self.version("1"), slots)
            confirm(slots)
        self._process: subprocess.Popen[bytes] | None = None

    def note(self, board: str | None) -> None:
        """What `device init` has noted of the board."""
        record = {"schema": 1, "device": "test-pi", "prefix": "/opt/stonechat", "service": "none", "board": board}
        (self.folder / "device.json").write_text(json.dumps(record))

    def version(self, name: str, **fields: object) -> Path:
        bundle = variant(self._source, self.folder / f"v{name}", name, **fields)
        sign_bundle(bundle, {}, [self.key])
        return bundle

    def serve(self, *flags: object) -> None:
        command = [sys.executable, "-m", "toolkit", "serve", self.fleet, "--device", "test-pi"]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [*map(str, command), "--state-dir", str(self.folder / "state"), *map(str, flags)],
                stdout=log, stderr=log,
            )  # fmt: skip

    def stop(self) -> str:
        """What it has said."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            assert self._process.wait(120) == 0, self.log
            self._process = None
        return self.log

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text() if (self.folder / "log").exists() else ""

    def update(self, bundle: Path) -> tuple[Report, list[DeviceState]]:
        """Order it, and wait for its end and for the device to be ready; the states since the order."""
        session, states, report = secrets.token_hex(8), list[DeviceState](), None
        with Sender(BrokerAddress("127.0.0.1", self.port), Bundle.open(bundle)) as sender:
            sender.watch("test-pi")
            ordered = False
            end_s = time.monotonic() + 240
            while report is None or states[-1:] != [DeviceState.READY]:
                _, said = sender.heard.get(timeout=max(0.01, end_s - time.monotonic()))
                if isinstance(said, State):
                    states.append(said.state)
                    if not ordered and said.state is DeviceState.READY:
                        ordered, states = True, []
                        sender.order("test-pi", Order(session, "tiny", sender.manifest_sha256))
                        states.append(DeviceState.READY)
                elif isinstance(said, Report) and said.session == session and said.phase.ended:
                    report = said
        return report, states

    def running(self) -> str:
        state = read_state(self.folder / "model")
        assert state.trial is None and state.active is not None
        version: str = json.loads((self.folder / "model" / state.active / "manifest.json").read_text())["version"]
        return version


@pytest.fixture
def device(
    port: int, key: SigningKey, pi_bundle: Path, write_fleet: Callable[[Path, int], Path], tmp_path: Path
) -> Iterator[Device]:
    made = Device(write_fleet(tmp_path, port), port, key, pi_bundle)
    yield made
    made.stop()


def test_a_bundle_that_the_fleet_file_cannot_be_served_with_is_given_back(device: Device) -> None:
    """It runs and passes its trial, but devices are asked in messages, and it has no template for them."""
    device.serve()
    report, _ = device.update(device.version("2", chat_template=None))
    assert report.phase is Phase.ROLLED_BACK
    assert report.code == "rolled_back"
    assert "device 'test-pi': the bundle of the model 'tiny' has no chat template" in (report.message or "")
    assert device.running() == "1"

    report, _ = device.update(device.version("3"))  # and it still takes a good one
    assert (report.phase, device.running()) == (Phase.CONFIRMED, "3")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "asked"), [("bert-embed", "embedding"), ("bert-classify", "probabilities")])
def test_a_sentence_encoder_is_updated_over_the_air_and_goes_on_answering(
    name: str, asked: str, port: int, key: SigningKey, write_fleet: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    """About 15 s each on two cores."""
    checkpoint = open_encoder(ENCODERS / name)
    assert checkpoint is not None
    source = convert_encoder(checkpoint, tmp_path / "source", EncoderOptions(fast=True)).path
    (tmp_path / "device").mkdir()
    device = Device(write_fleet(tmp_path / "device", port), port, key, source)

    def answer() -> dict[str, object]:
        command = [sys.executable, "-m", "toolkit", "ask", "--broker", f"mqtt://127.0.0.1:{port}"]
        command += ["--device", "test-pi", "The pump is hot.", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    try:
        device.serve()
        report, _ = device.update(device.version("2"))
        assert (report.phase, device.running()) == (Phase.CONFIRMED, "2")
        before = answer()[asked]
        report, _ = device.update(device.version("3", files={"model.tflite": b"no graph" * 64}))
        assert report.phase is Phase.ROLLED_BACK
        assert device.running() == "2"
        assert answer()[asked] == before
    finally:
        device.stop()


def test_the_same_at_a_start(device: Device) -> None:
    """A trial that a cut has left over is judged by the fleet file too."""
    with lock(device.folder / "model") as slots:
        install(device.version("2", chat_template=None), slots)
    device.serve()
    report, _ = device.update(device.version("3"))
    assert (report.phase, device.running()) == (Phase.CONFIRMED, "3")
    assert "version 2 of gqa-tied did not pass its trial: " in device.log and "has no chat template" in device.log


def test_a_key_that_is_retired_meanwhile_leaves_the_bundle_that_runs(device: Device, tmp_path: Path) -> None:
    """What it has signed is refused at once; what runs goes on, also when the update of its successor fails."""
    device.serve()
    by_the_old_key, plant_2 = device.version("2"), new_key("plant-2", tmp_path / "new", None)
    assert device.update(device.version("1b"))[0].phase is Phase.CONFIRMED  # it serves: the keys of its start are read
    (device.folder / "keys" / "retired").mkdir()
    (device.folder / "keys" / "plant.pub").rename(device.folder / "keys" / "retired" / "plant.pub")
    (device.folder / "keys" / "plant-2.pub").write_text(plant_2.public.to_text())
    report, _ = device.update(by_the_old_key)
    assert (report.phase, report.code) == (Phase.REFUSED, "signature")
    device.key = plant_2
    report, _ = device.update(device.version("3", chat_template=None))
    assert (report.phase, device.running()) == (Phase.ROLLED_BACK, "1b")
    assert device.update(device.version("4"))[0].phase is Phase.CONFIRMED


def test_the_terminal_shows_what_happens_and_no_chatter_of_libraries(device: Device) -> None:
    device.serve()
    assert device.update(device.version("2"))[0].phase is Phase.CONFIRMED
    lines = device.stop().splitlines()
    assert [line for line in lines if "accelerator" in line or "INFO" in line or "WARNING" in line] == []
    said = [line.split(" ", 1)[1] for line in lines]
    assert any(line.startswith("version 2 of gqa-tied passed its trial: ") for line in said)
    assert all(line[2] == line[5] == ":" for line in lines), lines  # each begins with the time: each is ours


@pytest.mark.parametrize("known_by", ["record", "flag"])
def test_a_bundle_for_another_board_is_refused_before_it_travels(device: Device, known_by: str) -> None:
    if known_by == "record":
        device.note(SMALL)
        device.serve()
    else:
        device.serve("--board", SMALL)
    report, _ = device.update(device.version("2", boards=["raspberry-pi-5-4gb"]))
    assert (report.phase, report.code) == (Phase.REFUSED, "does_not_fit")
    assert f"is meant for raspberry-pi-5-4gb, and this is {SMALL}" in (report.message or "")
    assert device.running() == "1"
    assert device.update(device.version("3", boards=[SMALL]))[0].phase is Phase.CONFIRMED


def test_a_bundle_that_is_too_large_for_the_board_is_refused(
    device: Device, smaller_board: Callable[[int], Path]
) -> None:
    device.note(str(smaller_board(1024)))  # KiB for a model
    device.serve()
    report, _ = device.update(device.version("2"))
    assert (report.phase, report.code) == (Phase.REFUSED, "does_not_fit")
    assert "of memory, and a model may take 1,024 KiB" in (report.message or "")
    assert device.running() == "1"


def test_a_board_that_nobody_knows_any_more_is_no_reason_not_to_serve(device: Device) -> None:
    device.note("raspberry-pi-9")
    device.serve()
    assert device.update(device.version("2"))[0].phase is Phase.CONFIRMED
    assert "There is no board 'raspberry-pi-9'" in device.log


def test_a_board_that_is_named_by_hand_has_to_exist(device: Device) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "toolkit", "serve", device.fleet, "--device", "test-pi",
            "--board", "raspberry-pi-9", "--state-dir", device.folder / "state",
        ],
        capture_output=True, text=True, env=os.environ, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "There is no board 'raspberry-pi-9'" in done.stderr


@pytest.fixture
def smaller_board(tmp_path: Path) -> Callable[[int], Path]:
    """The file of a board like this machine, with so many KiB for a model."""
    import re

    import boards

    def make(kib: int) -> Path:
        text = (Path(boards.__path__[0]) / f"{SMALL}.yaml").read_text()
        text = re.sub(r"model_budget_kib: \d+", f"model_budget_kib: {kib}", text).replace(f"id: {SMALL}", "id: small")
        path = tmp_path / "small.yaml"
        path.write_text(text)
        return path

    return make
