"""Runs the links of a device: a reading comes in, and the model's answer to it goes out.

What a link cannot use is counted, and reported in `out/event`, at most once a minute for each link and kind of
trouble, so that a broken sensor neither stops anything nor floods the broker. All counts are in `out/health`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from paho.mqtt.matcher import MQTTMatcher

from device_runtime.brain.recorder import Recorder
from device_runtime.device.extension import Device, Extension, Route
from device_runtime.device.extensions.escalation import Escalations
from device_runtime.device.extensions.link_places import LinkPlaces
from device_runtime.device.extensions.reading_job import ReadingJob
from device_runtime.device.runner import Model
from device_runtime.fleet.link_faults import why_left_out, why_refused
from device_runtime.fleet.links import (
    MAX_WINDOW_BYTES,
    MAX_WINDOWS_BYTES,
    Link,
    LinkError,
    Reading,
    Windows,
    read,
)
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.strict_json import MessageError, dump

__all__ = ["LinkRunner"]

EVENT_INTERVAL_S = 60.0
MAX_REMEMBERED = 4096  # retained topics whose last reading is known

log = logging.getLogger("stonechat.serve")


class LinkRunner(Extension):
    """The links of one device."""

    def __init__(self, device: Device, places: LinkPlaces, escalations: Escalations, recorder: Recorder) -> None:
        self._device, self.places, self.escalations = device, places, escalations
        self.recorder = recorder
        links = device.config.links
        share = MAX_WINDOWS_BYTES // max(1, sum(link.window is not None for link in links))
        self._by_filter: dict[str, list[Windows]] = {}
        for link in links:
            desk = escalations.of(link)
            redactor = desk.redactor if desk is not None else None
            kept = recorder.redactor_of(redactor) if recorder.wants(False) else None
            size = min(MAX_WINDOW_BYTES, share)
            windows = Windows(link, max_bytes=size, redactor=redactor, kept_redactor=kept)
            self._by_filter.setdefault(link.source, []).append(windows)
        self._filters = list(self._by_filter)
        self._matcher = MQTTMatcher()  # type: ignore[no-untyped-call]
        for pattern in self._filters:
            self._matcher[pattern] = pattern
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {}  # link -> kind of trouble -> readings
        self._reported_s: dict[tuple[str, str], float] = {}
        self._refusals: dict[str, dict[str, str]] = {link.name: {} for link in links}  # link -> model -> why it cannot
        self._refused: dict[str, str] = {}  # link -> why it is left out: none of its models can answer it
        self._newest_s: dict[str, float] = {}  # link, or its topic and place -> when the reading came that it is of

        device.runner.when_opened(self._hold_against)

    def _hold_against(self, name: str, model: Model) -> None:
        """Leave out the links that no model can answer which they may ask, and go on with the others."""
        config, names = self._device.config, self._device.runner.names
        settings = next(entry for entry in config.models if entry.name == name)
        manifest, check_schema = self._device.runner.manifest_of(name), getattr(model, "check_schema", None)
        for link in config.links:
            models = link.may_ask(names, routed=config.routing is not None)
            if name not in models:
                continue
            refusal = why_refused(link, name, manifest, settings.max_new, check_schema)
            with self._lock:
                earlier, self._refusals[link.name][name] = self._refusals[link.name].get(name, ""), refusal
                why = why_left_out(link, models, self._refusals[link.name])
                before = self._refused.pop(link.name, "")
                self._refused |= {link.name: why} if why else {}
            if why and why != before:
                log.error("link %s is left out until its model or the fleet file is another: %s", link.name, why)
            elif before and not why:
                log.info("link %s is taken up again", link.name)
            if refusal and not why and refusal != earlier:
                log.warning("link %s has no answer to what the router finds %s for: %s", link.name, name, refusal)

    def refusal(self, link: Link, model: str) -> str:
        """Why a model cannot answer a link, as far as is known; empty where it can. From any thread."""
        with self._lock:
            return self._refusals[link.name].get(model, "")

    def routes(self) -> Sequence[Route]:
        """One for each filter. Stored readings are not replayed: a link acts on what is new."""
        return [
            Route(Subscription(f, replay_retained=False, id=number), self.receive)
            for number, f in enumerate(self._filters, 1)
        ]

    def info(self) -> dict[str, Any]:
        """The links that are left out, with why."""
        with self._lock:
            return {"links_refused": dict(self._refused)} if self._refused else {}

    def health(self) -> dict[str, Any]:
        """How many readings met trouble, by link and kind, where `overload` are those that gave way to others."""
        with self._lock:
            counts = {link: dict(counts) for link, counts in self._counts.items()}
            return {"links": counts or None}

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
            with self._lock:
                refused = self._refused.get(windows.link.name)
            if refused is not None:
                self.trouble(windows.link, "link_refused", message.topic, refused)
                continue
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
                if not job.goes_elsewhere():
                    self.queue(job)

    def queue(self, job: ReadingJob) -> None:
        """Have a reading wait for the model. From any thread."""
        if not self._device.queue.add_reading(job.place, job, job.link.overload):
            self.count(job.link, "overload")

    def is_newest(self, topic: str, received_s: float) -> bool:
        """Whether nothing newer was answered on a retained topic: an answer from elsewhere may come late."""
        with self._lock:
            if len(self._newest_s) > MAX_REMEMBERED:
                self._newest_s.clear()
            if self._newest_s.get(topic, received_s) > received_s:
                return False
            self._newest_s[topic] = received_s
            return True

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
