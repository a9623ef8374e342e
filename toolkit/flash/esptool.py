"""Flashing ESP chips with esptool, which is under the GPL: it runs as a program of its own and is never imported.

It resets the board into its boot loader, writes, and has the chip compute an MD5 of what is in flash afterwards.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from boards import Board
from device_runtime.errors import DoesNotFitError, FlashError, StonechatError, UnreachableError
from device_runtime.records.printable import counted
from toolkit.flash.esp_image import boot_loader_offset, check_image
from toolkit.flash.flasher import Part, Report, Result, place_model, require_apart, require_room
from toolkit.flash.images import Image, kind_of, require_kind
from toolkit.flash.ports import held_port, silent

__all__ = ["Flasher"]

_BAUD = 460800
_CONNECT_ATTEMPTS = 7
_APP_OFFSET = 0x10000  # of `factory` in ESP-IDF's own partition tables
_BEGUN = "Flash will be erased"
_VERIFIED = "Hash of data verified."
_WRITING = re.compile(r"Writing at 0x[0-9a-fA-F]+.*?(\d+(?:\.\d+)?)\s?%")
_FATAL = re.compile(r"A fatal error occurred: (.*)", re.DOTALL)


class Flasher:
    """Runs esptool's write-flash."""

    half_done = (
        "The flash is only partly written. The chip's boot loader is in ROM and cannot be lost: flash again; if the "
        "board restarts over and over meanwhile, bring it into its boot loader by hand."
    )

    def __init__(self, board: Board) -> None:
        assert board.flash.chip is not None  # the board file's schema sees to it
        self._board = board
        self._chip = board.flash.chip

    def check(self, firmware: Image | None, model: Image | None) -> list[Part]:
        """See `toolkit.flash.flasher.Flasher`."""
        parts = []
        if firmware is not None:
            parts += self._place_firmware(firmware)
        if model is not None:
            parts.append(place_model(self._board, model))
        return parts

    def flash(self, parts: Sequence[Part], port: str | None, report: Report) -> Result:
        """See `toolkit.flash.flasher.Flasher`."""
        if importlib.util.find_spec("esptool") is None:
            raise ModuleNotFoundError(name="esptool")
        with held_port(self._board, port) as held:
            return self._flash(parts, held, report)

    def _flash(self, parts: Sequence[Part], port: str, report: Report) -> Result:
        with tempfile.TemporaryDirectory(prefix="stonechat-") as folder:
            files = []
            for number, part in enumerate(parts):
                file = Path(folder) / f"{number}-{part.what}.bin"
                file.write_bytes(part.image.data)
                files += [f"0x{part.address:x}", str(file)]
            command = [
                sys.executable, "-m", "esptool", "--chip", self._chip, "--port", port,
                "--baud", str(self._board.flash.baud or _BAUD), "--connect-attempts", str(_CONNECT_ATTEMPTS),
                "--before", "default-reset", "--after", "hard-reset",
                "write-flash", *files,
            ]  # fmt: skip
            code, output = _run(command, [part.what for part in parts], report)
        verified = output.count(_VERIFIED)
        if code != 0:
            raise self._failure(output, port)
        if verified != len(parts):
            raise FlashError(
                f"esptool verified {verified} of {counted(len(parts), 'part')}, and says no more. {self.half_done}"
            )
        return Result(port, "the chip's MD5 of what is in flash is that of the file")

    def _place_firmware(self, firmware: Image) -> list[Part]:
        """An image of the whole flash goes to 0, a program to its partition, and stretches of a HEX file to theirs."""
        if firmware.more:
            return self._place_runs(firmware)
        boot_loader = boot_loader_offset(firmware.data)
        if boot_loader is not None:
            address = 0
            check_image(firmware.data[boot_loader:], f"The boot loader in {firmware.name}", self._chip)
        else:
            require_kind(firmware, ("esp",), self._board.name)
            check_image(firmware.data, firmware.name, self._chip)
            address = firmware.address or self._board.flash.firmware_address or _APP_OFFSET
        kib = self._board.flash.firmware_kib
        part = Part("firmware", firmware, address, None if kib is None or address == 0 else kib * 1024)
        require_room(part, "flash.firmware_kib")
        require_apart(part, self._board)
        return [part]

    def _place_runs(self, firmware: Image) -> list[Part]:
        images = [run for run in firmware.runs if kind_of(run.data) == "esp"]
        if not images:
            require_kind(firmware, ("esp",), self._board.name)
        for image in images:
            check_image(image.data, f"What {image.name} has at 0x{image.address or 0:x}", self._chip)
        parts = [Part("firmware", run, run.address or 0) for run in firmware.runs]
        for part in parts:
            require_apart(part, self._board)
        return parts

    def _failure(self, output: str, port: str) -> StonechatError:
        """What esptool's last words mean."""
        fatal = _FATAL.search(output)
        reason = " ".join((fatal[1] if fatal else output[-300:]).split())
        if "Failed to connect" in reason or "No serial data received" in reason:
            return silent(self._board, port, reason.split(" For troubleshooting")[0])
        if "Could not open" in reason:
            return UnreachableError(f"esptool: {reason.rstrip('.!')}. Nothing was written.")
        if "This chip is" in reason:
            return DoesNotFitError(f"{reason.split(' Wrong chip')[0]} The board file says {self._chip}.")
        if "will not fit in" in reason:
            return DoesNotFitError(reason.split(" Change the")[0])
        state = self.half_done if _BEGUN in output else "Nothing was written."
        return FlashError(f"esptool: {reason.rstrip('.!')}. {state}")


def _run(command: Sequence[str], parts: Sequence[str], report: Report) -> tuple[int, str]:
    """Run esptool in a process group of its own, so that Ctrl-C reaches only us; it never outlives this call."""
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "200", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
        env=environment, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    done = 0

    def hear(line: str) -> None:
        nonlocal done
        lines.append(line)
        done += _VERIFIED in line
        if _BEGUN in line and done < len(parts):
            report(f"write {parts[done]}", 0.0)
        if (writing := _WRITING.search(line)) and done < len(parts):
            report(f"write {parts[done]}", float(writing[1]) / 100)

    try:
        for line in process.stdout:
            hear(line)
        return process.wait(), "".join(lines)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for line in process.stdout:  # after Ctrl-C: whether it had begun to write may still be in the pipe
            hear(line)
        process.stdout.close()
