"""A board on a desk: the reference peer with a real model, on a pseudo-terminal that can be unplugged."""

from __future__ import annotations

import os
import select
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.language_model import LanguageModel
from toolkit.emulate.model_board import TextEngine, TokenEngine, hello_of
from toolkit.emulate.pty_board import Board

__all__ = ["Desk", "until"]


def until(condition: Callable[[], object], timeout_s: float = 120.0) -> None:
    """Wait for a condition."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come true"
        time.sleep(0.01)


class Desk:
    """The port is `path`. `at(n, action)` runs an action of this class once, when `n` tokens of an answer are made."""

    def __init__(self, folder: Path, bundle: Path, *, text: bool = False, plugged: bool = True) -> None:
        self.path = folder / "ttyBOARD"
        self.model = LanguageModel.open(bundle, threads=1)
        self._hello = hello_of(Bundle.open(bundle), text=text, largest_body=96)
        self._text = text
        self.spoil: Callable[[bytes], bytes] = lambda data: data  # what the line does to bytes from the board
        self.boots = 0
        self.hung = False  # the model; the port still answers
        self.pace_s = 0.0  # from one step of the model to the next
        self._plans: list[tuple[int, Callable[[], None]]] = []
        self._fds: tuple[int, int] | None = None
        self._stop = threading.Event()
        self._lock = threading.RLock()
        self._said = b""
        self.boot()
        if plugged:
            self.plug()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def boot(self) -> None:
        """Start, or be reset."""
        with self._lock:
            self.boots += 1
            self.engine = TextEngine(self.model) if self._text else TokenEngine(self.model)
            self.board = Board(self.engine, self._hello)
            self._said += b"\r\nboot: brownout\xff\xfe" + self.board.boot()

    def plug(self) -> None:
        """Connect the cable."""
        with self._lock:
            own, others = os.openpty()
            tty.setraw(others)
            self._fds = own, others
            self.path.symlink_to(os.ttyname(others))

    def unplug(self) -> None:
        """Pull it."""
        with self._lock:
            assert self._fds is not None
            self.path.unlink()
            for fd in self._fds:
                os.close(fd)
            self._fds = None

    def unplug_for_a_moment(self) -> None:
        """Pull it and put it back, while the board goes on."""
        self.unplug()
        threading.Timer(0.3, self.plug).start()

    def at(self, tokens: int, action: Callable[[], None]) -> None:
        """Plan an action."""
        self._plans.append((tokens, action))

    def close(self) -> None:
        """Put it away."""
        self._stop.set()
        self._thread.join()
        if self._fds is not None:
            self.unplug()
        self.model.close()

    def _run(self) -> None:
        next_step_s = 0.0
        while not self._stop.is_set():
            with self._lock:
                said, self._said = self._said, b""
                if self._fds is not None and select.select([self._fds[0]], [], [], 0)[0]:
                    said += self.board.receive(os.read(self._fds[0], 4096))
                working = self.board.working
                if not self.hung and time.monotonic() >= next_step_s:
                    said += self.board.step()
                    next_step_s = time.monotonic() + self.pace_s
                if said and self._fds is not None:
                    os.write(self._fds[0], self.spoil(said))
                if self._plans and self.engine.completion_tokens == self._plans[0][0]:
                    self._plans.pop(0)[1]()
            time.sleep(0.001 if working else 0.003)
