"""Membership of a pool: taking its requests, or leaving them to the other members.

A broker gives a pool's requests to its members in turn, also to one that cannot answer. So a device whose hardware is
away leaves the pool until it is back.
"""

from __future__ import annotations

from collections.abc import Sequence

from device_runtime.device.extension import Device, Extension, Route
from device_runtime.device.extensions.requests import Requests
from device_runtime.mqtt.packets import Subscription
from device_runtime.mqtt.topics import PoolTopics

__all__ = ["PoolMember"]


class PoolMember(Extension):
    """One device in one pool."""

    def __init__(self, device: Device, pool: PoolTopics, requests: Requests) -> None:
        self._device, self._requests = device, requests
        self._subscriptions = [Subscription(shared) for shared in pool.shared]
        self._joined = True

    def routes(self) -> Sequence[Route]:
        """The pool's requests."""
        return [Route(subscription, self._requests.receive_pooled) for subscription in self._subscriptions]

    def tick(self) -> None:
        """Leave, and hand on what waits, once the device cannot answer; join again when it can."""
        able = not self._device.hardware.trouble
        if able is self._joined:
            return
        self._joined = able
        if able:
            self._device.client.subscribe(*self._subscriptions)
            return
        for subscription in self._subscriptions:
            self._device.client.unsubscribe(subscription)
        for job in self._device.queue.remove_pooled():
            job.give_to_pool()
