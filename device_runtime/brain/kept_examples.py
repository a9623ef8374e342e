"""Answers of larger models and of people, kept as examples for the next training: a bounded file of JSON lines."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from device_runtime.machine.path_errors import is_full
from device_runtime.mqtt.strict_json import MessageError, parse
from device_runtime.update import durable

__all__ = ["BY_PERSON", "CORRECTIONS", "FILE", "KeptLines", "kept_entry"]

BY_PERSON = "person"  # in `by` of a correction; else it is where the larger model is

FILE = "examples.jsonl"  # in the state folder: answers of larger models
CORRECTIONS = "corrections.jsonl"  # there, too: answers of people
_LEVELS = 100  # of lists and objects in a line; a message that is kept has 16
_SLACK = 1.25  # the file is cut when it has so many times the lines that are kept

log = logging.getLogger("stonechat.serve")


def kept_entry(line: bytes) -> dict[str, Any] | None:
    """What a line of such a file says; None where that is lost: a power cut has halved it, or the disk has erred.

    What no JSON in UTF-8 can hold (half of a surrogate pair, NaN) is lost as well: nobody could send or keep it.
    """
    try:
        entry = parse(line, most_bytes=len(line), most_levels=_LEVELS)
    except MessageError:
        return None
    return entry if isinstance(entry, dict) else None


class KeptLines:
    """The newest lines of a file. May be used from any thread."""

    def __init__(self, path: Path, keep: int) -> None:
        """`keep` lines at least; 0 keeps none, and leaves a file alone that is there."""
        self._path, self.keep = path, keep
        self._lock = threading.Lock()
        self._count = sum(1 for _ in self._lines()) if keep else 0
        if self._count and not path.read_bytes().endswith(b"\n"):  # a power cut: the next line is one of its own
            with suppress(OSError), path.open("ab") as file:
                file.write(b"\n")

    def add(self, entry: Mapping[str, Any], *, flush: bool = False) -> str:
        """Append an entry; a disk that does not take it costs the entry, and is logged.

        Args:
            flush: return when it is on the disk, where a power cut cannot take it back.

        Returns:
            Why it is not kept, and the next step; empty where it is.
        """
        if not self.keep:
            return "this device keeps none"
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            try:
                self._append(line, flush)
            except OSError as error:
                log.warning("%s cannot be written: %s", self._path, error.strerror)
                step = "Free some space" if is_full(error) else "Look after its state folder"
                return f"{self._path.name} cannot be written: {error.strerror}. {step} on the device"
            self._count += 1
            if self._count > self.keep * _SLACK:
                self._write_lines(list(self._lines())[-self.keep :])
        return ""

    def entries(self) -> list[dict[str, Any]]:
        """All that are kept, the oldest first; a line that a power cut has halved is left out."""
        with self._lock:
            return self._entries()

    def keep_only(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Leave out the entries that `wanted(entry)` is false for."""
        with self._lock:  # for all of it: what is added meanwhile would be written over
            kept = [entry for entry in self._entries() if wanted(entry)]
            if len(kept) < self._count:
                self._write_lines([json.dumps(entry, ensure_ascii=False).encode() for entry in kept])

    def _entries(self) -> list[dict[str, Any]]:
        found = []
        for line in self._lines():
            if (entry := kept_entry(line)) is not None:
                found.append(entry)
        return found[-self.keep :] if self.keep else found

    def _append(self, line: bytes, flush: bool) -> None:
        """Put a line at the end, or nothing: half a line would spoil the next one."""
        durable.make_folder(self._path.parent)
        new = not self._path.exists()
        size = 0 if new else self._path.stat().st_size
        try:
            durable.append(self._path, size, line)
            if flush:
                durable.sync_file(self._path)
                if new:
                    durable.sync_folder(self._path.parent)
        except OSError:
            with suppress(OSError):
                os.truncate(self._path, size)
            raise

    def _write_lines(self, lines: list[bytes]) -> None:
        """Give the file these lines; one that cannot be written keeps those that it has, until the next time."""
        try:
            durable.replace_file(self._path, b"".join(line + b"\n" for line in lines))
            self._count = len(lines)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error.strerror)

    def _lines(self) -> list[bytes]:
        try:
            return [line for line in self._path.read_bytes().split(b"\n") if line]
        except OSError:
            return []
