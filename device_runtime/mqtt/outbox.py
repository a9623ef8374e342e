"""Answers that must not be lost: kept on disk until the broker has confirmed them.

A power cut loses nothing that was put in here. The box is bounded; a full one gives up its oldest message.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from device_runtime.errors import ConfigurationError

__all__ = ["LIMIT", "Kept", "Outbox"]

LIMIT = 1000  # messages


@dataclass(frozen=True)
class Kept:
    """A message in the box."""

    number: int  # rises; never used twice
    topic: str
    payload: bytes
    retain: bool


class Outbox:
    """A file of messages. May be used from any thread."""

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        """Open the file, or make it.

        Raises:
            ConfigurationError: it cannot be opened, or is something else.
        """
        self._path, self._limit = path, limit
        self._lock = threading.Lock()
        self.given_up = 0  # messages that a full box has lost since the start
        with self._explained():
            self._file = sqlite3.connect(path, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = FULL")  # a commit is on the disk when it returns
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS kept"
                " (number INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT, payload BLOB, retain INTEGER)"
            )

    def put(self, topic: str, payload: bytes, *, retain: bool = False) -> Kept:
        """Keep a message; it is on the disk when this returns."""
        with self._lock, self._explained(), self._file:
            row = self._file.execute(
                "INSERT INTO kept (topic, payload, retain) VALUES (?, ?, ?)", (topic, payload, retain)
            )
            assert row.lastrowid is not None
            oldest = "DELETE FROM kept WHERE number <= (SELECT number FROM kept ORDER BY number DESC LIMIT 1 OFFSET ?)"
            self.given_up += self._file.execute(oldest, (self._limit,)).rowcount
            return Kept(row.lastrowid, topic, payload, retain)

    def done(self, number: int) -> None:
        """The broker has it."""
        with self._lock, self._explained(), self._file:
            self._file.execute("DELETE FROM kept WHERE number = ?", (number,))

    def waiting(self) -> list[Kept]:
        """What has not been confirmed, the oldest first."""
        with self._lock, self._explained():
            rows = self._file.execute("SELECT number, topic, payload, retain FROM kept ORDER BY number").fetchall()
        return [Kept(number, topic, payload, bool(retain)) for number, topic, payload, retain in rows]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ConfigurationError(
                f"the box of unsent answers, {self._path}, cannot be used: {error}. Free some space, or move it away."
            ) from None
