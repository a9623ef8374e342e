"""The reset button in the middle of an answer: QEMU, `stonechat bridge` and mosquitto; the client sees no gap."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from boards import load_board
from device_runtime.bundle.folder import Bundle
from device_runtime.client.remote import RemoteModel
from device_runtime.mqtt.address import BrokerAddress
from tests.support.brokers import await_ready, mosquitto
from toolkit.cli import main
from toolkit.firmware.build import build_firmware
from toolkit.firmware.qemu import Emulator
from toolkit.firmware.slots import firmware_image, model_image, write_flash

pytestmark = pytest.mark.slow  # about half a minute

CHECKPOINT = Path(__file__).parent.parent / "data" / "checkpoints" / "gqa-tied"
BOARD = "mps2-an386"
MESSAGES = [{"role": "user", "content": "Hello, pump"}]
SCHEMA = {"type": "object", "properties": {"advice": {"type": "string", "maxLength": 160}}, "required": ["advice"]}
DRAWN = {"temperature": 1.0, "seed": 5}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Emulator, Path]]:
    """A broker, a board with a schema in its image, and its bundle."""
    if shutil.which("arm-none-eabi-gcc") is None or shutil.which("qemu-system-arm") is None:
        pytest.skip("arm-none-eabi-gcc or qemu-system-arm is not installed")
    folder = tmp_path_factory.mktemp("reset")
    (folder / "schema.json").write_text(json.dumps(SCHEMA))
    convert = ["convert", str(CHECKPOINT), "--profile", "micro", "--context", "256", "--fast"]
    assert main([*convert, "--schema", str(folder / "schema.json"), "-o", str(folder / "bundle")]) == 0
    bundle, board = Bundle.open(folder / "bundle"), load_board(BOARD)
    build = build_firmware(bundle.path / "model.image", board, folder / "firmware")
    model = model_image(build.image.read_bytes(), bundle.manifest, board)
    write_flash(folder / "flash.bin", board, firmware_image(build, board), model)
    with mosquitto(folder) as port, Emulator(build, board, folder / "flash.bin") as emulator:
        emulator.wait_until_ready()
        emulator.disconnect()
        yield port, emulator, bundle.path


@pytest.mark.parametrize(
    ("device", "with_bundle", "asked"),
    [
        ("tokens", True, {**DRAWN, "max_new": 150}),
        ("text", False, {**DRAWN, "max_new": 150}),
        ("typed", True, {"schema": SCHEMA}),
        ("typed-text", False, {"schema": SCHEMA}),
    ],
)
def test_a_reset_in_the_middle_of_an_answer_leaves_no_gap_and_nothing_twice(
    site: tuple[int, Emulator, Path], device: str, with_bundle: bool, asked: dict[str, Any], tmp_path: Path
) -> None:
    port, emulator, bundle = site
    command = ["bridge", "--device", device, "--port", emulator.url, "--broker", f"mqtt://127.0.0.1:{port}"]
    command += ["--wait", "30", "--state-dir", str(tmp_path), *(["--bundle", str(bundle)] if with_bundle else [])]
    log = tmp_path / "bridge.log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "toolkit", *command], stdout=file, stderr=file)
        try:
            await_ready(port, device)
            with RemoteModel(BrokerAddress("127.0.0.1", port), device) as model:
                whole = model.generate(MESSAGES, **asked)
                expected = "".join(whole)
                cut = model.generate(MESSAGES, stream=True, **asked)
                pieces = [next(cut)]
                emulator.reset()
                pieces += cut
                assert "".join(pieces) == expected
                assert cut.final.confidence == whole.final.confidence
                assert cut.final.finish == whole.final.finish
                assert cut.final.usage.completion_tokens == whole.final.usage.completion_tokens
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0, log.read_text()
        assert log.read_text().count("reset in the middle of a request") == 1
