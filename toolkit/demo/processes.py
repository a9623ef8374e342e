"""Processes that a demo starts, watches and always stops."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from device_runtime.errors import PartFailedError

__all__ = ["PartFailedError", "Processes"]

TAIL_LINES = 12  # of a failed part's stderr


@dataclass(frozen=True)
class _Part:
    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Processes:
    """A context manager: whatever it started is stopped when the context ends, however it ends."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="stonechat-demo-")
        self.folder = Path(self._temporary.name)  # for files that the parts need; removed at the end
        self._parts: list[_Part] = []

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start `command`. Its stderr is kept for `check`; its stdout is thrown away.

        Raises:
            PartFailedError: there is no such command.
        """
        log = self.folder / f"{len(self._parts)}.log"
        try:
            with log.open("wb") as stderr:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,  # Ctrl-C is for us alone; we stop the parts in their order
                )
        except OSError as e:
            raise PartFailedError(f"the {name} could not be started: {command[0]}: {e.strerror}.") from None
        self._parts.append(_Part(name, process, log))

    def check(self) -> None:
        """Raise PartFailedError, with the part's last words, if a part has ended."""
        for part in self._parts:
            if (code := part.process.poll()) is not None:
                raise PartFailedError(f"the {part.name} ended with exit code {code}.{self.last_words(part.name)}")

    def log(self, name: str) -> str:
        """What a part has written to stderr so far."""
        log = next(part.log for part in self._parts if part.name == name)
        return log.read_text(encoding="utf-8", errors="replace")

    def last_words(self, name: str) -> str:
        """The end of a part's stderr, ready to be appended to a message."""
        lines = self.log(name).splitlines()[-TAIL_LINES:]
        return (
            "".join(f"\n  {line}" for line in [f"last lines of the {name}:", *lines]) if lines else " It said nothing."
        )

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop everything, the last started first."""
        for part in reversed(self._parts):
            if part.process.poll() is None:
                part.process.terminate()
                try:
                    part.process.wait(timeout_s)
                except subprocess.TimeoutExpired:
                    part.process.kill()
                    part.process.wait()
        self._parts.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            self._temporary.cleanup()
