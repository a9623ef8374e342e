"""A serial line over TCP, as QEMU and serial servers give it.

pyserial's own `socket://` says of waiting bytes only that there are some, so that who asks for all that wait gets them
one by one, at three system calls each. This one gives what is there.
"""

from __future__ import annotations

import select
import socket
from urllib.parse import urlsplit

__all__ = ["TcpPort"]

READ_BYTES = 65536
CONNECT_S = 5.0  # and that a write may take


class TcpPort:
    """As much of a serial port as the bridge and smpclient's transport use."""

    out_waiting = 0  # the kernel has what was sent

    def __init__(self, port: str = "") -> None:
        self.port = port  # socket://host:port
        self._line: socket.socket | None = None

    def open(self) -> None:
        """Connect.

        Raises:
            OSError: nobody listens there.
            ValueError: the port's name is none.
        """
        where = urlsplit(self.port)
        if where.port is None:
            raise ValueError("the TCP port is missing")
        self._line = socket.create_connection((where.hostname or "", where.port), timeout=CONNECT_S)
        self._line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """Leave the line to others."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def read(self, wait_s: float) -> bytes:
        """What has come, or comes first within `wait_s`; empty when nothing does.

        Raises:
            OSError: it was closed from the other end.
        """
        line = self._connected()
        if not select.select([line], [], [], wait_s)[0]:  # its own timeout is that of another thread's writing
            return b""
        data = line.recv(READ_BYTES)
        if not data:
            raise ConnectionResetError(f"{self.port} was closed from the other end")
        return data

    def write(self, data: bytes) -> int:
        """Send all of it."""
        self._connected().sendall(data)
        return len(data)

    def _connected(self) -> socket.socket:
        if self._line is None:
            raise OSError(f"{self.port} is not open")
        return self._line
