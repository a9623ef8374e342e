"""A relay before a real broker that may hold back, or change, the packets that the broker sends (tests only)."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

__all__ = ["CONNACK", "PUBACK", "relay"]

CONNACK, PUBACK = 2, 4  # MQTT 5, section 2.1.2


@contextlib.contextmanager
def relay(port: int, change: Callable[[int, bytes], bytes]) -> Iterator[int]:
    """The port of a relay to the broker at `port`.

    Args:
        change: called with the type of each packet of the broker and the whole packet; what it returns travels on. It
            may block, and then what follows waits too.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server, port, change), daemon=True).start()
        yield server.getsockname()[1]
        with contextlib.suppress(OSError):  # it wakes `accept`
            server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, port: int, change: Callable[[int, bytes], bytes]) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            broker = socket.create_connection(("127.0.0.1", port))
            threading.Thread(target=_pass_on, args=(client, broker), daemon=True).start()
            threading.Thread(target=_read_packets, args=(broker, client, change), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    _end(target)


def _read_packets(source: socket.socket, target: socket.socket, change: Callable[[int, bytes], bytes]) -> None:
    file = source.makefile("rb")
    with contextlib.suppress(OSError):
        while head := file.read(1):
            length, shift, raw = 0, 0, b""
            while not raw or raw[-1] & 0x80:  # MQTT 5, section 1.5.5
                raw += file.read(1)
                length |= (raw[-1] & 0x7F) << shift
                shift += 7
            target.sendall(change(head[0] >> 4, head + raw + file.read(length)))
    _end(target)


def _end(peer: socket.socket) -> None:
    with contextlib.suppress(OSError):
        peer.shutdown(socket.SHUT_RDWR)
