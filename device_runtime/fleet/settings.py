"""What a device needs to know, apart from its model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from device_runtime.device.health import INTERVAL_S
from device_runtime.device.models import ModelSettings
from device_runtime.device.rate_limit import Limits
from device_runtime.device.updates import UpdatePlan
from device_runtime.fleet.links import Link
from device_runtime.mqtt.address import BrokerAddress

__all__ = ["DeviceConfig"]


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
    limits: Limits = field(default_factory=Limits)  # of what comes in
    updates: UpdatePlan | None = None  # what it takes over the air; None takes nothing
    home_assistant: bool = True  # show up there by discovery
    health_s: float = INTERVAL_S  # from one `out/health` to the next
