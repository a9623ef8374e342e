"""The bridge's side of docs/reference/serial-protocol.md, without a port and without a clock.

`Session` is given what has arrived and what time it is; it says what to send and what has happened. Only this side has
timers. It finds the board, keeps an eye on it, and hands its messages to the one request that may be under way.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from enum import Enum

from device_runtime.bridge.exchange import Exchange, prompt_room
from device_runtime.bridge.frames import FrameReader, frame
from device_runtime.bridge.messages import (
    LEAST_BODY,
    LEAST_BODY_2,
    VERSION,
    Capability,
    Greet,
    Hello,
    Message,
    MessageError,
    Ping,
    Status,
    parse,
)
from device_runtime.bridge.request import Ask, Event
from device_runtime.bridge.timing import Timing
from device_runtime.errors import UnavailableError

__all__ = ["Phase", "Session"]

CLOCK_SLACK_S = 60.0  # that a board's uptime may be ahead of ours before it counts as having gone back


class Phase(Enum):
    """Where the link stands."""

    CLOSED = "closed"  # the port is not open
    GREETING = "greeting"  # open; the board has not said who it is
    UP = "up"
    SILENT = "silent"  # open, but the board has stopped answering


class Session:
    """One board, and at most one request to it."""

    def __init__(
        self,
        baud: int = 115_200,
        timing: Timing | None = None,
        number: Callable[[], int] = lambda: secrets.randbelow(2**32 - 1) + 1,
    ) -> None:
        """`number` gives requests their numbers."""
        self.timing = timing or Timing()
        self.phase = Phase.CLOSED
        self.reader = FrameReader()
        self.hello: Hello | None = None  # the last; stays when the link is lost
        self.status: Status | None = None
        self._status_s = 0.0  # when it came
        self.refusal = ""  # why the board cannot be talked to
        self.resets = 0  # of the board: its uptime went back
        self.unreadable = 0  # frames that were no messages
        self._byte_s, self._number = 10 / baud, number
        self._exchange: Exchange | None = None
        self._events: deque[Event] = deque()
        self._out = bytearray()
        self._heard_s = self._asked_s = self._down_s = float("-inf")

    # what the port's owner calls

    def opened(self, now_s: float) -> None:
        """The port is open."""
        self.phase, self._heard_s = Phase.GREETING, now_s
        self.reader.reset()
        self.refusal = ""
        self._send(Greet(), now_s)

    def closed(self, now_s: float) -> None:
        """The port is gone."""
        if self.phase is Phase.UP:
            self._down_s = now_s
        self.phase = Phase.CLOSED
        self._out.clear()

    def receive(self, data: bytes, now_s: float) -> None:
        """Bytes have come."""
        for body in self.reader.push(data):
            try:
                message = parse(body)
            except MessageError:
                self.unreadable += 1
                continue
            self._heard_s = now_s
            self._handle(message, now_s)

    def tick(self, now_s: float) -> None:
        """Time has passed."""
        lost_after_s = self.timing.lost_after_s(self.hello)
        if self.phase is Phase.GREETING and now_s - self._asked_s >= self.timing.greet_s:
            self._send(Greet(), now_s)
        if self.phase is Phase.UP and now_s - self._heard_s > lost_after_s:
            self.phase, self._down_s = Phase.SILENT, now_s
        exchange = self._running
        if exchange is None:
            idle_s = now_s - max(self._heard_s, self._asked_s)
            if self.phase is Phase.UP and idle_s >= min(self.timing.ping_s, lost_after_s / 3):
                self._send(Ping(), now_s)
        elif self.phase is Phase.UP:
            exchange.tick(now_s)
        else:
            exchange.tick_away(now_s, now_s - self._down_s, self.trouble)

    def to_send(self) -> bytes:
        """What is to be written to the port now."""
        data = bytes(self._out)
        self._out.clear()
        return data

    # what the model calls

    def ask(self, ask: Ask, now_s: float) -> None:
        """Begin a request; one that was under way is forgotten.

        Raises:
            UnavailableError: the board is not there.
        """
        if self.phase is not Phase.UP or self.hello is None:
            raise UnavailableError(self.trouble)
        self._events.clear()
        self._exchange = Exchange(
            ask, self.hello, self.timing, self._byte_s, self._number, self._send, self._events.append
        )  # fmt: skip
        self._exchange.begin(now_s)

    def cancel(self, now_s: float) -> None:
        """Stop; the answer ends with what has come."""
        exchange = self._running
        if exchange is not None and exchange.cancel(now_s):
            if self.phase is Phase.UP and self.hello is not None:
                exchange.resume(self.hello, now_s)
            else:
                self.tick(now_s)

    def next_event(self) -> Event | None:
        """What has happened to the request."""
        return self._events.popleft() if self._events else None

    @property
    def version(self) -> int:
        """Of the protocol, that the board speaks; ours until it has said so."""
        return self.hello.version if self.hello is not None else VERSION

    @property
    def trouble(self) -> str:
        """Why the board cannot answer."""
        if self.refusal:
            return self.refusal
        if self.phase is Phase.CLOSED:
            return "the board's serial port is gone; plug it in again."
        return "the board does not answer on its serial port; reset it, and check its cable."

    @property
    def progress(self) -> object:
        """Changes as the board gets on with a request; not when it only says that it is still at it."""
        return self._exchange, self._exchange.progress if self._exchange is not None else 0

    # inside

    @property
    def _running(self) -> Exchange | None:
        return self._exchange if self._exchange is not None and not self._exchange.over else None

    def _handle(self, message: Message, now_s: float) -> None:
        match message:
            case Hello():
                self._meet(message, now_s)
            case Status():
                if self.status is not None:
                    counted_s = (message.uptime_ms - self.status.uptime_ms) % 2**32 / 1000  # it wraps after 50 days
                    self.resets += counted_s > 2 * (now_s - self._status_s) + CLOCK_SLACK_S
                self.status, self._status_s = message, now_s
        if self.phase is Phase.UP and (exchange := self._running) is not None:
            exchange.receive(message, now_s)

    def _meet(self, hello: Hello, now_s: float) -> None:
        least = LEAST_BODY if hello.version == 1 else LEAST_BODY_2
        if not 1 <= hello.version <= VERSION:
            self._refuse(
                f"the board speaks version {hello.version} of the serial protocol, and this stonechat {VERSION}; "
                "bring the older of the two up to date."
            )
        elif hello.version < min(hello.newest, VERSION):  # nobody had asked for this one: it has just started
            self._send(Greet(), now_s)
        elif prompt_room(hello) < (
            least := LEAST_BODY if hello.version == 1 else LEAST_BODY_2
        ) or not hello.capabilities & (Capability.TOKENS | Capability.TEXT):
            self._refuse(
                f"the board takes neither tokens nor text in bodies of {hello.largest_body} bytes with a buffer of "
                f"{hello.window}; it needs {least} for a request, and room for its frame: "
                "docs/reference/serial-protocol.md."
            )
        else:
            self.hello, self.phase, self.refusal = hello, Phase.UP, ""
            if (exchange := self._running) is not None:
                exchange.resume(hello, now_s)

    def _refuse(self, why: str) -> None:
        self.refusal, self.phase = why, Phase.GREETING

    def _send(self, message: Message, now_s: float) -> None:
        self._asked_s = now_s
        self._out += frame(message.pack(self.version))
