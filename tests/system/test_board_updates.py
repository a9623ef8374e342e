"""A microcontroller takes updates over MQTT as any device does: mosquitto, `stonechat bridge`, SMP, QEMU."""

from __future__ import annotations

import hashlib
import json
import queue
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from device_runtime.bundle.manifest import IMAGE, MANIFEST, FileEntry
from device_runtime.client.remote import RemoteModel
from device_runtime.client.roll_call import roll_call
from device_runtime.engine.language_model import LanguageModel
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.messages import Info
from tests.support.brokers import await_ready, mosquitto
from toolkit.cli import main
from toolkit.rollout.files import RolloutFiles, default_folder

pytestmark = pytest.mark.slow  # about five minutes

CHECKPOINTS = Path(__file__).parent.parent / "data" / "checkpoints"
STONECHAT = [sys.executable, "-m", "toolkit"]
BOARD = "mps2-an386"
DEVICE = "field-mcu"
PROMPT = "Hello, pump"
FLEET = """\
schema: 1
broker: {{url: "mqtt://127.0.0.1:{port}"}}
models:
  tiny: {{bundle: unused, max_new: 12}}
devices:
{devices}
"""


@dataclass
class Site:
    """A broker, a keyed board in QEMU, a bridge with a slot folder, and an operator."""

    folder: Path
    port: int
    lines: dict[str, str]  # the boards'

    def stonechat(self, *arguments: str) -> int:
        return main(list(arguments))

    def deploy(self, bundle: Path) -> int:
        return main(["deploy", str(bundle), "--to", "fleet:all", "--fleet", str(self.folder / "fleet.yaml")])

    def answer(self, device: str = DEVICE) -> str:
        """What the device answers over MQTT."""
        with RemoteModel(BrokerAddress("127.0.0.1", self.port), device) as model:
            return "".join(model.generate([{"role": "user", "content": PROMPT}], max_new=12))

    def info(self, device: str = DEVICE) -> Info:
        found = roll_call(BrokerAddress("127.0.0.1", self.port))[device].info
        assert found is not None
        return found


def on_host(bundle: Path) -> str:
    with LanguageModel.open(bundle, backend="native") as model:
        return "".join(model.generate([{"role": "user", "content": PROMPT}], max_new=12))


@contextmanager
def process(*command: str, log: Path) -> Iterator[subprocess.Popen[str]]:
    with log.open("w") as file:
        started = subprocess.Popen([*STONECHAT, *command], stdout=subprocess.PIPE, stderr=file, text=True)
        try:
            yield started
        finally:
            started.send_signal(signal.SIGINT)
            started.wait(60)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a bundle of a checkpoint, signed by the key in FOLDER/keys; `change` is done before the signature."""
    if shutil.which("arm-none-eabi-gcc") is None or shutil.which("qemu-system-arm") is None:
        pytest.skip("arm-none-eabi-gcc or qemu-system-arm is not installed")
    folder = tmp_path_factory.mktemp("board")
    assert main(["key", "new", "maker", "-o", str(folder / "keys")]) == 0
    for name in ("gqa-tied", "yarn-biases"):
        convert = ["convert", str(CHECKPOINTS / name), "--profile", "micro", "--context", "64", "--fast"]
        assert main([*convert, "-o", str(folder / name)]) == 0

    def make(checkpoint: str, version: str, *flags: str, change: Callable[[Path], object] = lambda path: None) -> Path:
        path = folder / f"{checkpoint}-{version}"
        shutil.copytree(folder / checkpoint, path)
        change(path)
        sign = ["bundle", "sign", str(path), "--key", str(folder / "keys" / "maker.key"), "--version", version]
        assert main([*sign, *flags]) == 0
        return path

    return make


def with_firmware(version: str, folder: Path) -> Callable[[Path], object]:
    def add(path: Path) -> None:
        build = ["firmware", "build", str(path), "--board", BOARD, "--firmware-version", version, "--add"]
        assert main([*build, "-o", str(folder / version), "--key", str(path.parent / "keys" / "maker.key")]) == 0

    return add


def spoiled(path: Path) -> None:
    """A model image that its maker vouches for and that its own hash does not: it never gets to the board."""
    data = bytearray((path / IMAGE).read_bytes())
    data[len(data) // 2] ^= 1
    (path / IMAGE).write_bytes(data)
    manifest = json.loads((path / MANIFEST).read_text())
    entry = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    manifest["files"][IMAGE] = vars(entry)
    (path / MANIFEST).write_text(json.dumps(manifest))


@contextmanager
def board(folder: Path, bundle: Path, keys: Path, flash: Path | None = None) -> Iterator[str]:
    """A board in QEMU with a bundle; its line."""
    run = ["firmware", "run", str(bundle), "--board", BOARD, "--firmware-version", "1.0.0", "--serve", "0"]
    run += ["--key", str(keys / "maker.key"), "-o", str(folder / "first")]
    run += [] if flash is None else ["--flash", str(flash)]
    with process(*run, log=folder / "board.log") as running:
        assert running.stdout is not None
        yield running.stdout.readline().strip()


@contextmanager
def bridged(folder: Path, fleet: Path, device: str, line: str, keys: Path) -> Iterator[subprocess.Popen[str]]:
    """The bridge of a board."""
    command = ["bridge", str(fleet), "--device", device, "--port", line, "--keys", str(keys), "--wait", "30"]
    command += ["--bundle", str(folder / "model"), "--state-dir", str(folder / "state")]
    with process(*command, log=folder / "bridge.log") as running:
        yield running
    print((folder / "bridge.log").read_text())  # shown where the test fails


@contextmanager
def made_site(folder: Path, first: Path, devices: Sequence[str]) -> Iterator[Site]:
    keys = first.parent / "keys"
    with mosquitto(folder) as port, ExitStack() as parts:
        known = "\n".join(f"  {device}: {{model: tiny}}" for device in devices)
        fleet = folder / "fleet.yaml"
        fleet.write_text(FLEET.format(port=port, devices=known))
        lines = {}
        for device in devices:
            own = folder / device
            own.mkdir()
            assert main(["slots", "install", str(first), str(own / "model"), "--keys", str(keys)]) == 0
            lines[device] = parts.enter_context(board(own, first, keys))
            parts.enter_context(bridged(own, fleet, device, lines[device], keys))
        for device in devices:
            await_ready(port, device)
        yield Site(folder, port, lines)


@pytest.fixture
def site(
    request: pytest.FixtureRequest, signed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "operator"))
    first = signed("yarn-biases", "1.0.0")
    with made_site(tmp_path, first, getattr(request, "param", [DEVICE])) as made:
        yield made
    shutil.rmtree(first)  # the next test makes its own


def test_models_and_firmware_reach_a_board_by_roll_outs_and_bad_ones_come_back(
    site: Site, signed: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Build, ask over MQTT, then updates over the same line: model, model and firmware, bad ones, and back."""
    first = site.folder / DEVICE / "model" / "a"
    assert site.answer() == on_host(first)
    info = site.info()
    assert "ota" in info.capabilities and info.firmware == "1.0.0" and info.board == BOARD

    second = signed("gqa-tied", "2.0.0")
    assert on_host(second) != on_host(first)
    assert site.deploy(second) == 0
    assert "is in its flash" in capsys.readouterr().err
    assert site.answer() == on_host(second)
    assert site.info().firmware == "1.0.0" and site.info().bundles == {"tiny": "gqa-tied 2.0.0"}

    third = signed("gqa-tied", "3.0.0", change=with_firmware("1.1.0", site.folder))
    assert site.deploy(third) == 0
    assert site.info().firmware == "1.1.0" and site.info().bundles == {"tiny": "gqa-tied 3.0.0"}

    capsys.readouterr()
    wrong = ("--trial-prompt", "Hello", "--trial-expect", "nobody says this")
    assert site.deploy(signed("gqa-tied", "4.0.0", *wrong)) != 0
    said = capsys.readouterr()
    assert "did not pass its trial" in said.err + said.out
    assert site.deploy(signed("gqa-tied", "5.0.0", change=spoiled)) != 0
    said = capsys.readouterr()
    assert "is damaged" in said.err + said.out
    assert site.answer() == on_host(third)
    assert site.info().bundles == {"tiny": "gqa-tied 3.0.0"} and site.info().firmware == "1.1.0"

    newest_good = RolloutFiles(default_folder()).ids()[1]
    back = ["rollout", "back", newest_good, "--key", str(second.parent / "keys" / "maker.key")]
    assert site.stonechat(*back, "--bundle", str(second)) == 0
    assert site.info().bundles == {"tiny": "gqa-tied 2.0.0"}
    assert site.answer() == on_host(second)


@pytest.mark.parametrize("site", [["mcu-a", "mcu-b"]], indirect=True)
def test_a_roll_out_goes_in_stages_waits_when_paused_and_stops_after_a_bad_canary(
    site: Site, signed: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """Over two boards, each at its bridge; the operator's terminal is paused from another one."""
    second = signed("gqa-tied", "6.0.0")
    deploy = ["deploy", str(second), "--to", "fleet:all", "--fleet", str(site.folder / "fleet.yaml"), "--canary", "50"]
    with process(*deploy, log=site.folder / "deploy.log") as running:
        end_s = time.monotonic() + 60
        while "canaries: " not in (said := (site.folder / "deploy.log").read_text()):
            assert time.monotonic() < end_s, said
            time.sleep(0.05)
        (rollout,) = RolloutFiles(default_folder()).ids()
        assert site.stonechat("rollout", "pause", rollout) == 0
        assert running.wait(300) == 1  # not all have it
    canary = re.search(r"canaries: (mcu-.)", said)[1]  # type: ignore[index]
    (other,) = {"mcu-a", "mcu-b"} - {canary}
    assert site.info(canary).bundles == {"tiny": "gqa-tied 6.0.0"}  # what was under way has ended
    assert site.info(other).bundles == {"tiny": "yarn-biases 1.0.0"}
    assert site.stonechat("rollout", "resume", rollout) == 0
    assert [site.info(device).bundles for device in (canary, other)] == [{"tiny": "gqa-tied 6.0.0"}] * 2
    assert site.answer(canary) == site.answer(other) == on_host(second)

    bad = signed("yarn-biases", "7.0.0", "--trial-prompt", "Hello", "--trial-expect", "nobody says this")
    capfd.readouterr()
    assert site.stonechat("deploy", str(bad), *deploy[2:]) == 6
    assert "did not pass its trial" in capfd.readouterr().err
    states = [site.info(device).bundles for device in (canary, other)]
    assert states == [{"tiny": "gqa-tied 6.0.0"}] * 2
    assert site.answer(canary) == on_host(second)


def test_a_bridge_whose_trial_is_due_is_on_the_air_while_it_holds_it(
    signed: Callable[..., Path], tmp_path: Path
) -> None:
    """As after a cut of the power: the bundle is in the slot folder, and the board runs the one before."""
    first, second = signed("yarn-biases", "8.0.0"), signed("gqa-tied", "9.0.0")
    keys = first.parent / "keys"
    with mosquitto(tmp_path) as port:
        fleet = tmp_path / "fleet.yaml"
        fleet.write_text(FLEET.format(port=port, devices=f"  {DEVICE}: {{model: tiny}}"))
        for bundle in (first, second):
            trial = ["--no-trial"] if bundle is second else []  # that is the bridge's to hold
            install = ["slots", "install", str(bundle), str(tmp_path / "model"), "--keys", str(keys)]
            assert main([*install, *trial]) == 0
        heard: queue.Queue[str] = queue.Queue()
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.on_message = lambda c, u, message: heard.put(json.loads(message.payload)["state"])
        client.connect("127.0.0.1", port)
        client.subscribe(f"stonechat/1/{DEVICE}/out/state", 1)
        client.loop_start()
        with board(tmp_path, first, keys) as line, bridged(tmp_path, fleet, DEVICE, line, keys):
            states = [heard.get(timeout=60)]
            while states[-1] != "updating":
                states.append(heard.get(timeout=60))
            with RemoteModel(BrokerAddress("127.0.0.1", port), DEVICE) as model:  # it waits for the trial's end
                asked = [{"role": "user", "content": PROMPT}]
                answer = "".join(model.generate(asked, max_new=12, timeout_s=300))
            assert answer == on_host(second)
            while states[-1] != "ready":
                states.append(heard.get(timeout=60))
        assert set(states[: states.index("updating")]) <= {"init"}
        assert "init" not in states[states.index("updating") :]  # a client that waits would give up
        client.loop_stop()
