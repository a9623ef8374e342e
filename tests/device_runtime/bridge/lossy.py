"""A bridge's session and a board's, joined by a line that damages what it carries, under one virtual clock."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

from device_runtime.bridge.messages import VERSION, Capability, Finish, Hello, Start
from device_runtime.bridge.request import Ask, Chunk, Ended, Failed
from device_runtime.bridge.session import Phase, Session
from toolkit.emulate.pty_board import Board

__all__ = ["HELLO", "CountingEngine", "Line", "continuation"]

HELLO = Hello(1, Capability.TOKENS | Capability.SAMPLING, 80, 160, 512, 1000, 0, 50, 0, name="counting", newest=VERSION)
STOP = 999


def continuation(tokens: Sequence[int]) -> int:
    """The token after `tokens`: any function of all of them, so that a lost or doubled token changes the rest."""
    return hash(tuple(tokens)) % 900


class CountingEngine:
    """Answers with `continuation`; ends with a stop token once `length` tokens stand behind the first prompt."""

    def __init__(self, whole: int) -> None:
        self.whole = whole  # tokens of prompt and answer, the stop token not counted
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = 0
        self.started = 0

    def start(self, prompt: bytes, start: Start) -> None:
        self.started += 1
        self._tokens = list(struct.unpack(f"<{len(prompt) // 4}I", prompt))
        self._limit, self._left = start.max_new, 2
        self.prompt_tokens, self.completion_tokens = len(self._tokens), 0
        assert start.stop_tokens == (STOP,)

    def step(self) -> tuple[bytes, Finish | None]:
        if self._left:
            self._left -= 1
            return b"", None
        self.completion_tokens += 1
        if len(self._tokens) == self.whole:
            return b"", Finish.STOP
        self._tokens.append(continuation(self._tokens))
        ended = self.completion_tokens == self._limit
        return struct.pack("<I", self._tokens[-1]), Finish.LENGTH if ended else None


class Line:
    """Runs both sides. `step_s` of virtual time go by in a round, in which the engine takes one step."""

    def __init__(
        self, whole: int, seed: int = 0, *, drop: float = 0.0, damage: float = 0.0, double: float = 0.0,
        resets: Sequence[int] = (), unplugs: Sequence[int] = (), hello: Hello = HELLO,
        session: Session | None = None, engine: Callable[[int], CountingEngine] = CountingEngine,
    ) -> None:  # fmt: skip
        self._random = random.Random(seed)
        self._drop, self._damage, self._double = drop, damage, double
        self._resets, self._unplugs = set(resets), set(unplugs)
        self._whole, self._hello, self._engine = whole, hello, engine
        self.now_s, self.round, self.step_s = 0.0, 0, 0.02
        numbers = iter(range(1, 10_000))
        self.session = session or Session(number=lambda: next(numbers))
        self.starts = 0
        self._boot()
        self.session.opened(self.now_s)

    def _boot(self) -> None:
        self.engine = self._engine(self._whole)
        self.board = Board(self.engine, self._hello, clock=lambda: self.now_s)
        self._carry(b"boot: rst:0x1 (POWERON)\r\n" + self.board.boot())

    def _spoil(self, data: bytes) -> bytes:
        """Lose, double and damage stretches of it."""
        out = bytearray()
        at = 0
        while at < len(data):
            part = data[at : at + self._random.randint(1, 40)]
            at += len(part)
            chance = self._random.random()
            if chance < self._drop:
                continue
            if chance < self._drop + self._double:
                part = part * 2
            elif chance < self._drop + self._double + self._damage:
                spot = self._random.randrange(len(part))
                part = part[:spot] + bytes([part[spot] ^ (1 << self._random.randrange(8))]) + part[spot + 1 :]
            out += part
        return bytes(out)

    def _carry(self, data: bytes) -> None:
        if data and self.session.phase is not Phase.CLOSED:
            self.session.receive(self._spoil(data), self.now_s)

    def once(self) -> None:
        """One round."""
        self.round += 1
        self.now_s += self.step_s
        if self.round in self._resets:
            self.starts += self.engine.started
            self._boot()
        if self.round in self._unplugs:
            self.session.closed(self.now_s)
        elif self.session.phase is Phase.CLOSED and self.round - 20 in self._unplugs:
            self.session.opened(self.now_s)
        self.session.tick(self.now_s)
        if self.session.phase is Phase.SILENT:  # what the port's owner does
            self.session.closed(self.now_s)
            self.session.opened(self.now_s)
        sent = self.session.to_send()
        if sent and self.session.phase is not Phase.CLOSED:
            self._carry(self.board.receive(self._spoil(sent)))
        self._carry(self.board.step())

    def until_up(self) -> None:
        """Until the board has said who it is."""
        while self.session.phase is not Phase.UP:
            self.once()
            assert self.round < 5_000

    def answer(self, ask: Ask, cancel_at: int | None = None) -> tuple[bytes, Ended | Failed]:
        """Ask, and run to the end; the bytes and the one end."""
        self.session.ask(ask, self.now_s)
        data, ends = bytearray(), []
        began = self.round
        while not ends:
            self.once()
            if cancel_at is not None and self.round - began == cancel_at:
                self.session.cancel(self.now_s)
            while event := self.session.next_event():
                if isinstance(event, Chunk):
                    assert not ends
                    data += event.data
                else:
                    ends.append(event)
            assert self.round - began < 20_000, "the request has no end"
        for _ in range(100):  # what comes late changes nothing
            self.once()
        assert self.session.next_event() is None
        return bytes(data), ends[0]
