"""Progress on stderr: a line, or a bar; of a bar in a log, a line a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

__all__ = ["ProgressBar", "say"]

_EVERY_S = 60.0  # between lines in a log


def say(line: str) -> None:
    """A line about the progress, at once."""
    print(line, file=sys.stderr, flush=True)


class ProgressBar:
    """One bar per step. Where stderr is no terminal, work of more than a minute says each minute how far it is."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._bar: Any = None
        self._step = ""
        self._clock_s, self._said_s = clock_s, clock_s()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, step: str, share: float, detail: str = "") -> None:
        """Show that `share` (0 … 1) of `step` is done, and `detail` beside it."""
        if sys.stderr.isatty():
            self._show(step, share, detail)
        elif (now_s := self._clock_s()) - self._said_s >= _EVERY_S:
            self._said_s = now_s
            say(f"{step}: {share:.0%}{', ' if detail else ''}{detail}")

    def _show(self, step: str, share: float, detail: str) -> None:
        if step != self._step:
            from tqdm import tqdm

            if self._bar is not None:
                self._bar.close()
            self._step = step
            self._bar = tqdm(
                total=100,
                desc=step,
                bar_format="{desc:>12} {bar} {percentage:3.0f}% {elapsed}{postfix}",
                leave=True,
                miniters=1,  # of its own accord it waits, after a jump (an upload that goes on), for one as large
            )
        if detail:
            self._bar.set_postfix_str(detail, refresh=False)
        self._bar.update(round(share * 100) - self._bar.n)
