"""Answers that must not be lost: kept on disk until the broker has confirmed them.

A power cut loses nothing that was put in here. The box is bounded; a full one gives up its oldest message. A box that
is damaged is put aside, whole, and a new one begun: a device that never starts again would lose more.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from device_runtime.errors import ConfigurationError

__all__ = ["LIMIT", "Kept", "Outbox"]

LIMIT = 1000  # messages
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

log = logging.getLogger("stonechat.serve")


@dataclass(frozen=True)
class Kept:
    """A message in the box."""

    number: int  # rises; never used twice
    topic: str
    payload: bytes
    retain: bool


class _DamagedError(Exception):
    """What is there is no box, or not a whole one."""


class Outbox:
    """A file of messages. May be used from any thread."""

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        """Open the file, or make it.

        Raises:
            ConfigurationError: it cannot be opened.
        """
        self._path, self._limit = path, limit
        self._lock = threading.Lock()
        self._done: set[int] = set()  # confirmed, and not yet taken out: the disk would not have it
        self.given_up = 0  # messages that a full box has lost since the start
        try:
            self._file = self._open()
        except _DamagedError as damage:
            self._put_aside(damage)
            self._file = self._open()
            # Numbers name messages to their readers: those of the damaged box must not come again.
            with self._explained(), self._file:
                first = secrets.randbelow(2**40) + 2**32
                self._file.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('kept', ?)", (first,))

    def put(self, topic: str, payload: bytes, *, retain: bool = False) -> Kept:
        """Keep a message; it is on the disk when this returns.

        Raises:
            ConfigurationError: the disk is full, or fails.
        """
        with self._lock, self._explained(), self._file:
            row = self._file.execute(
                "INSERT INTO kept (topic, payload, retain) VALUES (?, ?, ?)", (topic, payload, retain)
            )
            assert row.lastrowid is not None
            oldest = "DELETE FROM kept WHERE number <= (SELECT number FROM kept ORDER BY number DESC LIMIT 1 OFFSET ?)"
            self.given_up += self._file.execute(oldest, (self._limit,)).rowcount
            return Kept(row.lastrowid, topic, payload, retain)

    def done(self, number: int) -> None:
        """The broker has it. What cannot be taken out now is taken out with the next.

        Raises:
            ConfigurationError: the disk is full, or fails.
        """
        with self._lock, self._explained():
            self._done.add(number)
            with self._file:
                self._file.executemany("DELETE FROM kept WHERE number = ?", [(n,) for n in self._done])
            self._done.clear()

    def waiting(self, after: int = 0) -> list[Kept]:
        """What has not been confirmed, the oldest first.

        Args:
            after: only messages whose numbers are higher.

        Raises:
            ConfigurationError: the disk fails.
        """
        with self._lock, self._explained():
            rows = self._file.execute(
                "SELECT number, topic, payload, retain FROM kept WHERE number > ? ORDER BY number", (after,)
            ).fetchall()
            return [Kept(n, topic, payload, bool(retain)) for n, topic, payload, retain in rows if n not in self._done]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    def _open(self) -> sqlite3.Connection:
        with self._explained():
            file = sqlite3.connect(self._path, check_same_thread=False)
            try:
                file.execute("PRAGMA journal_mode = WAL")
                file.execute("PRAGMA synchronous = FULL")  # a commit is on the disk when it returns
                file.execute(
                    "CREATE TABLE IF NOT EXISTS kept"
                    " (number INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT, payload BLOB, retain INTEGER)"
                )
                found: str = file.execute("PRAGMA quick_check(1)").fetchone()[0]
            except BaseException as error:
                file.close()
                if isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF in _DAMAGE:
                    raise _DamagedError(str(error)) from None
                raise
        if found != "ok":
            file.close()
            raise _DamagedError(found.splitlines()[-1])
        return file

    def _put_aside(self, damage: _DamagedError) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged")
        try:
            for part in ("-wal", "-shm", ""):  # sqlite's own files, which belong to it
                with contextlib.suppress(FileNotFoundError):
                    self._path.with_name(f"{self._path.name}{part}").replace(f"{aside}{part}")
        except OSError as error:
            raise ConfigurationError(
                f"the box of unsent answers, {self._path}, is damaged ({damage}) and cannot be put aside: "
                f"{error.strerror}. Move it away."
            ) from None
        log.warning(
            "the box of unsent answers was damaged (%s): it is %s now. What was in it is not sent; delete it when "
            "nobody needs it.", damage, aside,
        )  # fmt: skip

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ConfigurationError(
                f"the box of unsent answers, {self._path}, cannot be used: {error}. Free some space, or move it away."
            ) from None
