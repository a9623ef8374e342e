"""What a device needs to know, apart from its model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from device_runtime.fleet.links import Link
from device_runtime.fleet.policies.escalation import Escalation
from device_runtime.fleet.policies.recording import Recording
from device_runtime.fleet.policies.routing import Routing
from device_runtime.machine.power import Power
from device_runtime.mqtt.address import BrokerAddress

__all__ = ["HEALTH_INTERVAL_S", "DeviceConfig", "ModelSettings", "RateLimits"]

HEALTH_INTERVAL_S = 60.0


@dataclass(frozen=True)
class ModelSettings:
    """What a device needs to know of a model, apart from the model."""

    name: str = "default"  # as requests and links call it
    system: str | None = None  # goes before messages that have no system message
    max_new: int | None = None  # tokens, when a request does not say


@dataclass(frozen=True)
class RateLimits:
    """Messages a second, over two seconds. Requests, cancels and refusals: of each client; ten times as many of all."""

    requests: float = 500.0
    cancels: float = 500.0
    readings: float = 5000.0  # a reading costs about 0.14 ms of a desk machine's core
    refusals: float = 50.0  # error replies to, and log lines about, what was not accepted: junk is not amplified
    announcements: float = 1.0  # to Home Assistant, when it has started, and to clients that ask who is there
    updates: float = 10.0  # requests for one; of their chunks only those are read that were asked for


@dataclass(frozen=True)
class DeviceConfig:
    """One device."""

    device: str  # its id
    broker: BrokerAddress
    state_dir: Path  # keeps the boot counter
    models: tuple[ModelSettings, ...] = (ModelSettings(),)  # the first answers requests that name none
    links: tuple[Link, ...] = ()
    pool: str | None = None  # the group whose requests this device shares
    queue: int = 8  # requests that may wait
    limits: RateLimits = field(default_factory=RateLimits)  # of what comes in
    home_assistant: bool = True  # show up there by discovery
    escalate: Escalation | None = None  # where what its models should not answer alone goes on to
    routing: Routing | None = None  # which model answers what names none; None: the first
    recording: Recording | None = None  # what is kept of answers; None: nothing, but a request may ask for its record
    power: Power | None = None  # what its board draws, where that is known
    health_s: float = HEALTH_INTERVAL_S  # from one `out/health` to the next
