"""The bridge's side of docs/serial-protocol.md, without a port and without a clock.

`Session` is told what has arrived and what time it is; it says what to send and what has happened. Only this side has
timers. What it sends again is harmless: a request has a number, and its prompt and its answer have offsets.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from device_runtime.errors import StonechatError, UnavailableError
from device_runtime.serial.frames import LARGEST_BODY, OVERHEAD, FrameReader, frame
from device_runtime.serial.messages import (
    TOKEN_BYTES,
    VERSION,
    Cancel,
    Capability,
    Done,
    Fault,
    FaultCode,
    Finish,
    Greet,
    Hello,
    Message,
    MessageError,
    Piece,
    Ping,
    Prompt,
    Resume,
    Start,
    Status,
    Taken,
    Work,
    parse,
)
from device_runtime.serial.request import Ask, Chunk, Ended, Event, Failed, Request, Stage

__all__ = ["Phase", "Session", "Timing"]

SPARE_BYTES = 64  # of the board's buffer, for a Resume or a Cancel behind a part of the prompt
PART_HEADER = 9  # bytes of a Prompt before its data
MOST_TEXT = 65_536  # bytes of an answer in text


class Phase(Enum):
    """Where the link stands."""

    CLOSED = "closed"  # the port is not open
    GREETING = "greeting"  # open; the board has not said who it is
    UP = "up"
    SILENT = "silent"  # open, but the board has stopped answering


@dataclass(frozen=True)
class Timing:
    """When to ask again, and when to give up. In seconds."""

    greet_s: float = 0.5  # from one Greet to the next
    ping_s: float = 2.0  # from the last word of an idle board to the next Ping
    reply_s: float = 0.25  # for an answer, on top of the board's own deaf time and the time on the line
    lost_s: float = 4.0  # without a word, asked again and again: the board is gone
    grace_s: float = 20.0  # that a request waits for a lost board to come back
    tries: int = 12  # of one message, while the board answers others


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
        self.refusal = ""  # why the board cannot be talked to
        self.resets = 0  # of the board: its uptime went back
        self.unreadable = 0  # frames that were no messages
        self._byte_s, self._number = 10 / baud, number
        self._request: Request | None = None
        self._events: deque[Event] = deque()
        self._out = bytearray()
        self._heard_s = self._asked_s = self._down_s = float("-inf")

    # what the port's owner calls

    def opened(self, now_s: float) -> None:
        """The port is open."""
        self.phase, self._heard_s = Phase.GREETING, now_s
        self.reader.reset()
        self.refusal = ""
        self._greet(now_s)

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
        request = self._request
        if self.phase is Phase.GREETING and now_s - self._asked_s >= self.timing.greet_s:
            self._greet(now_s)
        if self.phase is Phase.UP and now_s - self._heard_s > self._lost_s:
            self.phase, self._down_s = Phase.SILENT, now_s
        if request is None:
            idle_s = now_s - max(self._heard_s, self._asked_s)
            if self.phase is Phase.UP and idle_s >= min(self.timing.ping_s, self._lost_s / 3):
                self._send(Ping(), now_s)
            return
        if request.cancelled_s is not None:
            if self.phase is not Phase.UP or now_s - request.cancelled_s > self._lost_s / 2:
                self._end(Ended(Finish.CANCELLED, completion_tokens=self._tokens(request)))
                return
        elif self.phase is not Phase.UP and now_s - self._down_s > self.timing.grace_s:
            self._end(Failed(UnavailableError(self.trouble)))
            return
        if self.phase is Phase.UP and now_s >= request.due_s:
            request.tries += 1
            if request.tries > self.timing.tries:
                self._end(
                    Failed(
                        StonechatError(f"the board answers, but not to this request ({request.stage.value}); reset it.")
                    )
                )
            else:
                self._ask_again(request, now_s)

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
        if self.phase is not Phase.UP:
            raise UnavailableError(self.trouble)
        self._events.clear()
        self._request = Request(ask, self._number(), prompt=ask.prompt)
        self._ask_again(self._request, now_s)

    def cancel(self, now_s: float) -> None:
        """Stop; the answer ends with what has come."""
        request = self._request
        if request is not None and request.cancelled_s is None:
            request.cancelled_s, request.tries = now_s, 0
            if self.phase is Phase.UP:
                self._ask_again(request, now_s)
            else:
                self.tick(now_s)

    def next_event(self) -> Event | None:
        """What has happened to the request."""
        return self._events.popleft() if self._events else None

    @property
    def trouble(self) -> str:
        """Why the board cannot answer."""
        if self.refusal:
            return self.refusal
        if self.phase is Phase.CLOSED:
            return "the board's serial port is gone; plug it in again."
        return "the board does not answer on its serial port; reset it, and check its cable."

    # inside

    @property
    def _deaf_s(self) -> float:
        return self.hello.deaf_ms / 1000 if self.hello else 0.0

    @property
    def _lost_s(self) -> float:
        return self.timing.lost_s + 4 * self._deaf_s

    def _handle(self, message: Message, now_s: float) -> None:
        match message:
            case Hello():
                self._meet(message, now_s)
            case Status():
                if self.status is not None and message.uptime_ms < self.status.uptime_ms:
                    self.resets += 1
                self.status = message
        request = self._request
        if self.phase is not Phase.UP or request is None:
            return
        match message:
            case Taken() if message.request == request.number:
                self._taken(request, message, now_s)
            case Piece() if message.request == request.number:
                self._piece(request, message, now_s)
            case Done() if message.request == request.number:
                self._done(request, message, now_s)
            case Fault() if message.request == request.number:
                self._fault(request, message, now_s)
            case Status() if request.stage is Stage.ANSWER:
                if message.request != request.number or message.work is Work.DONE or message.length > request.offset:
                    self._rewind(request, now_s)
                else:
                    self._wait(request, now_s)

    def _meet(self, hello: Hello, now_s: float) -> None:
        if hello.version != VERSION:
            self.refusal = (
                f"the board speaks version {hello.version} of the serial protocol, and this stonechat {VERSION}; "
                "bring the older of the two up to date."
            )
            self.phase = Phase.GREETING
            return
        room = min(hello.largest_body, hello.window - SPARE_BYTES - OVERHEAD)
        if room < PART_HEADER + TOKEN_BYTES or not hello.capabilities & (Capability.TOKENS | Capability.TEXT):
            self.refusal = (
                f"the board takes neither tokens nor text in frames of {hello.largest_body} bytes "
                f"with a buffer of {hello.window}; see docs/serial-protocol.md."
            )
            self.phase = Phase.GREETING
            return
        self.hello, self.phase, self.refusal = hello, Phase.UP, ""
        if self._request is not None:
            self._request.tries = 0
            self._ask_again(self._request, now_s)

    def _taken(self, request: Request, message: Taken, now_s: float) -> None:
        if request.stage is Stage.ANSWER or message.offset > len(request.prompt):
            return
        if request.stage is Stage.START or message.offset > request.taken:
            request.taken, request.tries = message.offset, 0
            request.stage = Stage.ANSWER if request.taken == len(request.prompt) else Stage.PROMPT
            if request.stage is Stage.PROMPT or request.cancelled_s is not None:
                self._ask_again(request, now_s)
            else:
                self._wait(request, now_s)

    def _piece(self, request: Request, message: Piece, now_s: float) -> None:
        request.stage = Stage.ANSWER  # it would not answer without the whole prompt
        if message.offset > request.offset:
            self._rewind(request, now_s)
            return
        new = message.data[request.offset - message.offset :]
        if not request.ask.text:
            new = new[: len(new) // TOKEN_BYTES * TOKEN_BYTES]
        if not new:
            return
        request.answer += new
        most = MOST_TEXT if request.ask.text else TOKEN_BYTES * (request.ask.max_new or MOST_TEXT)
        if len(request.answer) > most:
            self._end(
                Failed(StonechatError(f"the board answers with more than the {most} bytes it was allowed; reset it."))
            )
            return
        self._events.append(Chunk(new))
        self._wait(request, now_s)

    def _done(self, request: Request, message: Done, now_s: float) -> None:
        request.stage = Stage.ANSWER
        if message.length > request.offset:
            self._rewind(request, now_s)
            return
        if message.length < request.offset:
            self._end(Failed(StonechatError("the board takes back a part of its answer; reset it.")))
            return
        count = message.completion_tokens
        rate = (count - 1) * 1000 / message.decode_ms if count > 1 and message.decode_ms else 0.0
        before = 0 if request.ask.text else request.before // TOKEN_BYTES
        self._end(Ended(message.finish, message.prompt_tokens - before, message.cached_tokens, before + count, rate))

    def _fault(self, request: Request, message: Fault, now_s: float) -> None:
        if message.code is not FaultCode.UNKNOWN_REQUEST:
            why = message.reason or message.code.name.lower().replace("_", " ")
            self._end(Failed(StonechatError(f"the board refuses the request: {why}.")))
            return
        request.resets += 1
        if request.cancelled_s is not None:
            self._end(Ended(Finish.CANCELLED, completion_tokens=self._tokens(request)))
        elif request.ask.text and request.answer:
            self._end(Failed(UnavailableError("the board was reset in the middle of its answer; ask again.")))
        elif request.resets > self.timing.tries:
            self._end(Failed(UnavailableError(f"the board was reset {request.resets} times during one answer.")))
        else:
            self._continue(request, now_s)

    def _continue(self, request: Request, now_s: float) -> None:
        """Ask a board that has forgotten the request for the rest: what it has said becomes a part of the prompt."""
        whole = len(request.answer) // TOKEN_BYTES * TOKEN_BYTES
        del request.answer[whole:]
        if request.ask.max_new and whole == request.ask.max_new * TOKEN_BYTES:
            self._end(Ended(Finish.LENGTH, len(request.ask.prompt) // TOKEN_BYTES, 0, whole // TOKEN_BYTES))
            return
        request.number, request.before = self._number(), whole
        request.prompt = request.ask.prompt + bytes(request.answer)
        request.stage, request.taken, request.tries = Stage.START, 0, 0
        self._ask_again(request, now_s)

    def _ask_again(self, request: Request, now_s: float) -> None:
        """Send what the request waits for an answer to."""
        ask = request.ask
        message: Message
        if request.cancelled_s is not None:
            message = Cancel(request.number)
        elif request.stage is Stage.START:
            drawn = request.before // TOKEN_BYTES
            message = Start(
                request.number, len(request.prompt), max(0, ask.max_new - drawn), drawn, ask.top_k,
                ask.temperature, ask.top_p, ask.seed, len(ask.stop_tokens), ask.stop_tokens,
            )  # fmt: skip
        elif request.stage is Stage.PROMPT:
            assert self.hello is not None
            room = min(self.hello.largest_body, LARGEST_BODY, self.hello.window - SPARE_BYTES - OVERHEAD) - PART_HEADER
            message = Prompt(request.number, request.taken, request.prompt[request.taken : request.taken + room])
        else:
            message = Resume(request.number, request.offset)
        self._send(message, now_s)
        self._wait(request, now_s, len(message.pack()))

    def _rewind(self, request: Request, now_s: float) -> None:
        """Ask for what is missing; once, not for each piece that follows a gap."""
        if request.rewind_at == request.offset and now_s - request.rewind_s < self.timing.reply_s:
            return
        request.rewind_at, request.rewind_s = request.offset, now_s
        self._send(Resume(request.number, request.offset), now_s)
        self._wait(request, now_s, 0)

    def _wait(self, request: Request, now_s: float, sent_bytes: int | None = None) -> None:
        """Note when to ask again: after `sent_bytes`, or (None) after something that has come."""
        if sent_bytes is None:
            request.tries = 0
        line_s = 2 * (LARGEST_BODY if request.stage is Stage.ANSWER else 64 + (sent_bytes or 0)) * self._byte_s
        slower = 2 ** min(request.tries, 3)
        request.due_s = now_s + (self.timing.reply_s + 1.5 * self._deaf_s + line_s) * slower

    def _tokens(self, request: Request) -> int:
        return 0 if request.ask.text else len(request.answer) // TOKEN_BYTES

    def _end(self, event: Ended | Failed) -> None:
        self._request = None
        self._events.append(event)

    def _greet(self, now_s: float) -> None:
        self._send(Greet(), now_s)

    def _send(self, message: Message, now_s: float) -> None:
        self._asked_s = now_s
        self._out += frame(message.pack())
