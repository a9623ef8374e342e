"""A session on a real port: a thread that opens it, reads it, and opens it again when it is gone."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from device_runtime.bridge.messages import Hello
from device_runtime.bridge.request import Ask, Event
from device_runtime.bridge.session import Phase, Session
from device_runtime.bridge.tcp_port import TcpPort
from device_runtime.bridge.timing import Timing
from device_runtime.errors import ConfigurationError, UnreachableError

__all__ = ["Link"]

READ_S = 0.05  # how long a read may wait: timers are looked at in between
REOPEN_S = 0.5
LARGEST_READ = 4096  # bytes, before what has come is looked at
SAMPLE_BYTES = 40  # of what a port said that was no frame

log = logging.getLogger("stonechat.bridge")


class Link:
    """A board on a port. `generate` and `health` of the model come from other threads than the reader."""

    def __init__(self, url: str, baud: int = 115_200, timing: Timing | None = None) -> None:
        """`url` is a device file, socket://host:port or rfc2217://host:port."""
        self.url, self.baud = url, baud
        self.session = Session(baud, timing)
        self._port: Any = None
        self._changed = threading.Condition()  # guards the session
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self, wait_s: float = 5.0, interrupted: Callable[[], bool] = lambda: False) -> Hello:
        """Open the port and wait until the board has said who it is, or the wait is `interrupted`.

        Raises:
            UnreachableError: there is no such port, or no board that speaks the protocol on it.
            ConfigurationError: the port's name is of no kind that pyserial knows.
            KeyboardInterrupt: it was interrupted.
        """
        self._stopping.clear()
        self._connect()
        self._thread = threading.Thread(target=self._run, name="stonechat-serial", daemon=True)
        self._thread.start()
        end_s = time.monotonic() + wait_s
        with self._changed:
            while self.session.phase is not Phase.UP and (left_s := end_s - time.monotonic()) > 0:
                self._changed.wait(min(left_s, 0.1))
                if interrupted():
                    break
                if self.session.refusal or self.session.phase is Phase.CLOSED:
                    break
            if self.session.phase is Phase.UP and self.session.hello is not None:
                return self.session.hello
            why = self._why(wait_s)
        self.close()
        if interrupted():
            raise KeyboardInterrupt
        raise UnreachableError(f"{self.url}: {why}")

    def close(self) -> None:
        """Give the port back; `open` takes it again."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._changed:
            self._disconnect()
            self.session.closed(time.monotonic())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def up(self) -> bool:
        """Whether the board can be asked."""
        with self._changed:
            return self.session.phase is Phase.UP

    def ask(self, ask: Ask) -> None:
        """Begin a request.

        Raises:
            UnavailableError: the board is not there.
        """
        with self._changed:
            self.session.ask(ask, time.monotonic())
            self._write()

    def cancel(self) -> None:
        """Stop the request that is under way."""
        with self._changed:
            self.session.cancel(time.monotonic())
            self._write()
            self._changed.notify_all()

    def next_event(self, timeout_s: float) -> Event | None:
        """Wait for what happens to the request; None when nothing has."""
        with self._changed:
            event = self.session.next_event()
            if event is None:
                self._changed.wait(timeout_s)
                event = self.session.next_event()
            return event

    # the reader thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._port is None:
                self._reopen()
                continue
            try:
                data = self._read()
            except (OSError, TypeError) as error:  # TypeError: pyserial, when the port is closed meanwhile
                self._lose(error)
                continue
            now_s = time.monotonic()
            with self._changed:
                was, frames = self.session.phase, self.session.reader.frames
                if data:
                    self.session.receive(data, now_s)
                self.session.tick(now_s)
                self._write()
                if self.session.phase is Phase.UP and was is not Phase.UP:
                    log.info("the board on %s is there: %s", self.url, _facts(self.session.hello))
                if self.session.phase is not was or self.session.reader.frames > frames:
                    self._changed.notify_all()
                silent = self.session.phase is Phase.SILENT
            if silent:
                self._lose(None)

    def _read(self) -> bytes:
        """Wait for a byte, and take what is there."""
        if isinstance(self._port, TcpPort):
            return self._port.read(READ_S)
        data = bytes(self._port.read(1))
        while data and len(data) < LARGEST_READ and (waiting := self._port.in_waiting):
            data += self._port.read(waiting)
        return data

    def _reopen(self) -> None:
        if self._stopping.wait(REOPEN_S):
            return
        with contextlib.suppress(UnreachableError, ConfigurationError):
            self._connect()
        with self._changed:
            self.session.tick(time.monotonic())
            self._changed.notify_all()

    def _connect(self) -> None:
        from serial import SerialException, serial_for_url

        expected = "expected a device file such as /dev/ttyACM0, socket://host:port or rfc2217://host:port."
        try:
            remote = self.url.startswith(("socket://", "rfc2217://"))
            if remote and urlsplit(self.url).port is None:
                raise ValueError("the TCP port is missing")
            # exclusive: two bridges on one port would each take half of what the board says. A server has one client.
            own: dict[str, Any] = {} if remote else {"write_timeout": 2.0, "exclusive": True}
            if self.url.startswith("socket://"):
                port: Any = TcpPort(self.url)
                port.open()
            else:
                port = serial_for_url(self.url, self.baud, timeout=READ_S, **own)
        except ValueError as error:
            raise ConfigurationError(f"{self.url} with {self.baud} baud is no port ({error}); {expected}") from None
        except (SerialException, OSError) as error:
            raise UnreachableError(f"{self.url} cannot be opened: {_reason(error)}.{self._advice(error)}") from None
        with self._changed:
            self._port = port
            self.session.opened(time.monotonic())
            self._write()

    def _advice(self, error: Exception) -> str:
        import errno

        number = getattr(error, "errno", None)
        if number == errno.EACCES:
            return " Add yourself to the group that owns it (often: sudo usermod -aG dialout $USER), and log in again."
        if number in (errno.EAGAIN, errno.EBUSY):
            return " Another program has it open; stop that one first."
        if number == errno.ENOENT:
            return f" {_known_ports()}"
        if "timed out" in str(error):
            return " Another program may be connected to it, and a line has one at a time; stop that one first."
        return ""

    def _lose(self, error: Exception | None) -> None:
        with self._changed:
            log.warning(
                "the board on %s is gone: %s", self.url, "its port has closed" if error else "it does not answer"
            )
            self._disconnect()
            self.session.closed(time.monotonic())
            self._changed.notify_all()

    def _disconnect(self) -> None:
        if self._port is not None:
            with contextlib.suppress(OSError):
                self._port.close()
            self._port = None

    def _write(self) -> None:
        """With the lock held: send what the session has to say. A port that is gone is noticed by the reader."""
        data = self.session.to_send()
        if data and self._port is not None:
            with contextlib.suppress(OSError):
                self._port.write(data)

    def _why(self, wait_s: float) -> str:
        reader, refusal = self.session.reader, self.session.refusal
        if refusal:
            return refusal
        if self.session.phase is Phase.CLOSED:
            return "the port was closed from the other end; check what is connected there."
        if not reader.received:
            cable = (
                "that no other program (a flash, a bridge, a chat) is connected to it, since a line has one at a time"
                if "://" in self.url
                else f"the cable and --baud {self.baud}"
            )
            return (
                f"nothing answers within {wait_s:g} s. Check {cable}, that the firmware speaks "
                "docs/reference/serial-protocol.md, and reset the board."
            )
        return (
            f"{reader.received} bytes came in {wait_s:g} s, and none of them is a frame of stonechat's serial "
            f"protocol; the last are {reader.sample[-SAMPLE_BYTES:]!r}. Check --baud {self.baud}, and that this is "
            "the port of a board with stonechat's firmware."
        )


def _reason(error: Exception) -> str:
    import os

    number = getattr(error, "errno", None)
    if isinstance(error, socket.gaierror):
        return str(error.strerror)
    if number:
        return os.strerror(number)
    if "configure port" in str(error):
        return "it is no serial port"
    return re.sub(r"^could not open port \S+: (\[Errno \d+\] )?", "", str(error), flags=re.IGNORECASE).rstrip(".")


def _known_ports() -> str:
    from serial.tools.list_ports import comports

    names = sorted(port.device for port in comports())
    return f"The ports here are {', '.join(names)}." if names else "There is no serial port on this machine."


def _facts(hello: Hello | None) -> str:
    if hello is None:
        return ""
    return f"{hello.board or 'unnamed'}, firmware {hello.firmware or 'unknown'}, model {hello.name or 'unnamed'}"
