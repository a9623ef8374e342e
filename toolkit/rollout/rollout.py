"""A roll-out: which devices get a bundle next, and when it is over. Pure: `run_rollout.py` does what this decides.

    CANARY ──all canaries run it──> FLEET ──every device has ended──> DONE
       └──────── too many failed ──────┴────────────────────────────> STOPPED      (each may be ABORTED)

Canaries come first, and the rest begins only when they run the bundle. A device that is not online is left for
later: it neither fails nor holds up the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from device_runtime.mqtt.ota_messages import Order, Phase, Report

__all__ = ["Device", "DevicePhase", "Plan", "Rollout", "Stage"]


class DevicePhase(Enum):
    """How far one device is."""

    WAITING = "waiting"
    UPDATING = "updating"
    CONFIRMED = "confirmed"  # it runs the bundle
    FAILED = "failed"  # it runs what it ran before

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self in (DevicePhase.CONFIRMED, DevicePhase.FAILED)


class Stage(Enum):
    """How far the whole is."""

    CANARY = "canary"
    FLEET = "fleet"
    DONE = "done"
    STOPPED = "stopped"  # too many failed
    ABORTED = "aborted"  # the operator's word

    def may_become(self, other: Stage) -> bool:
        """Whether a roll-out may go from here to there."""
        return other in _NEXT[self]


_NEXT = {
    Stage.CANARY: {Stage.FLEET, Stage.DONE, Stage.STOPPED, Stage.ABORTED},
    Stage.FLEET: {Stage.DONE, Stage.STOPPED, Stage.ABORTED},
    Stage.DONE: set[Stage](),
    Stage.STOPPED: set[Stage](),
    Stage.ABORTED: set[Stage](),
}


@dataclass(frozen=True)
class Plan:
    """What is to happen. Does not change."""

    id: str
    bundle: str  # the path of its folder
    manifest_sha256: str
    name: str  # of the bundle
    version: str
    fleet: str  # the path of the fleet file
    group: str
    devices: tuple[str, ...]
    model: str | None = None  # which of their models; None: each device's first
    canary_percent: float = 10.0  # of the devices, at least one
    max_failed_percent: float = 20.0  # of the devices of a stage; more stop the roll-out
    parallel: int = 10  # devices at the same time
    silence_s: float = 1800.0  # without a report, after which a device counts as failed
    url: str | None = None  # of the bundle's folder; None: pieces come over MQTT
    min_tps: float | None = None  # for the trial
    max_rss_mb: float | None = None  # for the trial

    @property
    def canaries(self) -> int:
        """How many come first."""
        return min(len(self.devices), max(1, math.ceil(len(self.devices) * self.canary_percent / 100)))


@dataclass(frozen=True)
class Device:
    """One device of a roll-out."""

    phase: DevicePhase = DevicePhase.WAITING
    session: str = ""  # of its order
    message: str = ""  # why it failed
    code: str = ""  # the same in a word: rolled_back, signature, does_not_fit …
    tokens_per_s: float | None = None  # what its trial measured


@dataclass(frozen=True)
class Rollout:
    """A plan, and how far it is."""

    plan: Plan
    devices: dict[str, Device]
    stage: Stage = Stage.CANARY
    canaries: tuple[str, ...] = ()  # chosen when they are first needed, among those online
    paused: bool = False
    schema: int = 1

    @classmethod
    def of(cls, plan: Plan) -> Rollout:
        """A roll-out that has not begun."""
        return cls(plan, {device: Device() for device in plan.devices})

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.stage in (Stage.DONE, Stage.STOPPED, Stage.ABORTED)

    def count(self, phase: DevicePhase) -> int:
        """Devices in this phase."""
        return sum(device.phase is phase for device in self.devices.values())

    def choose_canaries(self, on_air: Iterable[str]) -> Rollout:
        """Name the devices that come first: those that are online, in the order of the plan."""
        there = [device for device in self.plan.devices if device in set(on_air)]
        return replace(self, canaries=tuple(there[: self.plan.canaries])) if there and not self.canaries else self

    def due(self, on_air: Iterable[str]) -> list[str]:
        """Devices whose update should be ordered now."""
        if self.ended or self.paused:
            return []
        stage = self.canaries if self.stage is Stage.CANARY else self.plan.devices
        there = set(on_air)
        waiting = [d for d in stage if self.devices[d].phase is DevicePhase.WAITING and d in there]
        return waiting[: max(0, self.plan.parallel - self.count(DevicePhase.UPDATING))]

    def order(self, device: str, model: str) -> Order:
        """What to tell a device that is under way."""
        plan = self.plan
        session = self.devices[device].session
        return Order(session, model, plan.manifest_sha256, plan.url, plan.min_tps, plan.max_rss_mb)

    def ordered(self, device: str, session: str) -> Rollout:
        """A device is under way."""
        return self._with(device, Device(DevicePhase.UPDATING, session))

    def is_of(self, device: str, report: Report) -> bool:
        """Whether a report is about the update that was ordered last."""
        known = self.devices.get(device)
        return known is not None and known.phase is DevicePhase.UPDATING and known.session == report.session

    def heard(self, device: str, report: Report) -> Rollout:
        """A device reports; what is not of this roll-out changes nothing."""
        if not self.is_of(device, report):
            return self
        known = self.devices[device]
        if report.phase is Phase.CONFIRMED:
            return self._with(device, replace(known, phase=DevicePhase.CONFIRMED, tokens_per_s=report.tokens_per_s))
        if report.phase.ended:
            return self.failed(device, report.message or report.phase.value, report.code or "")
        return self

    def failed(self, device: str, message: str, code: str = "") -> Rollout:
        """A device did not take the bundle."""
        return self._with(device, replace(self.devices[device], phase=DevicePhase.FAILED, message=message, code=code))

    @property
    def codes(self) -> frozenset[str]:
        """Why devices failed."""
        return frozenset(device.code for device in self.devices.values() if device.phase is DevicePhase.FAILED)

    def abort(self) -> Rollout:
        """Begin no more; devices that are under way end by themselves."""
        return replace(self, stage=Stage.ABORTED) if self.stage.may_become(Stage.ABORTED) else self

    def _with(self, device: str, now: Device) -> Rollout:
        return replace(self, devices=self.devices | {device: now})._advanced()

    def _advanced(self) -> Rollout:
        """The stage that follows from the devices."""
        stage = self.canaries if self.stage is Stage.CANARY else self.plan.devices
        phases = [self.devices[device].phase for device in stage]
        failed = sum(phase is DevicePhase.FAILED for phase in phases)
        if self.ended or not phases:
            return self
        if failed * 100 > self.plan.max_failed_percent * len(phases):
            return replace(self, stage=Stage.STOPPED)
        if not all(phase.ended for phase in phases):
            return self
        if self.stage is Stage.CANARY and len(self.canaries) < len(self.plan.devices):
            return replace(self, stage=Stage.FLEET)._advanced()
        return replace(self, stage=Stage.DONE)
