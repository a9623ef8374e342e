"""A board in QEMU, with its serial line on a TCP port of this machine and its flash in a file."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from boards import Board
from device_runtime.errors import BackendError, BackendMissingError, ConfigurationError, UnreachableError
from toolkit.firmware.build import Build, firmware_of
from toolkit.firmware.layout import layout_of
from toolkit.firmware.toolchain import toolchain_for

__all__ = ["PROMPT", "Emulator"]

PROMPT = b"\r\n> "  # the console waits for a line
_PACKAGES = {"qemu-system-arm": "qemu-system-arm", "qemu-system-riscv32": "qemu-system-misc"}
_START_S = 20.0


class Emulator:
    """A running board; a context manager. `url` is its serial line; it starts when the first program connects to it."""

    def __init__(
        self,
        build: Build,
        board: Board,
        flash: Path | None = None,
        *,
        port: int = 0,
        networked: bool = False,
        gdb: int | None = None,
    ) -> None:
        """Prepare; entering it starts QEMU.

        Args:
            flash: what the board's flash is kept in (`toolkit.firmware.slots.write_flash`); a board without slots
                has the model's image put into its place instead.
            port: of TCP; 0: any free one.
            gdb: a TCP port for a debugger.
            networked: whether it has a network, on which this machine is 10.0.2.2.
        """
        machine, qemu = firmware_of(board).machine, toolchain_for(board).qemu
        if machine is None:
            raise ConfigurationError(f"QEMU has no machine for {board.id}; flash the firmware onto the board.")
        if shutil.which(qemu) is None:
            raise BackendMissingError(f"{qemu} is not installed; on Debian: apt install {_PACKAGES[qemu]}.")
        # QEMU takes over a socket that listens already: its URL is good at once, however late QEMU is.
        self._listening = _listen(port)
        self._port: int = self._listening.getsockname()[1]
        self._folder = tempfile.TemporaryDirectory(prefix="stonechat-qemu-")
        self._qmp = Path(self._folder.name) / "qmp"
        self._line: socket.socket | None = None
        layout = layout_of(board)
        elf = build.boot or build.elf
        command = [qemu, *(["-bios", "none"] if qemu.endswith("riscv32") else []), "-kernel", str(elf)]
        if layout is None or flash is None:
            command += ["-M", machine]
            command += ["-device", f"loader,file={build.image},addr={build.image_address:#x},force-raw=on"]
        else:
            size = f"{layout.update.machine_ram_kib}K"
            command += ["-M", f"{machine},memory-backend=kept", "-m", size]
            command += ["-object", f"memory-backend-file,id=kept,size={size},mem-path={flash},share=on"]
        command += ["-nic", "user,model=lan9118" if networked else "none"]
        if gdb is not None:
            command += ["-gdb", f"tcp:127.0.0.1:{gdb}"]
        command += ["-chardev", f"socket,id=line,fd={self._listening.fileno()},server=on,wait=on,nodelay=on"]
        command += ["-serial", "chardev:line"]
        command += ["-qmp", f"unix:{self._qmp},server=on,wait=off"]
        self._command = [*command, "-display", "none", "-monitor", "none"]

    @property
    def url(self) -> str:
        """The serial line, as pyserial names it."""
        return f"socket://127.0.0.1:{self._port}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """QEMU."""
        return self._process

    def __enter__(self) -> Emulator:
        with self._listening as listening:  # from here on it is QEMU's alone, and is gone when QEMU is
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[listening.fileno()],
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._folder.cleanup()

    def connect(self) -> None:
        """Open the serial line for `ask` and `wait_until_ready`; a line has one program at a time.

        Raises:
            BackendError: QEMU does not start.
        """
        if self._line is None:
            try:
                self._line = socket.create_connection(("127.0.0.1", self._port), timeout=_START_S)
            except OSError as error:
                raise self._ended(error) from None

    def disconnect(self) -> None:
        """Leave the line to another program."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def reset(self) -> None:
        """Press the reset button."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.settimeout(_START_S)
            control.connect(str(self._qmp))
            lines = control.makefile("rwb")
            for command in ("qmp_capabilities", "system_reset"):
                lines.write(json.dumps({"execute": command}).encode() + b"\n")
                lines.flush()
                while b'"return"' not in (line := lines.readline()):
                    if not line:
                        raise BackendError("QEMU has ended.")

    def wait_until_ready(self, timeout_s: float = 120.0) -> str:
        """What the board says at its start, up to its prompt.

        Raises:
            BackendError: it has no model that works, or QEMU does not start.
            UnreachableError: it falls silent.
        """
        self.connect()
        said = b"".join(self._until_prompt(timeout_s)).decode(errors="replace").strip("\0\r\n ")
        if "ready" not in said:
            raise BackendError(f"The board does not start: {said}")
        return said

    def ask(self, text: str, timeout_s: float = 300.0) -> Iterator[bytes]:
        """Send a line; the answer as it comes.

        Raises:
            ConfigurationError: the text is no single line of text.
            UnreachableError: the board falls silent.
            BackendError: QEMU has ended.
        """
        line = _console_line(text)
        self.connect()
        assert self._line is not None
        try:
            self._line.sendall(line)
        except ConnectionError as error:
            raise self._ended(error) from None
        yield from self._until_prompt(timeout_s)

    def _until_prompt(self, timeout_s: float) -> Iterator[bytes]:
        """What comes before the prompt; frames of the serial protocol after an earlier prompt are left out."""
        assert self._line is not None
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
            except ConnectionError as error:
                raise self._ended(error) from None
            if not came:
                raise self._ended("it closed the serial line")
            held = _without_frames(held + came)
            if held.endswith(PROMPT):
                yield held.removesuffix(PROMPT)
                return
            if b"\0" in held:  # half a frame
                continue
            safe = len(held) - next(n for n in range(len(PROMPT), -1, -1) if held.endswith(PROMPT[:n]))
            if safe:
                yield held[:safe]
                held = held[safe:]

    def wait_until_ended(self) -> None:
        """Raises a `BackendError` that says why, unless QEMU ended of its own accord."""
        if (code := self.process.wait()) != 0:
            raise self._ended(f"by signal {-code}" if code < 0 else f"with code {code}")

    def _ended(self, why: object) -> BackendError:
        """What to raise when QEMU has closed the line; it says itself why it ended."""
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        lines = self._process.stderr.read().decode(errors="replace").splitlines()
        said = "; ".join(line.strip().rstrip(".") for line in lines if not re.search(": (info|warning): ", line))
        return BackendError(f"{self._command[0]} has ended: {said or why}.")


def _console_line(text: str) -> bytes:
    """A line as the console takes it: to one with a control character in it, it would say nothing at all."""
    if "\n" in text or "\r" in text:
        raise ConfigurationError("The console takes one line at a time; leave out the line ends.")
    if control := next((c for c in text if c < " " and c != "\t"), None):
        raise ConfigurationError(f"The line has the control character {control!r} in it; leave it out.")
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError as error:  # bytes in an argument or on stdin
        raise ConfigurationError(
            f"The line is not text: character {error.start} is {text[error.start]!r}; give it in UTF-8."
        ) from None


def _without_frames(data: bytes) -> bytes:
    parts = data.split(b"\0")
    if len(parts) % 2 == 0:  # the last one is open
        return b"".join(parts[:-1:2]) + b"\0" + parts[-1]
    return b"".join(parts[::2])


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise ConfigurationError(
            f"the board's line cannot be TCP port {port} of this machine: {os.strerror(error.errno or 0)}. "
            "Choose another, or 0 for any free one."
        ) from None
