"""Answers what a device is asked over MQTT.

Commands are checked in the network thread; a good one waits in the queue. Whatever is wrong with a command is
answered, as far as the command names a reply topic.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

from device_runtime.device.extension import Device, Extension, Route
from device_runtime.device.extensions.request_job import SHUTTING_DOWN, Replies, RequestJob
from device_runtime.mqtt.client import Incoming, Subscription
from device_runtime.mqtt.messages import Address, Cancel, Request
from device_runtime.mqtt.strict_json import MessageError, parse

__all__ = ["Requests"]

REMEMBERED = 256  # requests whose repeats are recognised

log = logging.getLogger("stonechat.serve")

_Act = Callable[[Incoming, Any, Address], None]


class Requests(Extension):
    """The requests to one device, and to the pool that it is in."""

    def __init__(self, device: Device) -> None:
        self._device, self._replies = device, Replies(device)
        self._lock = threading.Lock()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    def routes(self) -> Sequence[Route]:
        """The commands of the device; those of its pool come through `PoolMember`."""
        topics = self._device.topics
        return [
            Route(Subscription(topics.generate, tell_retained=True), self.receive),
            Route(Subscription(topics.cancel, tell_retained=True), self.receive_cancel),
        ]

    def receive(self, message: Incoming) -> None:
        """A request to this device."""
        if self._device.limiter.admits("requests"):
            self._command(message, partial(self._accept, pooled=False))

    def receive_pooled(self, message: Incoming) -> None:
        """A request to the pool."""
        if self._device.limiter.admits("requests"):
            self._command(message, partial(self._accept, pooled=True))

    def receive_cancel(self, message: Incoming) -> None:
        """A cancel command."""
        if self._device.limiter.admits("cancels"):
            self._command(message, self._cancel)

    def tick(self) -> None:
        """Answer what has waited beyond its deadline: its client has given it up, and others get its place."""
        for job in self._device.queue.remove_late():
            job.expire()

    def _command(self, message: Incoming, act: _Act) -> None:
        """Find the reply topic, then `act`; what is wrong from there on is answered."""
        problem, value = None, None
        try:
            value = parse(message.payload)
        except MessageError as e:
            problem = e
        try:
            address = Address.find(value, message.response_topic, message.correlation_data)
        except MessageError as e:
            if self._device.limiter.admits("refusals"):
                log.info("refused a message on %s: %s", message.topic, problem or e)
            return
        if not self._replies.allows(address.reply_to):
            if self._device.limiter.admits("refusals"):
                root = self._device.topics.reply_root
                log.info("refused a message on %s: its reply topic is outside %s/", message.topic, root)
            return
        try:
            if message.retained:
                self._replies.turn_away(
                    address, "retained", "a command must not be retained: publish it without the retain flag."
                )
            elif problem:
                raise problem
            else:
                act(message, value, address)
        except MessageError as e:
            self._replies.turn_away(address, e.code, str(e))

    def _accept(self, message: Incoming, value: Any, address: Address, *, pooled: bool) -> None:
        arrived_s = time.monotonic()
        if self._is_repeat(address.key):
            log.info("dropped a repeated request of %s", address.reply_to)
            return None
        device, request = self._device, Request.from_value(value)
        if request.model is not None and request.model not in device.runner.names:
            names = ", ".join(map(repr, device.runner.names))
            return self._replies.turn_away(
                address, "unknown_model", f"this device has no model {request.model!r}; it has {names}."
            )
        trouble = device.hardware.trouble
        if trouble and (pooled or device.runner.idle):  # an answer under way waits for it, and so do those after it
            return self._replies.turn_away(address, "unavailable", trouble)
        job = RequestJob(
            device,
            self._replies,
            request,
            address,
            arrived_s=arrived_s,
            expiry_s=message.expiry_s,
            pooled=pooled,
            forget=partial(self._forget, address.key),
        )
        if request.accept and device.queue.has_room:  # sent first: the worker thread may answer at once
            self._replies.accepted(address)
        if not device.queue.add_request(job):
            if device.queue.closed:
                return self._replies.turn_away(address, "unavailable", SHUTTING_DOWN)
            wait_ms = int(device.runner.average_ms * (len(device.queue) + 1))
            return self._replies.turn_away(
                address, "busy", f"{device.queue.limit} requests are waiting already; ask again later.", wait_ms
            )
        self._remember(address.key)
        return None

    def _cancel(self, message: Incoming, value: Any, address: Address) -> None:
        if value is not None:
            Cancel.from_value(value)
        if address.key is None:
            raise MessageError("a cancel command needs the Correlation Data (or id) of the request.")
        job = self._device.queue.cancel(address.key)
        if isinstance(job, RequestJob):
            job.cancelled()

    def _is_repeat(self, key: Hashable | None) -> bool:
        with self._lock:
            return key is not None and key in self._seen

    def _remember(self, key: Hashable | None) -> None:
        if key is not None:
            with self._lock:
                self._seen[key] = None
                if len(self._seen) > REMEMBERED:
                    self._seen.popitem(last=False)

    def _forget(self, key: Hashable | None) -> None:
        with self._lock:
            self._seen.pop(key, None)
