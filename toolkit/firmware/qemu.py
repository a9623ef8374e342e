"""A board in QEMU, with its serial line on a socket."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from types import TracebackType

from boards import Board
from device_runtime.errors import BackendError, BackendMissingError, ConfigurationError, UnreachableError
from toolkit.firmware.build import Build, firmware_of
from toolkit.firmware.toolchain import toolchain_for

__all__ = ["PROMPT", "Emulator"]

PROMPT = b"\r\n> "  # the console waits for a line
_PACKAGES = {"qemu-system-arm": "qemu-system-arm", "qemu-system-riscv32": "qemu-system-misc"}


class Emulator:
    """A running board; a context manager. Its console takes a line and answers it."""

    def __init__(self, build: Build, board: Board) -> None:
        machine, qemu = firmware_of(board).machine, toolchain_for(board).qemu
        if machine is None:
            raise ConfigurationError(f"QEMU has no machine for {board.id}; flash the firmware onto the board.")
        if shutil.which(qemu) is None:
            raise BackendMissingError(f"{qemu} is not installed; on Debian: apt install {_PACKAGES[qemu]}.")
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self._command = [
            qemu, "-M", machine, *(["-bios", "none"] if qemu.endswith("riscv32") else []), "-kernel", str(build.elf),
            "-device", f"loader,file={build.image},addr={build.image_address:#x},force-raw=on",
            "-serial", f"tcp:127.0.0.1:{port}", "-display", "none", "-monitor", "none",
        ]  # fmt: skip

    def __enter__(self) -> Emulator:
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            self._listener.settimeout(20)
            self._line, _ = self._listener.accept()
        except TimeoutError:
            self._process.kill()
            said = (self._process.communicate()[1] or b"").decode(errors="replace").strip()
            raise BackendError(f"{self._command[0]} did not start: {said or 'it gave no reason'}") from None
        finally:
            self._listener.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.close()
        self._process.kill()
        self._process.communicate()

    def wait_until_ready(self, timeout_s: float = 60.0) -> str:
        """What the board says at its start.

        Raises:
            BackendError: it refuses the image.
        """
        said = b"".join(self._until_prompt(timeout_s)).decode(errors="replace").strip()
        if "ready" not in said:
            raise BackendError(f"The board does not start: {said}")
        return said

    def ask(self, text: str, timeout_s: float = 300.0) -> Iterator[bytes]:
        """Send a line; the answer as it comes.

        Raises:
            ConfigurationError: the text has several lines.
            UnreachableError: the board falls silent.
        """
        if "\n" in text or "\r" in text:
            raise ConfigurationError("The console takes one line at a time; leave out the line ends.")
        self._line.sendall(text.encode() + b"\n")
        yield from self._until_prompt(timeout_s)

    def _until_prompt(self, timeout_s: float) -> Iterator[bytes]:
        held = b""
        stop_s = time.monotonic() + timeout_s
        while True:
            self._line.settimeout(max(0.01, stop_s - time.monotonic()))
            try:
                came = self._line.recv(4096)
            except TimeoutError:
                raise UnreachableError(
                    f"The board has been silent for {timeout_s:.0f} s; after {held[-80:]!r}."
                ) from None
            if not came:
                raise UnreachableError("QEMU closed the serial line.")
            held += came
            if held.endswith(PROMPT):
                yield held.removesuffix(PROMPT)
                return
            safe = len(held) - next(n for n in range(len(PROMPT), -1, -1) if held.endswith(PROMPT[:n]))
            if safe:
                yield held[:safe]
                held = held[safe:]
