"""The seam between a device and its features.

A feature (answering requests, links, updates, Home Assistant, …) is an `Extension`: it names the topics that it
listens to, and is called when one of their messages comes, when the device has connected, and a few times a second.
`Service` connects, hands each message to the extensions that listen to its topic, and runs the jobs that they queue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from paho.mqtt.matcher import MQTTMatcher

from device_runtime.brain.router import Router
from device_runtime.device.delivery import Delivery
from device_runtime.device.hardware import Hardware
from device_runtime.device.lifecycle import Lifecycle
from device_runtime.device.queue import JobQueue
from device_runtime.device.rate_limit import RateLimiter
from device_runtime.device.runner import ModelRunner
from device_runtime.fleet.links import Link
from device_runtime.fleet.settings import DeviceConfig
from device_runtime.mqtt.client import Client
from device_runtime.mqtt.messages import Info
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.topics import DeviceTopics, PoolTopics, unshared

__all__ = ["Device", "Extension", "Route", "RoutingTable"]

Handler = Callable[[Incoming], None]


@dataclass(frozen=True)
class Device:
    """What an extension may use of the device that it belongs to."""

    config: DeviceConfig
    topics: DeviceTopics
    pool: PoolTopics | None
    boot: int  # how often the device has started
    hardware: Hardware
    client: Client
    delivery: Delivery  # for what must not be lost
    limiter: RateLimiter  # of what comes in
    queue: JobQueue  # before the models
    runner: ModelRunner
    lifecycle: Lifecycle
    router: Router | None = None  # finds the model for what names none; None: the first answers
    announce: Callable[[], None] = lambda: None  # publish `out/info` and what else is retained, from any thread

    def answering(self, link: Link, model: str | None = None) -> Link:
        """A link with the schema of the bundle that answers it now, where it has none of its own: after an update, or
        where the router finds the model, that is another than at the start.

        Args:
            model: that answers; None: the link's own, or the device's first.
        """
        name = model or link.model or self.runner.names[0]
        if not link.answer_of_model or self.runner.manifest_of(name) is None:
            return link
        purpose = self.runner.purpose_of(name)
        return link.answered_with(None if purpose is None else purpose.answer)


@dataclass(frozen=True)
class Route:
    """A subscription, and where its messages go. `handle` runs in the network thread: it must not block."""

    subscription: Subscription
    handle: Handler


class RoutingTable:
    """From topics to handlers. Looking up a topic takes no longer where there are more filters."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._exact: dict[str, list[Handler]] = {}
        self._patterns = MQTTMatcher()  # type: ignore[no-untyped-call]
        patterns: dict[str, list[Handler]] = {}
        for route in routes:
            pattern = unshared(route.subscription.filter)
            table = patterns if "+" in pattern or "#" in pattern else self._exact
            handlers = table.setdefault(pattern, [])
            if route.handle not in handlers:
                handlers.append(route.handle)
        for pattern, handlers in patterns.items():
            self._patterns[pattern] = handlers

    def handlers(self, topic: str) -> list[Handler]:
        """What to call with a message on `topic`, each once."""
        found = list(self._exact.get(topic, ()))
        for handlers in self._patterns.iter_match(topic):  # type: ignore[no-untyped-call]
            found += [handle for handle in handlers if handle not in found]
        return found


class Extension:
    """A feature of a device. Each method does nothing unless it is overridden."""

    capabilities: tuple[str, ...] = ()  # that `out/info` lists because of it

    def routes(self) -> Sequence[Route]:
        """What it listens to, from the first connection on."""
        return ()

    def announce(self, info: Info) -> None:
        """Publish what is retained: after each (re)connect, and when the hardware has come back. Must not block."""

    def tick(self) -> None:
        """Called a few times a second, in the thread of `Service.run`."""

    def info(self) -> dict[str, Any]:
        """Its fields of `out/info`, which is published again when they change. From any thread."""
        return {}

    def health(self) -> dict[str, Any]:
        """Its fields of `out/health`."""
        return {}

    def stop(self) -> None:
        """The device is shutting down: begin nothing new."""

    def join(self) -> None:
        """Wait for the end of what `stop` has ended."""
