"""The queue before the model."""

from __future__ import annotations

import math
import time

from device_runtime.device import queue as work
from device_runtime.device.queue import MAX_REQUEST_BYTES, Job, JobQueue


def job() -> Job:
    return Job()


def test_readings_that_wait_are_bounded_whatever_their_topics():
    """A topic may hold 32 and there may be many topics; each waiting reading has its prompt in memory."""
    line = JobQueue(limit=1)
    kept = [line.add_reading((topic, "t"), job(), "every") for topic in range(100) for _ in range(work.MAX_EVERY)]
    assert sum(kept) == len(line) == work.MAX_READINGS
    assert line.add_request(job()) == []  # requests have a limit of their own
    line.take()
    assert line.add_reading(("new", "t"), job(), "every")


def test_a_newer_reading_takes_its_place_in_a_full_line():
    line = JobQueue(limit=1)
    for topic in range(work.MAX_READINGS):
        line.add_reading((topic, "t"), job(), "newest")
    newer = job()
    assert not line.add_reading((0, "t"), newer, "newest")  # the one before is given up
    assert line.take() is newer


def request(client: str, memory_bytes: int) -> Job:
    made = Job()
    made.client, made.memory_bytes = client, memory_bytes
    return made


def test_requests_are_bounded_by_what_they_take_in_memory():
    """However many a fleet file lets wait: 10,000 of 64 KiB each, parsed, would be gigabytes."""
    line = JobQueue(10_000)
    size = MAX_REQUEST_BYTES // 16
    taken = [job for _ in range(40) if line.add_request(job := request("", size)) == []]
    assert len(taken) == 16
    assert not line.has_room_for(request("", size))
    assert line.has_room_for(request("", 0))
    line.take()
    late = request("", size)
    late.start_by_s = 0.0
    assert line.add_request(late) == []
    assert line.remove_late() == [late]
    assert line.add_request(request("", size)) == []  # each way out gives its bytes back


def test_in_a_queue_full_of_bytes_those_who_have_most_give_way():
    line = JobQueue(10_000)
    small = MAX_REQUEST_BYTES // 64
    greedy = [request("greedy", small) for _ in range(64)]
    assert all(line.add_request(job) == [] for job in greedy)
    assert line.add_request(request("modest", 3 * small)) == greedy[:-4:-1]  # the last three
    more = request("greedy", small)
    assert line.add_request(more) == [more]
    assert len(line) == 62


def test_a_full_queue_is_searched_once_for_each_that_gives_way():
    """In the network thread: 10,000 small requests, and one that needs the room of many."""
    line = JobQueue(10_000)
    small = MAX_REQUEST_BYTES // 10_000
    for number in range(10_000):
        line.add_request(request(f"client-{number % 10}", small))
    started_s = time.perf_counter()
    lacking = 600_000 - (MAX_REQUEST_BYTES - 10_000 * small)
    assert len(line.add_request(request("large", 600_000))) == math.ceil(lacking / small)
    assert time.perf_counter() - started_s < 2  # some milliseconds; a search for each would be 700 times that
