"""Being a member of a pool: taking its requests, or leaving them to the others.

A broker gives a pool's requests to its members in turn, also to one that cannot answer. So a device whose hardware is
away leaves the pool until it is back.
"""

from __future__ import annotations

from device_runtime.device.queue import WorkLine
from device_runtime.mqtt.client import Client, Subscription
from device_runtime.mqtt.topics import PoolTopics

__all__ = ["Membership"]


class Membership:
    """Of one device, in one pool. For the thread that watches the hardware, but for `takes`."""

    def __init__(self, pool: PoolTopics, client: Client, line: WorkLine) -> None:
        """`line` is where its requests wait. It has joined once `subscription` was sent, with those of the device."""
        self._pool, self._client, self._line = pool, client, line
        self.subscription = Subscription(pool.shared)
        self._joined = True

    def takes(self, topic: str) -> bool:
        """Whether a message on this topic is a request of the pool. From any thread."""
        return topic == self._pool.generate

    def follow(self, able: bool) -> None:
        """Leave, and hand on what waits, once the device cannot answer; join again when it can."""
        if able is self._joined:
            return
        self._joined = able
        if able:
            self._client.subscribe(self.subscription)
            return
        self._client.unsubscribe(self.subscription)
        for job in self._line.remove_pooled():
            if job.hand_on is not None:
                job.hand_on()
