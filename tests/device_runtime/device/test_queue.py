"""The queue before the model."""

from __future__ import annotations

from device_runtime.device import queue as work
from device_runtime.device.queue import Job, JobQueue


def job() -> Job:
    return Job()


def test_readings_that_wait_are_bounded_whatever_their_topics():
    """A topic may hold 32 and there may be many topics; each waiting reading has its prompt in memory."""
    line = JobQueue(limit=1)
    kept = [line.add_reading((topic, "t"), job(), "every") for topic in range(100) for _ in range(work.MAX_EVERY)]
    assert sum(kept) == len(line) == work.MAX_READINGS
    assert line.add_request(job()) is None  # requests have a limit of their own
    line.take()
    assert line.add_reading(("new", "t"), job(), "every")


def test_a_newer_reading_takes_its_place_in_a_full_line():
    line = JobQueue(limit=1)
    for topic in range(work.MAX_READINGS):
        line.add_reading((topic, "t"), job(), "newest")
    newer = job()
    assert not line.add_reading((0, "t"), newer, "newest")  # the one before is given up
    assert line.take() is newer
