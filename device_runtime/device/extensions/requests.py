"""Answers what a device is asked over MQTT.

Commands are checked in the network thread; a good one waits in the queue. Whatever is wrong with a command is
answered, as far as the command names a reply topic.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
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

log = logging.getLogger("stonechat.serve")

_Act = Callable[[Incoming, Any, Address], None]


class Requests(Extension):
    """The requests to one device, and to the pool that it is in."""

    def __init__(self, device: Device, escalations: Escalations, recorder: Recorder) -> None:
        self._device, self._replies, self._escalations = device, Replies(device), escalations
        self._recorder = recorder
        pool = [device.pool.generate] if device.pool is not None else []
        self._plain = frozenset([device.topics.generate, device.topics.cancel, *pool])  # topics without a client's name

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
        if (before := self._replies.asked(address)) is not None:
            return self._repeated(address, same=before == asked)
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
            escalations=self._escalations,
            recorder=self._recorder,
        )
        # both before it waits: the worker thread may answer at once, or refuse it
        self._replies.begin(address, asked, job)
        if has_room := device.queue.has_room_for(job):
            self._accepted(request, address)
        if not job.goes_elsewhere():
            job.queue()
        elif not has_room and self._replies.under_way(address) is not None:
            self._accepted(request, address)
        return None

    def _repeated(self, address: Address, *, same: bool) -> None:
        """A request whose Correlation Data has come before: its client, or the broker, may have been away since."""
        short, told = self._replies.short(address), "a request has come again that"
        if self._replies.under_way(address) is not None:  # an error would be taken for its end, which is to come
            log.info("dropped: %s of %s is under way%s", told, short, "" if same else ", and asks something else")
        elif not same:  # who asks something else gets no old answer
            self._replies.turn_away(
                address, MessageError.code,
                "another request with this Response Topic and this Correlation Data was answered before; "
                "give each its own Correlation Data (or id).",
            )  # fmt: skip
        elif self._replies.again(address):
            log.info("answered once more: %s of %s has ended", told, short)
        else:
            self._replies.turn_away(
                address, "unavailable",
                "it was answered before, and the answer is not kept any more; ask again with other Correlation Data.",
            )  # fmt: skip

    def _accepted(self, request: Request, address: Address) -> None:
        if request.accept:
            self._replies.accepted(address)

    def _cancel(self, message: Incoming, value: Any, address: Address) -> None:
        if value is not None:
            Cancel.from_value(value)
        if address.key is None:
            raise MessageError("a cancel command needs the Correlation Data (or id) of the request.")
        if (job := self._replies.under_way(address)) is not None:
            job.take_back()
        else:
            self._replies.again(address)  # its client may have been away when that was said
