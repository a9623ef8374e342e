"""An engine that hangs: the watchdog restarts the board, the board says so, and the answer goes on where it was."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from boards import load_board
from device_runtime.bridge.link import Link
from device_runtime.bridge.model import SerialModel
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.language_model import LanguageModel
from tests.support.brokers import free_port
from toolkit.cli import main
from toolkit.firmware.build import build_firmware
from toolkit.firmware.qemu import Emulator
from toolkit.firmware.slots import firmware_image, model_image, write_flash

pytestmark = pytest.mark.slow  # about half a minute a board

CHECKPOINT = Path(__file__).parent.parent / "data" / "checkpoints" / "gqa-tied"
MESSAGES = [{"role": "user", "content": "Hello, pump"}]
TO_ITSELF = bytes.fromhex("fee7")  # `b .` in Thumb


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    if shutil.which("arm-none-eabi-gcc") is None or shutil.which("qemu-system-arm") is None:
        pytest.skip("arm-none-eabi-gcc or qemu-system-arm is not installed")
    folder = tmp_path_factory.mktemp("watchdog") / "bundle"
    assert main(["convert", str(CHECKPOINT), "--profile", "micro", "--context", "64", "--fast", "-o", str(folder)]) == 0
    return Bundle.open(folder)


def address_of(symbol: str, elf: Path) -> int:
    listing = subprocess.run(["arm-none-eabi-nm", str(elf)], capture_output=True, text=True, check=True).stdout
    (found,) = (line.split()[0] for line in listing.splitlines() if line.split()[-1] == symbol)
    return int(found, 16) & ~1


def overwrite(port: int, address: int, data: bytes) -> None:
    """As a debugger does: stop, write memory, let go (GDB's remote protocol)."""

    def packet(body: str) -> bytes:
        return f"${body}#{sum(body.encode()) % 256:02x}".encode()

    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        for body in (f"M{address:x},{len(data):x}:{data.hex()}", "D"):
            line.sendall(b"+" + packet(body))
            said = b""
            while b"$OK#9a" not in said:
                more = line.recv(4096)
                assert more, said
                said += more
        line.sendall(b"+")


@pytest.mark.parametrize("board_id", ["mps2-an386", "mps2-an500", "mps3-an547"])
def test_a_hanging_engine_is_restarted_and_the_answer_is_whole(bundle: Bundle, board_id: str, tmp_path: Path) -> None:
    board = load_board(board_id)
    build = build_firmware(bundle.path / "model.image", board, tmp_path)
    flash, debugger = tmp_path / "flash.bin", free_port()
    model = model_image(build.image.read_bytes(), bundle.manifest, board)
    write_flash(flash, board, firmware_image(build, board), model)
    with LanguageModel.open(bundle.path, backend="native") as local:
        expected = "".join(local.generate(MESSAGES, max_new=24))
    with Emulator(build, board, flash, gdb=debugger) as emulator:
        emulator.wait_until_ready()
        emulator.disconnect()
        remote = SerialModel(Link(emulator.url), bundle).open(20)
        overwrite(debugger, address_of("sc_feed_watched", build.elf), TO_ITSELF)  # a start copies it from flash again
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(remote.generate(MESSAGES, max_new=24)))
        reader.start()
        reader.join(90)
        assert not reader.is_alive() and "".join(said) == expected
        health = remote.health()
        assert (health["board_starts"], health["board_reset_by"]) == (2, "watchdog")
        remote.close()
        assert b"start 2 by the watchdog" in b"".join(emulator.ask("/status"))
