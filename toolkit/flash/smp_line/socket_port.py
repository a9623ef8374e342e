"""A serial line over TCP for smpclient, whose transport opens device files only.

pyserial's own `socket://` says of waiting bytes only that there are some, and smpclient asks for all that wait: it
would get them one by one. This one gives what is there.
"""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from serial import SerialException

from toolkit.flash.smp_line.answers import TolerantTransport

__all__ = ["SocketPort", "SocketTransport"]

_READ_BYTES = 65536
_CONNECT_S = 5.0


class SocketPort:
    """As much of a serial port as smpclient's transport uses."""

    out_waiting = 0  # the kernel has what was sent

    def __init__(self) -> None:
        self.port = ""  # socket://host:port
        self._line: socket.socket | None = None

    def open(self) -> None:
        """Connect. Raises a `SerialException` where nobody listens."""
        where = urlsplit(self.port)
        try:
            self._line = socket.create_connection((where.hostname or "", where.port or 0), timeout=_CONNECT_S)
            self._line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except (OSError, ValueError, OverflowError) as error:
            raise SerialException(f"{self.port}: {error}") from None

    def close(self) -> None:
        """Leave the line to others."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def reset_input_buffer(self) -> None:
        """Drop what has come."""
        while self.read_all():
            pass

    def read_all(self) -> bytes:
        """What has come; without waiting."""
        line = self._connected()
        line.setblocking(False)
        try:
            data = line.recv(_READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise SerialException(f"{self.port}: {error}") from None
        if not data:
            raise SerialException(f"{self.port} was closed from the other end")
        return data

    def write(self, data: bytes) -> int:
        """Send all of it."""
        line = self._connected()
        line.settimeout(_CONNECT_S)
        try:
            line.sendall(data)
        except OSError as error:
            raise SerialException(f"{self.port}: {error}") from None
        return len(data)

    def _connected(self) -> socket.socket:
        if self._line is None:
            raise SerialException(f"{self.port} is not open")
        return self._line


class SocketTransport(TolerantTransport):
    """smpclient's serial transport over TCP."""

    def __init__(self) -> None:
        super().__init__()
        self._conn = SocketPort()  # type: ignore[misc,assignment]
