"""A microcontroller takes updates over MQTT as any device does: mosquitto, `stonechat bridge`, SMP, QEMU."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from device_runtime.bundle.manifest import IMAGE, MANIFEST, FileEntry
from device_runtime.client.remote import RemoteModel
from device_runtime.client.roll_call import roll_call
from device_runtime.engine.language_model import LanguageModel
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.messages import Info
from tests.brokers import await_ready, mosquitto
from toolkit.cli import main
from toolkit.rollout.files import RolloutFiles, default_folder

pytestmark = pytest.mark.slow  # about three minutes

CHECKPOINTS = Path(__file__).parent.parent / "data" / "checkpoints"
STONECHAT = [sys.executable, "-m", "toolkit"]
BOARD = "mps2-an386"
DEVICE = "field-mcu"
PROMPT = "Hello, pump"
FLEET = """\
schema: 1
broker: {{url: "mqtt://127.0.0.1:{port}"}}
models:
  tiny: {{bundle: model, max_new: 12}}
devices:
  field-mcu: {{model: tiny}}
"""


@dataclass
class Site:
    """A broker, a keyed board in QEMU, a bridge with a slot folder, and an operator."""

    folder: Path
    port: int
    line: str  # the board's

    def stonechat(self, *arguments: str) -> int:
        return main(list(arguments))

    def deploy(self, bundle: Path) -> int:
        return main(["deploy", str(bundle), "--to", "fleet:all", "--fleet", str(self.folder / "fleet.yaml")])

    def answer(self) -> str:
        """What the device answers over MQTT."""
        with RemoteModel(BrokerAddress("127.0.0.1", self.port), DEVICE) as model:
            return "".join(model.generate([{"role": "user", "content": PROMPT}], max_new=12))

    def info(self) -> Info:
        found = roll_call(BrokerAddress("127.0.0.1", self.port))[DEVICE].info
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


@pytest.fixture
def site(signed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "operator"))
    first = signed("yarn-biases", "1.0.0")
    keys = first.parent / "keys"
    with mosquitto(tmp_path) as port:
        (tmp_path / "fleet.yaml").write_text(FLEET.format(port=port))
        assert main(["slots", "install", str(first), str(tmp_path / "model"), "--keys", str(keys)]) == 0
        run = ["firmware", "run", str(first), "--board", BOARD, "--firmware-version", "1.0.0", "--serve", "0"]
        run += ["--key", str(keys / "maker.key"), "-o", str(tmp_path / "first")]
        with process(*run, log=tmp_path / "board.log") as board:
            assert board.stdout is not None
            line = board.stdout.readline().strip()
            bridge = ["bridge", str(tmp_path / "fleet.yaml"), "--device", DEVICE, "--port", line, "--keys", str(keys)]
            bridge += ["--state-dir", str(tmp_path / "state"), "--wait", "30"]
            with process(*bridge, log=tmp_path / "bridge.log"):
                await_ready(port, DEVICE)
                yield Site(tmp_path, port, line)
            print((tmp_path / "bridge.log").read_text())  # shown where the test fails


def test_models_and_firmware_reach_a_board_by_roll_outs_and_bad_ones_come_back(
    site: Site, signed: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Build, ask over MQTT, then updates over the same line: model, model and firmware, bad ones, and back."""
    first = site.folder / "model" / "a"
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
