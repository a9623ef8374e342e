"""The bounded queue of jobs for the one model: requests, and readings that woke a link.

The network thread puts jobs in; the worker thread takes them out, oldest first. Nothing here blocks the network thread.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable

from device_runtime.fleet.links import Overload

__all__ = ["Job", "JobQueue"]

MAX_READINGS = 256  # that wait at the same time, of all links and topics
MAX_EVERY = 32  # readings of one topic that wait when a link asks for every one
MAX_REQUEST_BYTES = 8 << 20  # of memory that waiting requests take, however many a fleet file lets wait


class Job:
    """Something for the model to do.

    A job that was queued ends by one of `run`, `expire`, `drop` and `give_to_pool`, or because `JobQueue.remove`
    took it out.
    """

    start_by_s: float | None = None  # on the monotonic clock; later it is not worth starting
    client = ""  # who asks, so that nobody keeps the queue full
    memory_bytes = 0  # that it takes while it waits
    pooled = False  # whether another device of the pool can do it as well

    def run(self) -> None:
        """Do it, in the worker thread."""
        raise NotImplementedError

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
        self._request_bytes = 0  # that they take
        self._readings: OrderedDict[Hashable, deque[tuple[int, Job]]] = OrderedDict()
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
            return not self._closed and self._making_room(job) is not None

    def add_request(self, job: Job) -> list[Job]:
        """Queue a request.

        In a full queue, the client that has most there gives up its last requests to a client that has less: so nobody
        keeps the others out.

        Returns:
            The jobs that there is no place for: this one, or those that gave way to it.
        """
        with self._condition:
            given_up = None if self._closed else self._making_room(job)
            if given_up is None:
                return [job]
            if given_up:
                arrivals = {arrival for arrival, _ in given_up}
                self._keep(lambda entry: entry[0] not in arrivals)
            self._requests.append(self._stamp(job))
            self._request_bytes += job.memory_bytes
            self._condition.notify()
            return [waiting for _, waiting in given_up]

    def _making_room(self, job: Job) -> list[tuple[int, Job]] | None:
        """The requests that give way to `job`, none where there is room; None if there is not and nobody has too many.

        A client has too many where it has at least two more than the client of `job`, or where there is no room in
        memory, more bytes than that client will have.
        """
        count, total = len(self._requests), self._request_bytes
        given_up: list[tuple[int, Job]] = []
        if count < self.limit and total + job.memory_bytes <= MAX_REQUEST_BYTES:
            return given_up
        counts: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        entries: dict[str, list[tuple[int, Job]]] = {}
        for entry in self._requests:
            if client := entry[1].client:
                counts[client] += 1
                sizes[client] += entry[1].memory_bytes
                entries.setdefault(client, []).append(entry)
        while count >= self.limit or total + job.memory_bytes > MAX_REQUEST_BYTES:
            amounts, least = (
                (counts, counts[job.client] + 2)
                if count >= self.limit
                else (sizes, sizes[job.client] + job.memory_bytes + 1)
            )
            client = max(entries, key=lambda name: amounts[name], default="")
            if not client or amounts[client] < least or not entries[client]:
                return None
            entry = entries[client].pop()
            counts[client] -= 1
            sizes[client] -= entry[1].memory_bytes
            count, total = count - 1, total - entry[1].memory_bytes
            given_up.append(entry)
        return given_up

    def add_task(self, job: Job) -> bool:
        """Queue something of the device's own, for which there is always room; False when the queue is closed."""
        with self._condition:
            if not self._closed:
                self._requests.append(self._stamp(job))
                self._request_bytes += job.memory_bytes
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
            return self._first()

    def _first(self) -> Job:
        first = min(self._readings, key=lambda place: self._readings[place][0][0], default=None)
        if first is None or (self._requests and self._requests[0][0] < self._readings[first][0][0]):
            job = self._requests.popleft()[1]
            self._request_bytes -= job.memory_bytes
            return job
        waiting = self._readings[first]
        job = waiting.popleft()[1]
        if not waiting:
            del self._readings[first]
        return job

    def remove(self, job: Job) -> bool:
        """Take a request out of the queue; whether it waited there."""
        with self._condition:
            before = len(self._requests)
            self._keep(lambda entry: entry[1] is not job)
            return len(self._requests) < before

    def remove_late(self) -> list[Job]:
        """Take the waiting requests out of the queue that are not worth starting any more."""
        now_s = time.monotonic()
        with self._condition:
            late = [job for _, job in self._requests if job.start_by_s is not None and now_s > job.start_by_s]
            if late:
                self._keep(lambda entry: entry[1] not in late)
            return late

    def remove_pooled(self) -> list[Job]:
        """Take the waiting requests out of the queue that another device of the pool can answer."""
        with self._condition:
            pooled = [job for _, job in self._requests if job.pooled]
            self._keep(lambda entry: not entry[1].pooled)
            return pooled

    def close(self) -> list[Job]:
        """Take nothing more, wake the worker, and return the requests that were still waiting."""
        with self._condition:
            self._closed = True
            left = [job for _, job in self._requests]
            self._requests.clear()
            self._request_bytes = 0
            self._readings.clear()
            self._condition.notify_all()
            return left

    def _keep(self, wanted: Callable[[tuple[int, Job]], bool]) -> None:
        self._requests = deque(filter(wanted, self._requests))
        self._request_bytes = sum(job.memory_bytes for _, job in self._requests)

    def _stamp(self, job: Job) -> tuple[int, Job]:
        self._arrivals += 1
        return self._arrivals, job
