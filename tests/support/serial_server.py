"""A serial port on the network (RFC 2217): pyserial's own server before a port of this machine (tests only)."""

from __future__ import annotations

import contextlib
import socket
import termios
import threading
from collections.abc import Iterator

import serial
from serial import rfc2217

__all__ = ["rfc2217_server"]


class _Port(serial.Serial):
    """A pseudo-terminal has neither modem lines nor parity; a server that is asked for them goes on without."""

    cts = dsr = cd = True
    ri = False

    def _update_dtr_state(self) -> None:
        pass

    def _update_rts_state(self) -> None:
        pass

    def _reconfigure_port(self, force_update: bool = False) -> None:
        with contextlib.suppress(termios.error):
            super()._reconfigure_port(force_update)


class _Bridge:
    """One client at a time."""

    def __init__(self, device: str, listener: socket.socket) -> None:
        self._port = _Port(device, timeout=0.02)
        self._listener = listener
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._port.close()

    def _run(self) -> None:
        self._listener.settimeout(0.05)
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = self._listener.accept()
                with client:
                    self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(0.01)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client = client
        manager = rfc2217.PortManager(self._port, self)
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                data = client.recv(4096)
                if not data:
                    return
                self._port.write(b"".join(manager.filter(data)))
            if self._port.in_waiting:
                self.write(b"".join(manager.escape(self._port.read(self._port.in_waiting))))

    def write(self, data: bytes) -> None:
        """To the client; the port manager calls it, too."""
        with self._lock, contextlib.suppress(OSError):
            self._client.sendall(data)


@contextlib.contextmanager
def rfc2217_server(device: str) -> Iterator[str]:
    """Serves a port of this machine; the URL of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bridge = _Bridge(device, listener)
        try:
            yield f"rfc2217://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            bridge.close()
