"""Keeps the chatter of native runtimes away from the user's terminal, without losing real errors."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

__all__ = ["captured_stderr", "own_stderr", "silence_at_exit"]

_ONE = threading.RLock()  # descriptor 2 is the whole process's: two who swapped it at once would never give it back
_CHATTER = ("INFO:", "WARNING:")  # how lines begin that no user needs, whatever else is in them


@contextlib.contextmanager
def captured_stderr(keep: str = "ERROR") -> Iterator[Callable[[], str]]:
    """Catch what native code writes to file descriptor 2.

    Yields a function that returns those of the lines caught so far that have the word `keep` in them and are no
    chatter; "" keeps all. Nothing is caught, and everything is shown, when the environment has STONECHAT_NATIVE_LOG=1.
    """
    if os.environ.get("STONECHAT_NATIVE_LOG") == "1" or sys.stderr is None:  # closed: descriptor 2 is somebody else's
        yield lambda: ""
        return
    with _ONE:
        sys.stderr.flush()
        kept, caught = os.dup(2), os.memfd_create("stderr")
        os.dup2(caught, 2)
        try:
            yield lambda: _lines(caught, keep)
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            os.close(caught)


def own_stderr() -> TextIO | None:
    """A stream to stderr that nothing here catches: for what other threads have to say meanwhile."""
    return None if sys.stderr is None else os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")


@functools.cache
def silence_at_exit() -> None:
    """Drop what native code writes to file descriptor 2 while it is torn down, after Python has ended."""
    if os.environ.get("STONECHAT_NATIVE_LOG") != "1" and sys.stderr is not None:
        atexit.register(_drop_stderr)


def _drop_stderr() -> None:
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _lines(descriptor: int, keep: str) -> str:
    size = os.fstat(descriptor).st_size
    text = os.pread(descriptor, size, 0).decode(errors="replace")
    lines = text.splitlines()
    return "\n".join(line for line in lines if keep in line and not (keep and line.startswith(_CHATTER)))
