"""The board's side of docs/reference/serial-protocol.md, as a firmware would do it: fixed buffers, no timers, no
retransmission.

`Board` answers frames and lets its engine take one step at a time in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from device_runtime.bridge.frames import FrameReader, frame
from device_runtime.bridge.messages import (
    TOKEN_BYTES,
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
from device_runtime.errors import EmulatedFaultError

__all__ = ["Board", "Engine"]

PIECE_BYTES = 64  # of an answer in one frame
TEXT_BYTES = 8192  # of a prompt in text


class Engine(Protocol):
    """What runs the model, one step at a time."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    def start(self, prompt: bytes, start: Start) -> None:
        """Begin an answer.

        Raises:
            EmulatedFaultError: the prompt cannot be taken.
        """

    def step(self) -> tuple[bytes, Finish | None]:
        """Take in some of the prompt, or give the next bytes of the answer and whether it ends with them."""


class Board:
    """A board with an engine. Give it bytes with `receive`, and time with `step`; both return what to send."""

    def __init__(self, engine: Engine, hello: Hello, clock: Callable[[], float] = time.monotonic) -> None:
        """`hello` is what it says of itself; `hello.newest` is the latest version that it speaks."""
        self.hello, self.temperature = replace(hello, version=1), 415
        self._engine, self._clock = engine, clock
        self._booted_s = clock()
        self._reader = FrameReader()
        self._start: Start | None = None
        self._prompt, self._answer = bytearray(), bytearray()
        self._work = Work.IDLE
        self._sent = 0  # bytes of the answer
        self._steps = 0  # of the engine, since the start
        self._done: Done | None = None
        self._began_s = self._first_s = 0.0
        self._out = bytearray()

    def boot(self) -> bytes:
        """What it sends when it starts."""
        self._send(self.hello)
        return self._flushed()

    def receive(self, data: bytes) -> bytes:
        """Answer the frames in `data`."""
        for body in self._reader.push(data):
            try:
                message = parse(body)
            except MessageError as error:
                self._send(Fault(0, FaultCode.MALFORMED, str(error)))
                continue
            self._handle(message)
        return self._flushed()

    @property
    def working(self) -> bool:
        """Whether `step` has something to do."""
        return self._work in (Work.PREFILL, Work.ANSWER)

    def step(self) -> bytes:
        """One step of the engine."""
        if not self.working or self._start is None:
            return b""
        self._steps = (self._steps + 1) % 2**32
        try:
            data, finish = self._engine.step()
        except EmulatedFaultError as error:
            self._fail(error)
            return self._flushed()
        if (data or finish is not None) and self._work is Work.PREFILL:
            self._work, self._first_s = Work.ANSWER, self._clock()
        self._answer += data
        if finish is not None:
            self._finish(finish)
        self._send_answer()
        return self._flushed()

    def _handle(self, message: Message) -> None:
        known = self._start is not None and getattr(message, "request", None) == self._start.request
        match message:
            case Greet():
                self.hello = replace(self.hello, version=min(message.version, self.hello.newest))
                self._send(self.hello)
            case Ping():
                self._send_status()
            case Start():
                if not known:
                    self._begin(message)
                if self._start is not None:
                    self._send(Taken(message.request, len(self._prompt)))
            case Prompt() | Resume() | Cancel() if not known:
                self._send(Fault(message.request, FaultCode.UNKNOWN_REQUEST))
            case Prompt():
                self._take(message)
            case Resume():
                self._sent = min(message.offset, len(self._answer))
                if not self._send_answer():
                    self._send_status()
            case Cancel():
                if self._work is not Work.DONE:
                    self._finish(Finish.CANCELLED)
                self._send_answer()
            case _:
                self._send(Fault(0, FaultCode.UNSUPPORTED, f"message {message.TYPE:#04x}"))

    def _begin(self, start: Start) -> None:
        self._start, self._work, self._done, self._sent = start, Work.PROMPT, None, 0
        self._prompt.clear()
        self._answer.clear()
        most = TEXT_BYTES if self.hello.capabilities & Capability.TEXT else TOKEN_BYTES * (self.hello.context - 1)
        if not 0 < start.prompt_bytes <= most:
            self._fail(EmulatedFaultError(FaultCode.TOO_LONG, f"a prompt has from 1 to {most} bytes here"))

    def _take(self, part: Prompt) -> None:
        assert self._start is not None
        if self._work is Work.PROMPT and part.offset == len(self._prompt):
            self._prompt += part.data[: self._start.prompt_bytes - len(self._prompt)]
            if len(self._prompt) == self._start.prompt_bytes:
                self._work, self._began_s = Work.PREFILL, self._clock()
                try:
                    self._check(self._start)
                    self._engine.start(bytes(self._prompt), self._start)
                except EmulatedFaultError as error:
                    self._fail(error)
                    return
        self._send(Taken(part.request, len(self._prompt)))

    def _check(self, start: Start) -> None:
        if start.schema and start.schema not in self.hello.schemas:
            raise EmulatedFaultError(FaultCode.UNSUPPORTED, "no such schema here")
        if start.temperature > 0 and not self.hello.capabilities & Capability.SAMPLING:
            raise EmulatedFaultError(FaultCode.UNSUPPORTED, "answers are greedy here")

    def _finish(self, finish: Finish) -> None:
        assert self._start is not None
        answering = self._work is Work.ANSWER
        engine, now_s = self._engine, self._clock()
        counts = (engine.prompt_tokens, engine.cached_tokens, engine.completion_tokens) if answering else (0, 0, 0)
        self._done = Done(
            self._start.request, len(self._answer), finish, *counts,
            first_ms=round((self._first_s - self._began_s) * 1000) if answering else 0,
            decode_ms=round((now_s - self._first_s) * 1000) if answering else 0,
        )  # fmt: skip
        self._work = Work.DONE

    def _fail(self, error: EmulatedFaultError) -> None:
        assert self._start is not None
        self._send(Fault(self._start.request, FaultCode(error.fault), error.reason))
        self._start, self._work = None, Work.IDLE

    def _send_answer(self) -> bool:
        """Send what has not been sent; returns whether there was anything."""
        assert self._start is not None
        before = len(self._out)
        while self._sent < len(self._answer):
            data = bytes(self._answer[self._sent : self._sent + PIECE_BYTES])
            self._send(Piece(self._start.request, self._sent, data))
            self._sent += len(data)
        if self._done is not None:
            self._send(self._done)
        return len(self._out) > before

    def _send_status(self) -> None:
        request = self._start.request if self._start else 0
        uptime_ms = round((self._clock() - self._booted_s) * 1000) % 2**32
        self._send(Status(request, self._work, len(self._answer), uptime_ms, self.temperature, self._steps))

    def _send(self, message: Message) -> None:
        # a Hello says how new the board is whatever the bridge speaks, unless the board is of the first version
        version = self.hello.newest if isinstance(message, Hello) else self.hello.version
        self._out += frame(message.pack(version))

    def _flushed(self) -> bytes:
        data = bytes(self._out)
        self._out.clear()
        return data
