"""Asking a pool: one request, as many workers as it takes.

A worker that takes a request says so at once, by name. From then on its state is watched. The request is asked again,
in a new session with new correlation data, when

- nobody has taken it after a while (it may lie in the queue of a worker whose power is cut),
- the worker that took it is lost, stopped, or has restarted,
- the worker is too busy (then after a pause: the broker gives it to the next one), or
- our own connection was gone, and an answer with it.

A session that was given up is taken back from the worker that has it or turns out to have it later, and nothing of it
is received any more, so answers are never mixed. What was said already stays said: another worker's answer goes on
where it begins with the same text, as it does for one model and one seed, and otherwise the asking ends with an
error.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from device_runtime.client.exchange import GRACE_S, Exchange, Session, Signal, to_error
from device_runtime.errors import StonechatError, UnreachableError
from device_runtime.mqtt.messages import Accepted, DeviceState, ErrorReply, Final, Piece, Request, State, parse_reply
from device_runtime.mqtt.packets import Incoming
from device_runtime.mqtt.strict_json import MessageError
from device_runtime.records.printable import counted

__all__ = ["PoolExchange"]

SILENCE_S = 2.0  # until a request that nobody has taken is asked again; doubles each time,
LONGEST_SILENCE_S = 8.0  # up to this
NOBODY_S = 6.0  # of silence, from a pool of which this connection knows nothing: it is not there
FIRST_PAUSE_S = 0.05  # after a worker was busy; doubles each time, up to what the worker has said,
LONGEST_PAUSE_S = 2.0  # and up to this


@dataclass(eq=False)
class _AskAgain(Exception):
    reason: str | None  # None: the deadline came before there was one
    pause_s: float = 0.0


class PoolExchange:
    """The course of one answer of a pool."""

    final: Final  # set when `run` has ended

    def __init__(
        self,
        exchange: Exchange,
        pool: str,
        request: Request,
        timeout_s: float,
        on_wait: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`on_wait` gets a sentence each time that the answer does not come yet: what is waited for."""
        self._exchange, self._pool, self._timeout_s, self._on_wait = exchange, pool, timeout_s, on_wait
        if request.temperature > 0 and request.seed is None:
            request = replace(request, seed=secrets.randbelow(2**31))  # so that a second worker says the same
        self._request = replace(request, accept=True)
        self._said = ""
        self._asked = self._busy = self._silent = 0
        self._session: Session | None = None
        self._worker: Accepted | None = None
        self._cancelled = threading.Event()

    @property
    def device(self) -> str | None:
        """Who answers, as far as it is known."""
        return self._worker.device if self._worker else None

    def cancel(self) -> None:
        """Ask the worker to stop; before there is one, stop asking."""
        self._cancelled.set()
        session, worker = self._session, self._worker
        if session is not None and worker is not None:
            self._exchange.cancel(session, worker.device)
        if session is not None:
            session.heard.put(Signal.WAKE)

    def run(self) -> Iterator[str]:
        """The pieces of the answer."""
        started_s = time.monotonic()
        end_s = started_s + self._timeout_s
        reason = "nobody took it"
        while not self._cancelled.is_set():
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise UnreachableError(
                    f"pool {self._pool!r} gave no answer within {self._timeout_s:g} s; it was asked "
                    f"{counted(self._asked, 'time')}, and at last {reason}. Try again, or allow more with --timeout."
                )
            if not self._exchange.heard_anyone and time.monotonic() - started_s > NOBODY_S:
                raise UnreachableError(
                    f"nobody in the pool {self._pool!r} takes requests from the broker at {self._exchange.broker}. "
                    f"Check the pool's name, or start a device that has `pool: {self._pool}` in its fleet file."
                )
            self._asked += 1
            self._worker = None
            request = replace(self._request, deadline_ms=max(1, round(left_s * 1000)))
            session = self._session = self._exchange.send(request, left_s)
            try:
                if self._cancelled.is_set():  # `cancel` may have seen the session before
                    raise _AskAgain("it was cancelled")
                yield from self._hear(session, end_s)
                self._exchange.forget(session)
                return
            except _AskAgain as again:
                reason = again.reason or reason
                self._give_up(session)
                if not self._cancelled.is_set() and end_s > time.monotonic():
                    left_s = end_s - time.monotonic()
                    self._on_wait(f"{reason}; asking pool {self._pool!r} again, for {left_s:.0f} s more")
                self._cancelled.wait(min(again.pause_s, max(0.0, end_s - time.monotonic())))
            except BaseException:
                self._give_up(session)
                raise
        self.final = Final(0, self._said, "cancelled")

    def _give_up(self, session: Session) -> None:
        self._exchange.abandon(session)
        if self._worker is not None:
            self._exchange.cancel(session, self._worker.device)  # it may live, and only its connection be gone

    def _hear(self, session: Session, end_s: float) -> Iterator[str]:
        early: dict[int, str] = {}  # pieces whose forerunners are missing
        text, due = "", 0
        taken = False
        silence_s = min(SILENCE_S * 2**self._silent, LONGEST_SILENCE_S)
        silent_until_s = time.monotonic() + silence_s
        while True:
            message = session.next(end_s + GRACE_S if taken else min(silent_until_s, end_s))
            if self._cancelled.is_set() and self._worker is None and not isinstance(message, Incoming):
                raise _AskAgain("it was cancelled")  # if an acceptance is on its way, the session is taken back then
            if message is None and taken:
                raise _AskAgain(f"{self._name()} fell silent")
            if message is None:
                self._silent += 1
                raise _AskAgain(f"nobody took it within {silence_s:g} s" if silent_until_s <= end_s else None)
            if message is Signal.RECONNECTED:
                raise _AskAgain("the connection to the broker was gone")
            if isinstance(message, Signal):
                if self._cancelled.is_set():  # a worker that hangs says nothing
                    end_s = min(end_s, time.monotonic())
                continue
            if reported := self._exchange.state_in(message):
                if self._worker is not None and reported[0] == self._worker.device:
                    _check_alive(self._worker, reported[1])
                continue
            try:
                reply = parse_reply(message.payload)
            except MessageError as error:
                raise StonechatError(f"pool {self._pool!r} sent an answer that cannot be read: {error}") from None
            if self._worker is not None and reply.device not in (None, self._worker.device):
                assert reply.device is not None
                self._exchange.cancel(session, reply.device)  # a broker gave the request to two
                continue
            taken = True
            match reply:
                case Accepted():
                    self._worker = reply
                    if self._cancelled.is_set():
                        self._exchange.cancel(session, reply.device)
                    _check_alive(reply, self._exchange.watch(reply.device))
                case ErrorReply(code="busy" | "unavailable"):
                    pause_s = min(FIRST_PAUSE_S * 2**self._busy, (reply.retry_after_ms or 0) / 1000, LONGEST_PAUSE_S)
                    self._busy = min(self._busy + 1, 10)
                    who = f"device {reply.device!r}" if reply.device else "a device"
                    raise _AskAgain(f"{who} was {reply.code}", pause_s * random.uniform(0.5, 1.0))
                case ErrorReply():
                    raise to_error(f"device {reply.device!r} of pool {self._pool!r}", reply)
                case Piece():
                    early[reply.seq] = reply.text
                    while due in early:
                        text, due = text + early.pop(due), due + 1
                    if more := self._more(text, cut=True):
                        yield more
                case Final(finish="cancelled") if not self._cancelled.is_set():
                    raise _AskAgain(f"{self._name()} was stopped")
                case Final():
                    more = self._more(reply.text, cut=reply.finish in ("cancelled", "deadline"))
                    self.final = replace(reply, text=self._said)
                    if more:
                        yield more
                    return

    def _more(self, text: str, *, cut: bool) -> str:
        """What `text` says beyond what was said already; `cut` text may say less."""
        if cut and self._said.startswith(text):
            return ""
        if not text.startswith(self._said):
            raise UnreachableError(
                f"the first worker of pool {self._pool!r} vanished after {counted(len(self._said), 'character')}, and "
                f"{self._name()} answers differently, so the answer cannot go on. Ask again; without streaming, "
                "nothing of a lost answer is seen."
            )
        more = text[len(self._said) :]
        self._said = text
        return more

    def _name(self) -> str:
        return f"device {self._worker.device!r}" if self._worker else "another worker"


def _check_alive(worker: Accepted, state: State | None) -> None:
    """Raises `_AskAgain` when a device has forgotten what it took."""
    if state is None or state.boot < worker.boot:
        return  # not known yet, or from before
    if state.boot > worker.boot:
        raise _AskAgain(f"device {worker.device!r} has restarted")
    if state.state in (DeviceState.LOST, DeviceState.DISCONNECTED):
        raise _AskAgain(f"device {worker.device!r} was {state.state.value}")
