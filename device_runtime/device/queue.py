"""The bounded line of work before the one model: requests, and readings that woke a link.

The network thread puts work in; the worker thread takes it out, oldest first. Nothing here blocks the network thread.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Job", "Overload", "WorkLine"]

Overload = Literal["newest", "oldest", "every"]

MAX_READINGS = 256  # that wait at the same time, of all links and topics
MAX_EVERY = 32  # readings of one topic that wait when a link asks for every one


@dataclass(frozen=True, eq=False)
class Job:
    """Something for the model to do."""

    key: Hashable | None  # what a cancel command names; None when nothing can name it
    run: Callable[[], None]
    cancel: Callable[[], None] = field(default=lambda: None)  # ends `run`, also before it has begun
    start_by_s: float | None = None  # on the monotonic clock; later it is not worth starting
    expired: Callable[[], None] = field(default=lambda: None)  # called instead of `run` when it is too late
    dropped: Callable[[], None] = field(default=lambda: None)  # called instead of `run` on shutdown
    hand_on: Callable[[], None] | None = None  # called instead of `run` when others of the pool had better do it


class WorkLine:
    """Requests up to a limit, and one slot for each link and topic."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._condition = threading.Condition()
        self._requests: deque[tuple[int, Job]] = deque()
        self._slots: OrderedDict[Hashable, deque[tuple[int, Job]]] = OrderedDict()
        self._taken: Job | None = None  # the last that was taken out to be run
        self._arrivals = 0
        self._closed = False

    def __len__(self) -> int:
        with self._condition:
            return len(self._requests) + sum(map(len, self._slots.values()))

    @property
    def closed(self) -> bool:
        """Whether it takes nothing more."""
        return self._closed

    @property
    def has_room(self) -> bool:
        """Whether a request would be queued; the thread that adds requests can rely on it, but for `close`."""
        with self._condition:
            return not self._closed and len(self._requests) < self.limit

    def add_request(self, job: Job) -> bool:
        """Queue a request, or return False when the line is full."""
        with self._condition:
            if self._closed or len(self._requests) >= self.limit:
                return False
            self._requests.append(self._stamp(job))
            self._condition.notify()
            return True

    def add_task(self, job: Job) -> bool:
        """Queue something of the device's own, for which there is always room; False when the line is closed."""
        with self._condition:
            if not self._closed:
                self._requests.append(self._stamp(job))
                self._condition.notify()
            return not self._closed

    def add_reading(self, slot: Hashable, job: Job, overload: Overload) -> bool:
        """Queue a reading in its slot; return False when a reading (this one or an older one) is given up for it."""
        with self._condition:
            if self._closed:
                return False
            waiting = self._slots.get(slot)
            if waiting and overload == "oldest":
                return False
            if waiting and overload == "newest":
                waiting[0] = (waiting[0][0], job)  # it keeps its place in the line
                return False
            if len(waiting or ()) >= MAX_EVERY or sum(map(len, self._slots.values())) >= MAX_READINGS:
                return False
            self._slots.setdefault(slot, deque()).append(self._stamp(job))
            self._condition.notify()
            return True

    def take(self) -> Job | None:
        """Wait for the job that came first; None once the line is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._closed or self._requests or self._slots)
            if self._closed:
                return None
            self._taken = self._first()
            return self._taken

    def _first(self) -> Job:
        first = min(self._slots, key=lambda s: self._slots[s][0][0], default=None)
        if first is None or (self._requests and self._requests[0][0] < self._slots[first][0][0]):
            return self._requests.popleft()[1]
        waiting = self._slots[first]
        job = waiting.popleft()[1]
        if not waiting:
            del self._slots[first]
        return job

    def cancel(self, key: Hashable) -> Job | None:
        """Take a waiting request out of the line by its key and return it; one that was taken is told to end."""
        with self._condition:
            for entry in self._requests:
                if entry[1].key == key:
                    self._requests.remove(entry)
                    return entry[1]
            taken = self._taken
        if taken is not None and taken.key == key:
            taken.cancel()
        return None

    def remove_late(self) -> list[Job]:
        """Take the waiting requests out of the line that are not worth starting any more."""
        now_s = time.monotonic()
        with self._condition:
            late = [job for _, job in self._requests if job.start_by_s is not None and now_s > job.start_by_s]
            if late:
                self._requests = deque(entry for entry in self._requests if entry[1] not in late)
            return late

    def remove_pooled(self) -> list[Job]:
        """Take the waiting requests out of the line that another device can answer."""
        with self._condition:
            pooled = [job for _, job in self._requests if job.hand_on is not None]
            self._requests = deque(entry for entry in self._requests if entry[1].hand_on is None)
            return pooled

    def close(self) -> list[Job]:
        """Take nothing more, wake the worker, and return the requests that were still waiting."""
        with self._condition:
            self._closed = True
            left = [job for _, job in self._requests]
            self._requests.clear()
            self._slots.clear()
            self._condition.notify_all()
            return left

    def _stamp(self, job: Job) -> tuple[int, Job]:
        self._arrivals += 1
        return self._arrivals, job
