"""Readings in, answers out: runs the links of a device.

What a link cannot use is counted, and told in `out/event`, at most once a minute for each link and kind of trouble,
so that a broken sensor neither stops anything nor floods the broker. All counts are in `out/health`.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from device_runtime.device.generation import Run, incomplete
from device_runtime.device.queue import Job, WorkLine
from device_runtime.errors import StonechatError
from device_runtime.fleet.links import Link, LinkError, Wakeup, Windows, read
from device_runtime.mqtt.client import Incoming, Subscription
from device_runtime.mqtt.messages import Final, Request
from device_runtime.mqtt.strict_json import MessageError, dump
from device_runtime.mqtt.topics import DeviceTopics, matches

__all__ = ["Sensors"]

EVENT_INTERVAL_S = 60.0

log = logging.getLogger("stonechat.serve")


class Publish(Protocol):
    """`Client.publish`, as far as it is used here."""

    def __call__(self, topic: str, payload: bytes, *, qos: int = 0) -> object: ...


class Deliver(Protocol):
    """Publishes with QoS 1, after a power cut if need be; returns why it would not outlive one."""

    def __call__(self, topic: str, payload: bytes, *, retain: bool = False) -> str: ...


class Sensors:
    """The links of one device at work."""

    def __init__(
        self,
        device: str,
        links: Sequence[Link],
        line: WorkLine,
        publish: Publish,
        deliver: Deliver,
        generate: Callable[[Request, Run], Final],
    ) -> None:
        self._device, self._line, self._publish, self._generate = device, line, publish, generate
        self._deliver = deliver
        self._windows = [Windows(link) for link in links]
        self._filters = list(dict.fromkeys(link.source for link in links))
        self._topics = DeviceTopics(device)
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {}  # link -> kind of trouble -> readings
        self._told_s: dict[tuple[str, str], float] = {}

    def subscriptions(self) -> list[Subscription]:
        """One for each filter. Stored readings are not replayed: a link acts on what is new."""
        return [Subscription(f, replay_retained=False, id=number) for number, f in enumerate(self._filters, 1)]

    def troubles(self) -> dict[str, dict[str, int]]:
        """How many readings met trouble, by link and kind; `overload` are those that gave way to others."""
        with self._lock:
            return {link: dict(counts) for link, counts in self._counts.items()}

    def receive(self, message: Incoming) -> None:
        """Handle a reading, in the network thread."""
        if message.retained:
            return
        if message.subscription_ids:  # overlapping filters may deliver a message more than once; each names its filters
            filters = [self._filters[i - 1] for i in message.subscription_ids if 0 < i <= len(self._filters)]
        else:
            filters = [f for f in self._filters if matches(f, message.topic)]
        woken = [w for w in self._windows if w.link.source in filters]
        try:
            reading = read(message.topic, message.payload, time.monotonic())
        except MessageError as e:
            for windows in woken:
                self._trouble(windows.link, "unparsable_reading", message.topic, str(e))
            return
        for windows in woken:
            try:
                wakeup = windows.consider(reading)
            except LinkError as e:
                self._trouble(windows.link, "unusable_reading", message.topic, str(e))
                continue
            if wakeup:
                self._queue(wakeup)

    def _queue(self, wakeup: Wakeup) -> None:
        link, reading = wakeup.link, wakeup.reading
        deadline_s = reading.received_s + link.deadline_s
        job = Job(
            key=None,
            run=lambda: self._answer(wakeup, deadline_s),
            start_by_s=deadline_s,
            expired=lambda: self._late(wakeup),
        )
        if not self._line.add_reading((link.name, reading.topic), job, link.overload):
            self._count(link, "overload")

    def _answer(self, wakeup: Wakeup, deadline_s: float) -> None:
        link, reading = wakeup.link, wakeup.reading
        log.info("link %s woke on %s", link.name, reading.topic)
        try:
            request = Request(({"role": "user", "content": wakeup.prompt},), link.model, schema=link.answer)
            final = self._generate(request, Run(deadline_s))
        except StonechatError as e:
            return self._trouble(link, e.code, reading.topic, str(e))
        except Exception:
            self._trouble(link, "failed", reading.topic, "the model failed on this reading; see the device's log.")
            raise
        if final.finish == "deadline":
            return self._late(wakeup)
        if final.finish == "cancelled":  # the device is shutting down
            return None
        said: dict[str, Any] = {"text": final.text}
        if link.answer is not None:
            if final.finish != "stop":
                return self._trouble(link, "incomplete", reading.topic, incomplete(final))
            said = {"answer": json.loads(final.text)}
        payload = dump(said | {"reading": reading.value, "link": link.name, "device": self._device})
        if why := self._deliver(wakeup.to, payload):
            self._trouble(link, "not_kept", reading.topic, f"the answer is sent without a copy on the disk: {why}")
        self._deliver(self._topics.link(link.name), payload, retain=True)
        log.info("link %s answered: %d tokens, %.1f tok/s", link.name, final.usage.completion_tokens, final.tps)
        return None

    def _late(self, wakeup: Wakeup) -> None:
        seconds = f"{wakeup.link.deadline_s:g}"
        self._trouble(wakeup.link, "deadline", wakeup.reading.topic, f"no answer within deadline_s ({seconds} s).")

    def _trouble(self, link: Link, kind: str, topic: str, message: str) -> None:
        count, now_s = self._count(link, kind), time.monotonic()
        with self._lock:
            if now_s - self._told_s.get((link.name, kind), -EVENT_INTERVAL_S) < EVENT_INTERVAL_S:
                return
            self._told_s[link.name, kind] = now_s
        log.warning("link %s: %s (%d so far): %s", link.name, kind, count, message)
        event = {"event": kind, "link": link.name, "topic": topic, "message": message, "count": count}
        self._publish(self._topics.event, dump(event), qos=1)

    def _count(self, link: Link, kind: str) -> int:
        with self._lock:
            counts = self._counts.setdefault(link.name, Counter())
            counts[kind] += 1
            return counts[kind]
