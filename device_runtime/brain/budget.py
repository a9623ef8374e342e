"""How many questions may still go on today, kept across restarts: counted before they go, so that a crash spends none
twice."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from device_runtime.machine.path_errors import why_unreadable
from device_runtime.update import durable

__all__ = ["Budget"]

log = logging.getLogger("stonechat.serve")


class Budget:
    """Counters of one device, by name, in one file. May be used from any thread."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Read what was spent today; a damaged file is logged, counts as spent on nothing, and is written again."""
        self._path, self._clock = path, clock
        self._lock = threading.Lock()
        self._day, self._spent = self._today(), dict[str, int]()
        try:
            kept = json.loads(path.read_bytes())
            day, spent = str(kept["day"]), {str(name): int(count) for name, count in kept["spent"].items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            log.warning("%s cannot be read: %s; nothing counts as spent today", path, why_unreadable(error))
            return
        if day >= self._day:  # a clock that was set back gives no second budget
            self._day, self._spent = day, spent

    def spend(self, name: str, limit: int | None) -> bool:
        """Count one question; False, and nothing is counted, where `limit` for today is reached."""
        with self._lock:
            if (today := self._today()) > self._day:
                self._day, self._spent = today, {}
            if limit is not None and self._spent.get(name, 0) >= limit:
                return False
            self._spent[name] = self._spent.get(name, 0) + 1
            if limit is not None:
                self._save()
            return True

    def spent(self) -> dict[str, int]:
        """Of today, by name."""
        with self._lock:
            return dict(self._spent) if self._day >= self._today() else {}

    def _today(self) -> str:
        return time.strftime("%Y-%m-%d", time.gmtime(self._clock()))

    def _save(self) -> None:
        try:
            durable.make_folder(self._path.parent)
            durable.replace_file(self._path, json.dumps({"day": self._day, "spent": self._spent}).encode())
        except OSError as error:  # it counts on in memory
            log.warning("the budget cannot be kept in %s: %s", self._path, error.strerror)
