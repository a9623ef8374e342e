"""The bounded queue of jobs for the one model: requests, and readings that woke a link.

The network thread puts jobs in; the worker thread takes them out, oldest first. Nothing here blocks the network thread.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable

from device_runtime.fleet.links import Overload

__all__ = ["Job", "JobQueue"]

MAX_READINGS = 256  # that wait at the same time, of all links and topics
MAX_EVERY = 32  # readings of one topic that wait when a link asks for every one


class Job:
    """Something for the model to do.

    A job that was queued ends by one of `run`, `expire`, `drop` and `give_to_pool`, or because `JobQueue.cancel`
    returned it.
    """

    key: Hashable | None = None  # what a cancel command names; None when nothing can name it
    start_by_s: float | None = None  # on the monotonic clock; later it is not worth starting
    client = ""  # who asks, so that nobody keeps the queue full
    pooled = False  # whether another device of the pool can do it as well

    def run(self) -> None:
        """Do it, in the worker thread."""
        raise NotImplementedError

    def cancel(self) -> None:
        """End `run`, also before it has begun. From any thread."""

    def expire(self) -> None:
        """It waited beyond `start_by_s`."""

    def drop(self) -> None:
        """The device is shutting down."""

    def give_way(self) -> None:
        """There is no place for it: the queue is full, or was and a client with fewer requests came."""

    def give_to_pool(self) -> None:
        """Another device of the pool has to do it. Only where `pooled` is set."""


class JobQueue:
    """Requests up to a limit, and one place for each link and topic."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._condition = threading.Condition()
        self._requests: deque[tuple[int, Job]] = deque()
        self._readings: OrderedDict[Hashable, deque[tuple[int, Job]]] = OrderedDict()
        self._taken: Job | None = None  # the last that was taken out to be run
        self._arrivals = 0
        self._closed = False

    def __len__(self) -> int:
        with self._condition:
            return len(self._requests) + sum(map(len, self._readings.values()))

    @property
    def closed(self) -> bool:
        """Whether it takes nothing more."""
        return self._closed

    def has_room_for(self, job: Job) -> bool:
        """Whether a request would be queued; the thread that adds requests can rely on it, but for `close`."""
        with self._condition:
            return not self._closed and (len(self._requests) < self.limit or self._crowding(job) is not None)

    def add_request(self, job: Job) -> Job | None:
        """Queue a request.

        In a full queue, the client that has most requests there gives up its last one to a client that has fewer: so
        nobody keeps the others out.

        Returns:
            The job that there is no place for: this one, or one that gave way to it; None if there is place for all.
        """
        with self._condition:
            if self._closed:
                return job
            given_up = None
            if len(self._requests) >= self.limit:
                entry = self._crowding(job)
                if entry is None:
                    return job
                self._requests.remove(entry)
                given_up = entry[1]
            self._requests.append(self._stamp(job))
            self._condition.notify()
            return given_up

    def _crowding(self, job: Job) -> tuple[int, Job] | None:
        """The last request of the client that has most, if it has at least two more than the client of `job`."""
        counts = Counter(waiting.client for _, waiting in self._requests if waiting.client)
        if not counts:
            return None
        client, most = counts.most_common(1)[0]
        if most < counts[job.client] + 2:
            return None
        return next(entry for entry in reversed(self._requests) if entry[1].client == client)

    def add_task(self, job: Job) -> bool:
        """Queue something of the device's own, for which there is always room; False when the queue is closed."""
        with self._condition:
            if not self._closed:
                self._requests.append(self._stamp(job))
                self._condition.notify()
            return not self._closed

    def add_reading(self, place: Hashable, job: Job, overload: Overload) -> bool:
        """Queue a reading in its place; return False when a reading (this one or an older one) is given up for it."""
        with self._condition:
            if self._closed:
                return False
            waiting = self._readings.get(place)
            if waiting and overload == "oldest":
                return False
            if waiting and overload == "newest":
                waiting[0] = (waiting[0][0], job)  # it keeps its turn
                return False
            if len(waiting or ()) >= MAX_EVERY or sum(map(len, self._readings.values())) >= MAX_READINGS:
                return False
            self._readings.setdefault(place, deque()).append(self._stamp(job))
            self._condition.notify()
            return True

    def take(self) -> Job | None:
        """Wait for the job that came first; None once the queue is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._closed or self._requests or self._readings)
            if self._closed:
                return None
            self._taken = self._first()
            return self._taken

    def _first(self) -> Job:
        first = min(self._readings, key=lambda place: self._readings[place][0][0], default=None)
        if first is None or (self._requests and self._requests[0][0] < self._readings[first][0][0]):
            return self._requests.popleft()[1]
        waiting = self._readings[first]
        job = waiting.popleft()[1]
        if not waiting:
            del self._readings[first]
        return job

    def cancel(self, key: Hashable) -> Job | None:
        """Take a waiting request out of the queue by its key and return it; one that was taken out ends."""
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
        """Take the waiting requests out of the queue that are not worth starting any more."""
        now_s = time.monotonic()
        with self._condition:
            late = [job for _, job in self._requests if job.start_by_s is not None and now_s > job.start_by_s]
            if late:
                self._requests = deque(entry for entry in self._requests if entry[1] not in late)
            return late

    def remove_pooled(self) -> list[Job]:
        """Take the waiting requests out of the queue that another device of the pool can answer."""
        with self._condition:
            pooled = [job for _, job in self._requests if job.pooled]
            self._requests = deque(entry for entry in self._requests if not entry[1].pooled)
            return pooled

    def close(self) -> list[Job]:
        """Take nothing more, wake the worker, and return the requests that were still waiting."""
        with self._condition:
            self._closed = True
            left = [job for _, job in self._requests]
            self._requests.clear()
            self._readings.clear()
            self._condition.notify_all()
            return left

    def _stamp(self, job: Job) -> tuple[int, Job]:
        self._arrivals += 1
        return self._arrivals, job
