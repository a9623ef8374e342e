"""Runs the links of a device: a reading comes in, and the model's answer to it goes out.

What a link cannot use is counted, and reported in `out/event`, at most once a minute for each link and kind of
trouble, so that a broken sensor neither stops anything nor floods the broker. All counts are in `out/health`.
"""

from __future__ import annotations

import datetime
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from paho.mqtt.matcher import MQTTMatcher

from device_runtime.device.extension import Device, Extension, Route
from device_runtime.device.extensions.link_places import LinkPlaces
from device_runtime.device.queue import Job
from device_runtime.device.runner import CancellableRun, incomplete
from device_runtime.errors import StonechatError
from device_runtime.fleet.links import (
    MAX_WINDOW_BYTES,
    MAX_WINDOWS_BYTES,
    Link,
    LinkError,
    Reading,
    Wakeup,
    Windows,
    read,
)
from device_runtime.fleet.payload import read_payload
from device_runtime.fleet.questions import answer_fields, is_decided
from device_runtime.mqtt.messages import Final, Request
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.strict_json import MessageError, dump

__all__ = ["LinkRunner"]

EVENT_INTERVAL_S = 60.0

log = logging.getLogger("stonechat.serve")


class LinkRunner(Extension):
    """The links of one device."""

    def __init__(self, device: Device, places: LinkPlaces) -> None:
        self._device, self.places = device, places
        links = device.config.links
        share = MAX_WINDOWS_BYTES // max(1, sum(link.window is not None for link in links))
        self._by_filter: dict[str, list[Windows]] = {}
        for link in links:
            windows = Windows(link, max_bytes=min(MAX_WINDOW_BYTES, share))
            self._by_filter.setdefault(link.source, []).append(windows)
        self._filters = list(self._by_filter)
        self._matcher = MQTTMatcher()  # type: ignore[no-untyped-call]
        for pattern in self._filters:
            self._matcher[pattern] = pattern
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {}  # link -> kind of trouble -> readings
        self._reported_s: dict[tuple[str, str], float] = {}

    def routes(self) -> Sequence[Route]:
        """One for each filter. Stored readings are not replayed: a link acts on what is new."""
        return [
            Route(Subscription(f, replay_retained=False, id=number), self.receive)
            for number, f in enumerate(self._filters, 1)
        ]

    def health(self) -> dict[str, Any]:
        """How many readings met trouble, by link and kind; `overload` are those that gave way to others."""
        with self._lock:
            return {"links": {link: dict(counts) for link, counts in self._counts.items()} or None}

    def receive(self, message: Incoming) -> None:
        """Handle a reading, in the network thread."""
        if message.retained or not self._device.limiter.admits("readings"):
            return
        if message.subscription_ids:  # overlapping filters may deliver a message more than once; each names its filters
            filters = [self._filters[i - 1] for i in message.subscription_ids if 0 < i <= len(self._filters)]
        else:
            filters = list(self._matcher.iter_match(message.topic))  # type: ignore[no-untyped-call]
        now_s = time.monotonic()
        readings: dict[str, Reading | MessageError] = {}  # by the way they are parsed
        for windows in (w for pattern in dict.fromkeys(filters) for w in self._by_filter[pattern]):
            how = windows.link.parse
            if how not in readings:
                try:
                    readings[how] = read(message.topic, message.payload, now_s, how)
                except MessageError as e:
                    readings[how] = e
            reading = readings[how]
            if isinstance(reading, MessageError):
                self.trouble(windows.link, "unparsable_reading", message.topic, str(reading))
                continue
            try:
                wakeup = windows.consider(reading)
            except LinkError as e:
                self.trouble(windows.link, "unusable_reading", message.topic, str(e))
                continue
            if wakeup:
                job = ReadingJob(self._device, self, wakeup)
                place = wakeup.link.name, reading.topic
                if not self._device.queue.add_reading(place, job, wakeup.link.overload):
                    self.count(wakeup.link, "overload")

    def trouble(self, link: Link, kind: str, topic: str, message: str) -> None:
        """Count a reading that got no answer, and report it. From any thread."""
        count, now_s = self.count(link, kind), time.monotonic()
        with self._lock:
            if now_s - self._reported_s.get((link.name, kind), -EVENT_INTERVAL_S) < EVENT_INTERVAL_S:
                return
            self._reported_s[link.name, kind] = now_s
        log.warning("link %s: %s (%d so far): %s", link.name, kind, count, message)
        event = {"event": kind, "link": link.name, "topic": topic, "message": message, "count": count}
        self._device.client.publish(self._device.topics.event, dump(event), qos=1)

    def count(self, link: Link, kind: str) -> int:
        """Count a reading, by link and by what became of it. From any thread."""
        with self._lock:
            counts = self._counts.setdefault(link.name, Counter())
            counts[kind] += 1
            return counts[kind]


class ReadingJob(Job):
    """A reading that woke a link."""

    def __init__(self, device: Device, links: LinkRunner, wakeup: Wakeup) -> None:
        self.start_by_s = wakeup.reading.received_s + wakeup.link.deadline_s
        # Its value is read again from its payload: while it waits, it would take many times the memory.
        light = replace(wakeup.reading, value={})
        self._device, self._links, self._wakeup = device, links, replace(wakeup, reading=light)
        self._run = CancellableRun(self.start_by_s)

    def run(self) -> None:
        """Have the model answer, and deliver the answer."""
        link, reading = self._wakeup.link, self._wakeup.reading
        log.info("link %s woke on %s", link.name, reading.topic)
        try:
            final = self._answer()
        except StonechatError as e:
            return self._trouble(e.code, str(e))
        except Exception:
            self._trouble("failed", "the model failed on this reading; see the device's log.")
            raise
        if final.finish == "deadline":
            return self.expire()
        if final.finish == "cancelled":  # the device is shutting down
            return None
        if link.answer is not None and final.finish != "stop":
            return self._trouble("incomplete", incomplete(final))
        return self._deliver(final)

    def _answer(self) -> Final:
        """The model's, or where everything is decided, what is."""
        question, decided = self._wakeup.question, self._wakeup.decided
        if is_decided(self._wakeup.link, decided):
            return Final(0, json.dumps(decided, ensure_ascii=False), "stop")
        request = Request(question.messages, self._wakeup.link.model, schema=question.schema)
        hints = {"head": question.head, "nothing": question.nothing}
        return self._device.runner.generate(request, self._run, hints=hints)

    def expire(self) -> None:
        """There was no answer in time."""
        self._trouble("deadline", f"no answer within deadline_s ({self._wakeup.link.deadline_s:g} s).")

    def _deliver(self, final: Final) -> None:
        link, reading = self._wakeup.link, self._wakeup.reading
        answer, held_back = answer_fields(link, final.text, final.confidence or {}, final.reason or "")
        value = read_payload(reading.payload, link.parse)
        about = {"link": link.name, "device": self._device.config.device, "topic": reading.topic, "time": _now()}
        payload = dump(answer | {"reading": value} | about)
        if held_back:
            self._links.count(link, "unsure")
        elif why := self._device.delivery.deliver(self._wakeup.to, payload):
            self._trouble("not_kept", f"the answer is sent without a copy on the disk: {why}")
        place = self._links.places.note(link, reading.topic)
        self._device.delivery.deliver(self._device.topics.link(link.name), payload, retain=True)
        if place is not None:
            self._device.delivery.deliver(self._device.topics.link(link.name, place), payload, retain=True)
        log.info("link %s answered: %d tokens, %.1f tok/s", link.name, final.usage.completion_tokens, final.tps)

    def _trouble(self, kind: str, message: str) -> None:
        self._links.trouble(self._wakeup.link, kind, self._wakeup.reading.topic, message)


def _now() -> str:
    """When an answer was given, in UTC: `2026-11-27T15:20:00Z`."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
