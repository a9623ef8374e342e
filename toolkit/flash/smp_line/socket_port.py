"""A serial line over TCP for smpclient, whose transport opens device files only."""

from __future__ import annotations

from serial import SerialException

from device_runtime.bridge.tcp_port import TcpPort
from toolkit.flash.smp_line.answers import TolerantTransport

__all__ = ["SocketPort", "SocketTransport"]


class SocketPort(TcpPort):
    """As much of a serial port as smpclient's transport uses."""

    def open(self) -> None:
        """Connect. Raises a `SerialException` where nobody listens."""
        try:
            super().open()
        except (OSError, ValueError, OverflowError) as error:
            raise SerialException(f"{self.port}: {error}") from None

    def reset_input_buffer(self) -> None:
        """Drop what has come."""
        while self.read_all():
            pass

    def read_all(self) -> bytes:
        """What has come; without waiting."""
        try:
            return self.read(0)
        except OSError as error:
            raise SerialException(f"{self.port}: {error}") from None

    def write(self, data: bytes) -> int:
        """Send all of it."""
        try:
            return super().write(data)
        except OSError as error:
            raise SerialException(f"{self.port}: {error}") from None


class SocketTransport(TolerantTransport):
    """smpclient's serial transport over TCP."""

    def __init__(self) -> None:
        super().__init__()
        self._conn = SocketPort()  # type: ignore[misc,assignment]
