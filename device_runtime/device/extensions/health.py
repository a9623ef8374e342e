"""Publishes `out/health`, once a minute."""

from __future__ import annotations

import time
from collections.abc import Sequence

from device_runtime.device.extension import Device, Extension
from device_runtime.device.statistics import Statistics
from device_runtime.mqtt.strict_json import dump

__all__ = ["HealthReports"]


class HealthReports(Extension):
    """The figures of the device, of its hardware and of its other extensions in one message."""

    def __init__(self, device: Device, statistics: Statistics, others: Sequence[Extension]) -> None:
        self._device, self._statistics, self._others = device, statistics, others
        self._next_s = time.monotonic()

    def tick(self) -> None:
        """Publish when it is time."""
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + self._device.config.health_s
        fields = self._statistics.to_fields(len(self._device.queue), dict(self._device.limiter.counts))
        fields |= self._device.runner.health()
        for extension in self._others:
            fields |= extension.health()
        fields |= self._device.hardware.health()
        present = {name: value for name, value in fields.items() if value is not None}
        self._device.client.publish(self._device.topics.health, dump(present))
