"""A model that says what a test tells it to, at the seam where the engine goes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from device_runtime.engine.language_model import Completion

__all__ = ["ScriptedAnswer", "ScriptedModel"]


class ScriptedAnswer(Iterator[str]):
    """Says its pieces; with a gate, one for each `gate.release()`."""

    result: Completion

    def __init__(
        self,
        pieces: Sequence[str],
        gate: threading.Semaphore | None,
        confidence: Mapping[str, float] | None = None,
        unfamiliar: tuple[str, ...] = (),
        probabilities: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        self._pieces, self._gate, self._said = list(pieces), gate, 0
        self._confidence, self._unfamiliar, self._probabilities = confidence, unfamiliar, probabilities
        self._cancelled = threading.Event()

    def __next__(self) -> str:
        while self._gate is not None and not self._cancelled.is_set() and not self._gate.acquire(timeout=0.01):
            pass
        if self._cancelled.is_set() or self._said == len(self._pieces):
            finish: Any = "cancelled" if self._cancelled.is_set() else "stop"
            text = "".join(self._pieces[: self._said])
            self.result = Completion(
                text, finish, 7, 2, self._said, 12.5, 100.0, self._confidence, self._unfamiliar,
                probabilities=self._probabilities,
            )  # fmt: skip
            raise StopIteration
        self._said += 1
        return self._pieces[self._said - 1]

    def cancel(self) -> None:
        self._cancelled.set()


class ScriptedModel:
    """Answers with `pieces`, or echoes the last message in upper case, word by word."""

    def __init__(self, pieces: Sequence[str] | None = None, *, gated: bool = False) -> None:
        self.pieces = pieces
        self.confidence: Mapping[str, float] | None = None
        self.unfamiliar: tuple[str, ...] = ()
        self.probabilities: Mapping[str, Mapping[str, float]] | None = None
        self.gate = threading.Semaphore(0) if gated else None
        self.asked: list[tuple[Any, dict[str, Any]]] = []
        self.threads: set[str] = set()
        self.fails_with: Exception | None = None

    def generate(self, prompt: str | Sequence[Mapping[str, str]], **options: Any) -> ScriptedAnswer:
        self.asked.append((prompt, options))
        self.threads.add(threading.current_thread().name)
        if self.fails_with:
            raise self.fails_with
        assert not isinstance(prompt, str)
        words = prompt[-1]["content"].upper().split(" ")
        pieces = self.pieces or [w if i == 0 else f" {w}" for i, w in enumerate(words)]
        return ScriptedAnswer(pieces, self.gate, self.confidence, self.unfamiliar, self.probabilities)

    def close(self) -> None:
        pass
