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
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

from device_runtime.brain.recorder import Recorder
from device_runtime.device.extension import Device, Extension, Route
from device_runtime.device.extensions.escalation import Escalations
from device_runtime.device.extensions.request_job import Replies, RequestJob
from device_runtime.device.rate_limit import Kind
from device_runtime.mqtt.messages import Address, Cancel, Request
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.strict_json import MessageError, parse

__all__ = ["Requests"]

REMEMBERED = 256  # requests whose repeats are recognised

log = logging.getLogger("stonechat.serve")

_Act = Callable[[Incoming, Any, Address], None]


class Requests(Extension):
    """The requests to one device, and to the pool that it is in."""

    def __init__(self, device: Device, escalations: Escalations, recorder: Recorder) -> None:
        self._device, self._replies, self._escalations = device, Replies(device), escalations
        self._recorder = recorder
        pool = [device.pool.generate] if device.pool is not None else []
        self._plain = frozenset([device.topics.generate, device.topics.cancel, *pool])  # topics without a client's name
        self._lock = threading.Lock()
        self._seen: OrderedDict[Hashable, bytes] = OrderedDict()  # a digest of what each asked

    def routes(self) -> Sequence[Route]:
        """The commands of the device; those of its pool come through `PoolMember`."""
        own = self._device.topics
        requests, cancels = (own.generate, own.generate_by("+")), (own.cancel, own.cancel_by("+"))
        return [
            *(Route(Subscription(topic, tell_retained=True), self.receive) for topic in requests),
            *(Route(Subscription(topic, tell_retained=True), self.receive_cancel) for topic in cancels),
        ]

    def receive(self, message: Incoming) -> None:
        """A request to this device."""
        self._command("requests", message, partial(self._accept, pooled=False))

    def receive_pooled(self, message: Incoming) -> None:
        """A request to the pool."""
        self._command("requests", message, partial(self._accept, pooled=True))

    def receive_cancel(self, message: Incoming) -> None:
        """A cancel command."""
        self._command("cancels", message, self._cancel)

    def tick(self) -> None:
        """Answer what has waited beyond its deadline: its client has given it up, and others get its place."""
        for job in self._device.queue.remove_late():
            job.expire()

    def _command(self, kind: Kind, message: Incoming, act: _Act) -> None:
        """Find the reply topic, then `act`; what is wrong from there on is answered."""
        limiter = self._device.limiter
        vouched = "" if message.topic in self._plain else message.topic.rpartition("/")[2]  # by the access list
        if not limiter.admits(kind, vouched or None):
            return
        problem, value = None, None
        try:
            value = parse(message.payload)
        except MessageError as e:
            problem = e
        try:
            address = Address.find(value, message.response_topic, message.correlation_data)
            address = replace(address, client=vouched)
        except MessageError as e:
            if limiter.admits("refusals", vouched or None):
                log.info("refused a message on %s: %s", message.topic, problem or e)
            return
        client = self._replies.client_of(address.reply_to)
        if client is None or (vouched and client != vouched):
            if limiter.admits("refusals", vouched or None):
                whose = f", for {vouched}" if vouched else ""
                root = self._device.topics.reply_root
                log.info("refused a message on %s: its reply topic is outside %s/%s", message.topic, root, whose)
            return
        if not vouched and not limiter.admits_client(kind, client):  # here a name is a hint
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
        request = Request.from_value(value)
        asked = sha256(replace(request, deadline_ms=None).to_json()).digest()  # a repeat has less time left
        if (before := self._seen_as(address.key)) is not None:
            # Its client, or the broker, may have been away when it ended. Who asks something else gets no old answer.
            ended = before == asked and self._replies.again(address)
            what = "answered again" if ended else "dropped"
            why = "" if before == asked else ": it asks something else than the first with its Correlation Data"
            log.info("%s a repeated request of %s%s", what, self._replies.short(address), why)
            return None
        self._replies.forget(address)
        device = self._device
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
            escalations=self._escalations,
            recorder=self._recorder,
        )
        if request.accept and device.queue.has_room_for(job):  # sent first: the worker thread may answer at once
            self._replies.accepted(address)
        if job.goes_elsewhere() or job.queue():
            self._remember(address.key, asked)
        return None

    def _cancel(self, message: Incoming, value: Any, address: Address) -> None:
        if value is not None:
            Cancel.from_value(value)
        if address.key is None:
            raise MessageError("a cancel command needs the Correlation Data (or id) of the request.")
        job = self._device.queue.cancel(address.key)
        if isinstance(job, RequestJob):
            job.cancelled()
        elif self._escalations.cancel(address.key):
            self._replies.cancelled(address)

    def _seen_as(self, key: Hashable | None) -> bytes | None:
        with self._lock:
            return self._seen.get(key)

    def _remember(self, key: Hashable | None, asked: bytes) -> None:
        if key is not None:
            with self._lock:
                self._seen[key] = asked
                if len(self._seen) > REMEMBERED:
                    self._seen.popitem(last=False)

    def _forget(self, key: Hashable | None) -> None:
        with self._lock:
            self._seen.pop(key, None)
