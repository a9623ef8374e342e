"""Sends what a device has kept of its answers to an operator, page by page."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from device_runtime.brain.kept_examples import KeptLines
from device_runtime.brain.recorder import Recorder
from device_runtime.device.extension import Device, Extension, Route
from device_runtime.device.extensions.request_job import Replies
from device_runtime.mqtt.messages import Address, AddressFields
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.strict_json import MessageError, dump, parse, read
from device_runtime.records.constraints import Range

__all__ = ["RecordsQuery", "RecordsReader"]

EXPIRY_S = 3600.0  # between two looks at what is too old
MAX_PAGE_BYTES = 200_000  # of one reply

log = logging.getLogger("stonechat.serve")


@dataclass(frozen=True)
class RecordsQuery(AddressFields):
    """`in/records`: a page of what a device has kept."""

    kind: Annotated[Literal["answers", "examples"], "records of answers, or examples for the next training"] = "answers"
    after: Annotated[int, Range(0, 2**53), "skip so many: `next` of the page before"] = 0
    limit: Annotated[int, Range(1, 1000), "at most so many"] = 50


class RecordsReader(Extension):
    """Sends what is kept to those whom the broker's access list lets ask for it."""

    capabilities = ("records",)

    def __init__(self, device: Device, recorder: Recorder, *examples: KeptLines) -> None:
        """`examples`: of larger models and of people."""
        self._device, self._recorder, self._replies = device, recorder, Replies(device)
        self._sources = {"answers": (recorder.kept,), "examples": examples}
        self._next_expiry_s = 0.0

    def routes(self) -> Sequence[Route]:
        """Its own commands."""
        own = self._device.topics
        topics = (own.records, own.records_by("+"))
        return [Route(Subscription(topic, tell_retained=True), self.receive) for topic in topics]

    def tick(self) -> None:
        """Forget what is too old."""
        if time.monotonic() >= self._next_expiry_s:
            self._next_expiry_s = time.monotonic() + EXPIRY_S
            self._recorder.expire()

    def receive(self, message: Incoming) -> None:
        """Answer a query."""
        if message.retained or not self._device.limiter.admits("requests"):
            return
        vouched = "" if message.topic == self._device.topics.records else message.topic.rpartition("/")[2]
        value: Any = None
        problem: MessageError | None = None  # to be said, where there is an address beside the payload
        try:
            value = parse(message.payload)
        except MessageError as error:
            problem = error
        try:
            address = Address.find(value, message.response_topic, message.correlation_data)
            client = self._replies.client_of(address.reply_to)
            if client is None or (vouched and client != vouched):
                log.info("refused a query on %s: its reply topic is another's", message.topic)
                return
            address = replace(address, client=vouched)
        except MessageError as error:
            log.info("refused a query on %s: %s", message.topic, problem or error)
            return
        try:
            if problem is not None:
                raise problem
            query: RecordsQuery = read(RecordsQuery, value, "a query for records")
        except MessageError as error:
            self._replies.turn_away(address, error.code, str(error))
            return
        entries = [entry for kept in self._sources[query.kind] for entry in kept.entries()]
        page: list[Any] = []
        size = 0
        for entry in entries[query.after : query.after + query.limit]:
            size += len(dump({"entry": entry}))
            if page and size > MAX_PAGE_BYTES:
                break
            page.append(entry)
        end = query.after + len(page)
        fields = {"records": page, "total": len(entries), "next": end if end < len(entries) else None}
        self._replies.send(address, {**fields, "device": self._device.config.device}, qos=1)
