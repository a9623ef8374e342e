"""What `stonechat serve` reports to the service manager that started it: systemd, or another that speaks its protocol.

The protocol is one datagram of NAME=VALUE lines to the Unix socket in $NOTIFY_SOCKET; see sd_notify(3) and
sd_watchdog_enabled(3). Without that variable every method does nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping

__all__ = ["CONNECTING", "Heartbeat", "ServiceManager"]

CONNECTING = "connecting to"  # begins the status of a service that waits for its broker; `stonechat deploy` reads it

log = logging.getLogger("stonechat.serve")


class Heartbeat:
    """Whether a thread that has work gets on with it. A thread that waits for work is well."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last_s: float | None = None  # the last sign of life; None while there is nothing to do
        self._seen: object = None

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Around one piece of work."""
        self.beat()
        try:
            yield
        finally:
            with self._lock:
                self._last_s = None

    def beat(self) -> None:
        """The work gets on."""
        with self._lock:
            self._last_s = self._clock()

    def observe(self, progress: object) -> None:
        """From outside: `progress` is anything that changes as the work gets on."""
        with self._lock:
            if progress != self._seen:
                self._seen = progress
                if self._last_s is not None:
                    self._last_s = self._clock()

    @property
    def stalled_s(self) -> float:
        """Since the last sign of life; 0 while there is nothing to do."""
        with self._lock:
            return 0.0 if self._last_s is None else self._clock() - self._last_s


class ServiceManager:
    """The socket of the service manager, if there is one. May be used from any thread."""

    def __init__(
        self, address: str | None = None, watchdog_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`watchdog_s` is how long the manager waits for a sign of life before it restarts the service."""
        self._address, self.watchdog_s, self._clock = address, watchdog_s, clock
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        self._status: str | None = None
        self._next_s = 0.0

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> ServiceManager:
        """Read the variables and take them away, so that no child process speaks for us."""
        address = environment.pop("NOTIFY_SOCKET", None)
        usec, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        for_us = not pid or pid == str(os.getpid())
        watchdog_s = int(usec) / 1e6 if usec.isascii() and usec.isdecimal() and int(usec) and for_us else None
        return cls(address, watchdog_s)

    def starting(self, within_s: float) -> None:
        """The start-up takes so long from now on, whatever the manager's own limit is."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(within_s * 1e6)}")

    def ready(self) -> None:
        """The start-up is complete."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; nothing is sent while it stays the same."""
        if text != self._status:
            self._status = text
            self._send("STATUS=" + text.replace("\n", " "))

    def keep_alive(self, stalled_s: float) -> None:
        """Call this often: it says that we live twice per interval, unless something is stalled for half of one."""
        if self.watchdog_s is None or stalled_s > self.watchdog_s / 2:
            return
        now_s = self._clock()
        if now_s >= self._next_s:
            self._next_s = now_s + self.watchdog_s / 2
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self._socket is None or self._address is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address  # abstract
        try:
            self._socket.sendto(message.encode(), address)
        except OSError as error:  # the service goes on: to be restarted for this would be worse
            log.warning("the service manager at %s cannot be reached: %s", self._address, error.strerror)
