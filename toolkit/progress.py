"""A progress bar on stderr, only where a person watches."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

__all__ = ["ProgressBar"]


class ProgressBar:
    """One bar per step; silent when stderr is not a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._step = ""

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, step: str, share: float, detail: str = "") -> None:
        """Show that `share` (0 … 1) of `step` is done, and `detail` beside it."""
        if not sys.stderr.isatty():
            return
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
