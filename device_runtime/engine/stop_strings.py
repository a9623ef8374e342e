"""Texts that end an answer before them."""

from __future__ import annotations

from typing import Literal

__all__ = ["Finish", "StopStrings"]

Finish = Literal["stop", "length", "cancelled"]
# why an answer ended: a stop token or text; the limit of tokens or the end of the context; a call of `cancel`


class StopStrings:
    """Ends a text before the first stop string in it; holds back what may be the beginning of one."""

    def __init__(self, stop: list[str]) -> None:
        self._stop = stop
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Text that is safe to show."""
        if not self._stop or self.found:
            return "" if self.found else piece
        self._held += piece
        starts = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        if starts:
            self.found = True
            safe, self._held = self._held[: min(starts)], ""
            return safe
        keep = max(self._overlap(s) for s in self._stop)
        split = len(self._held) - keep
        safe, self._held = self._held[:split], self._held[split:]
        return safe

    def flush(self) -> str:
        """What was held back and turned out to be no stop string."""
        safe, self._held = self._held, ""
        return safe

    def _overlap(self, stop: str) -> int:
        """How many characters at the end of the held text begin this stop string."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
