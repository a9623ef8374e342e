"""The answer to an input that lacks what a task needs: none, and why."""

from __future__ import annotations

from collections.abc import Iterator

from device_runtime.engine.generation import Completion

__all__ = ["Abstention"]


class Abstention(Iterator[str]):
    """See `Generation`; the text is `null`, and `unfamiliar` of the result says why."""

    def __init__(self, reasons: tuple[str, ...]) -> None:
        self.result = Completion("null", "stop", 0, 0, 0, 0.0, 0.0, {}, reasons)
        self._pieces = iter(("null",))

    def __next__(self) -> str:
        return next(self._pieces)

    def cancel(self) -> None:
        """As in `Generation`."""
