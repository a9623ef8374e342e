"""A board in QEMU: its line's port, and what is said when QEMU does not run."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from boards import load_board
from device_runtime.errors import BackendError, ConfigurationError
from toolkit.firmware.build import Build
from toolkit.firmware.qemu import Emulator
from toolkit.firmware.slots import require_flash, write_flash

pytestmark = pytest.mark.skipif(shutil.which("qemu-system-arm") is None, reason="qemu-system-arm is not installed")


@pytest.fixture
def not_there(tmp_path: Path) -> Build:
    """What was built and then deleted."""
    missing = tmp_path / "firmware.elf"
    return Build(missing, tmp_path / "map", tmp_path / "model.image", 0, 0, 0)


def test_a_port_in_use_is_named_before_qemu_starts(not_there: Build) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"TCP port {port} of this machine: Address already in use"):
            Emulator(not_there, load_board("stm32f405"), port=port)


def test_the_line_of_a_qemu_that_ends_says_why(not_there: Build) -> None:
    with (
        pytest.raises(BackendError, match=r"qemu-system-arm has ended: .*firmware.elf"),
        Emulator(not_there, load_board("stm32f405")) as emulator,
    ):
        emulator.wait_until_ready()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("two\nlines", "one line at a time"),
        ("a\x01b", r"control character '\\x01'"),
        ("a\udcffb", "not text: character 1"),
    ],
)
def test_what_the_console_would_not_answer_is_refused(not_there: Build, text: str, why: str) -> None:
    """A board would be waited for in vain."""
    emulator = Emulator(not_there, load_board("stm32f405"))
    with pytest.raises(ConfigurationError, match=why):
        list(emulator.ask(text))


def test_a_file_that_is_no_flash_is_named(tmp_path: Path) -> None:
    board, path = load_board("mps2-an386"), tmp_path / "flash.bin"
    write_flash(path, board, None, None)
    require_flash(path, board)
    path.write_bytes(b"short")
    with pytest.raises(ConfigurationError, match=r"flash\.bin has 5 bytes, and the flash of mps2-an386 16,777,216"):
        require_flash(path, board)
