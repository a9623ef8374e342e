"""The other end of a serial line: a thread behind a pty that answers as a board would."""

from __future__ import annotations

import os
import select
import socket
import threading
import tty


class Unplugged(Exception):
    """The board went away in the middle."""


class PtyPeer:
    """Runs `serve` in a thread; `port` is what the host opens. A failed assertion of the peer fails the test."""

    def __init__(self) -> None:
        self._master, self._slave = os.openpty()
        tty.setraw(self._master)
        tty.setraw(self._slave)
        self.port = os.ttyname(self._slave)
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def serve(self) -> None:
        """Answer for ever; `read` ends it."""
        raise NotImplementedError

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._stop.set()
        self._thread.join(10)
        for descriptor in (self._master, self._slave):
            if descriptor >= 0:
                os.close(descriptor)
        if self.error is not None and kind is None:
            raise self.error

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes of the host."""
        data = b""
        while len(data) < size:
            data += self.read_some(size - len(data))
        return data

    def read_some(self, size: int = 4096) -> bytes:
        """What has come, at least a byte."""
        while not self._stop.is_set():
            if select.select([self._master], [], [], 0.05)[0]:
                data = os.read(self._master, size)
                if not data:
                    raise Unplugged
                return data
        raise Unplugged

    def write(self, data: bytes) -> None:
        """Send to the host."""
        while data:
            data = data[os.write(self._master, data) :]

    def unplug(self) -> None:
        """Pull the cable: the host's next read fails."""
        for descriptor in (self._slave, self._master):
            os.close(descriptor)
        self._master = self._slave = -1
        raise Unplugged

    def _connect(self) -> None:
        """Be ready for the host."""

    def _run(self) -> None:
        try:
            self._connect()
            self.serve()
        except Unplugged:
            pass
        except BaseException as error:
            self.error = error


class SocketPeer(PtyPeer):
    """The same behind a TCP port, for a host that sets lines a pty does not have (pyserial's socket://)."""

    def __init__(self) -> None:
        super().__init__()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = f"socket://127.0.0.1:{self._listener.getsockname()[1]}"

    def _connect(self) -> None:
        self._listener.settimeout(0.05)
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            os.close(self._master)
            connection.setblocking(True)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._master = connection.detach()
            break

    def __exit__(self, kind, error, trace) -> None:
        super().__exit__(kind, error, trace)
        self._listener.close()
