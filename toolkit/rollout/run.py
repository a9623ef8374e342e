"""Carries out a roll-out: orders updates as `rollout.py` says, and keeps the results on the disk."""

from __future__ import annotations

import queue
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

from device_runtime.errors import ConfigurationError
from device_runtime.mqtt.messages import DeviceState, Info, State
from device_runtime.mqtt.ota_messages import Phase, Report
from toolkit.rollout.files import RolloutFiles
from toolkit.rollout.rollout import DevicePhase, Rollout, Stage
from toolkit.rollout.sender import Received, Sender

__all__ = ["Runner"]

ROLL_CALL_S = 2.0  # for the states that the broker keeps
_NO_SLOTS = "it takes no updates over the air: its model lies in no slot folder (`stonechat slots install`)"
_NO_BRIDGE = (
    "it is a board on MQTT by itself, which takes updates over its serial line: `stonechat deploy BUNDLE --port PORT`, "
    "or `stonechat bridge` in front of it"
)
_ON_TRIAL = 5  # after the quarters 0 to 4
_ON_AIR = (DeviceState.READY, DeviceState.BUSY, DeviceState.UPDATING)


class Runner:
    """A roll-out under way."""

    def __init__(
        self, rollout: Rollout, files: RolloutFiles, sender: Sender, say: Callable[[str], None], wait_s: float = 0.0
    ) -> None:
        """Prepare.

        Args:
            say: gets a line for people at each event.
            wait_s: how long to wait for devices that are not online, when nothing else is left to do.
        """
        self.rollout = rollout
        self._files, self._sender, self._say, self._wait_s = files, sender, say, wait_s
        self._states: dict[str, DeviceState] = {}
        self._infos: dict[str, Info] = {}
        self._on_their_own: set[str] = set()  # boards with an MQTT client in their firmware
        self._heard_s: dict[str, float] = {}  # device -> when its update last reported
        self._quarters: dict[str, int] = {}  # device -> how much of its files was reported to the operator
        self._stops = 0  # how often `stop` was called

    def stop(self) -> None:
        """Pause, and let what is under way end; the second time, leave at once. For a signal handler."""
        self._stops += 1

    @property
    def interrupted(self) -> bool:
        """Whether `stop` was called."""
        return self._stops > 0

    def run(self) -> Rollout:
        """Go on until it has ended, is paused, or only devices that are not online are left.

        Raises:
            ConfigurationError: the broker does not let us order anything.
        """
        plan = self.rollout.plan
        self._save(replace(self.rollout, paused=False))
        for device in plan.devices:
            self._sender.watch(device)
        self._listen(ROLL_CALL_S, lambda: len(self._infos) == len(plan.devices) == len(self._states))
        alone_since_s = time.monotonic()
        while self._stops < 2:
            self._obey()
            self._begin()
            self._listen(0.2)
            if self._sender.forbidden:
                raise ConfigurationError(
                    f"the broker does not let us order updates. Name an operator with --as (`stonechat broker init DIR "
                    f"--operator NAME` makes one), and go on with: stonechat rollout resume {plan.id}"
                )
            self._give_up_the_silent()
            if self.rollout.count(DevicePhase.UPDATING):  # what is under way is not left alone
                alone_since_s = time.monotonic()
                continue
            waited = time.monotonic() - alone_since_s >= self._wait_s and not self.rollout.due(self._on_air())
            if self.rollout.ended or self.rollout.paused or waited:
                break
        return self.rollout

    def _on_air(self) -> list[str]:
        return [device for device, state in self._states.items() if state in _ON_AIR and device in self._infos]

    def _obey(self) -> None:
        wish = self._files.take_wish(self.rollout.plan.id)
        if wish == "abort":
            self._save(self.rollout.abort())
        elif (wish == "pause" or self.interrupted) and not (self.rollout.paused or self.rollout.ended):
            self._save(replace(self.rollout, paused=True))
            if under_way := self.rollout.count(DevicePhase.UPDATING):
                self._say(f"paused; {under_way} under way will end first (Ctrl-C leaves them at once)")

    def _begin(self) -> None:
        on_air = self._on_air()
        if self.rollout.stage is Stage.CANARY and not self.rollout.canaries:
            self._save(self.rollout.choose_canaries(on_air))
            if self.rollout.canaries:
                self._say(f"canaries: {', '.join(self.rollout.canaries)}")
        for device in self.rollout.due(on_air):
            self._save(self.rollout.ordered(device, secrets.token_hex(8)))  # on the disk before it is online
            self._send(device)

    def _send_again(self, device: str) -> None:
        """A device is there (again): it may have lost the order, or have its answer ready since an earlier run."""
        known = self.rollout.devices.get(device)
        if known is not None and known.phase is DevicePhase.UPDATING and device in self._on_air():
            self._send(device)

    def _send(self, device: str) -> None:
        info = self._infos[device]
        self._heard_s[device] = time.monotonic()
        model = self.rollout.plan.model or info.models[0] if info.models else "default"
        if "ota" not in info.capabilities:
            self._fail(device, _NO_BRIDGE if device in self._on_their_own else _NO_SLOTS)
        elif model not in info.models:
            self._fail(device, f"it has no model {model!r}; it has {', '.join(info.models)}")
        else:
            self._sender.order(device, self.rollout.order(device, model))

    def _listen(self, for_s: float, enough: Callable[[], bool] = lambda: False) -> None:
        end_s = time.monotonic() + for_s
        while (left_s := end_s - time.monotonic()) > 0 and not enough():
            try:
                self._take(self._sender.heard.get(timeout=left_s))
            except queue.Empty:
                return

    def _take(self, heard: Received) -> None:
        device, said = heard
        match said:
            case State():
                if said.mqtt == 3:  # a firmware's client, of MQTT 3.1.1
                    self._on_their_own.add(device)
                was_there = self._states.get(device) in _ON_AIR
                self._states[device] = said.state
                if said.state in _ON_AIR and not was_there:
                    self._send_again(device)
            case Info():
                new = device not in self._infos
                self._infos[device] = said
                if new:
                    self._send_again(device)
            case Report():
                before = self.rollout
                self._heard_s[device] = time.monotonic()
                if before.is_of(device, said):
                    self._tell_progress(device, said)
                after = before.heard(device, said)
                if after is not before:
                    self._save(after)
                    self._tell_end(device)

    def _tell_progress(self, device: str, report: Report) -> None:
        """A line for each quarter of a transfer, and one for its end."""
        if report.phase is Phase.FETCHING and report.total_bytes:
            quarter = 4 * report.done_bytes // report.total_bytes
            if quarter > self._quarters.get(device, -1):
                self._quarters[device] = quarter
                share, megabytes = report.done_bytes / report.total_bytes, report.total_bytes / 1e6
                self._say(f"{device}: has {share:.0%} of {megabytes:,.1f} MB")
        elif report.phase is Phase.TRIAL:
            if self._quarters.get(device, -1) < _ON_TRIAL:
                self._quarters[device] = _ON_TRIAL
                self._say(f"{device}: has all of it, and tries it")
            share = report.done_bytes / report.total_bytes if report.total_bytes else 0.0
            if self._quarters[device] < _ON_TRIAL + int(4 * share):
                self._quarters[device] = _ON_TRIAL + int(4 * share)
                self._say(f"{device}: {share:.0%} is in its flash")

    def _give_up_the_silent(self) -> None:
        silence_s = self.rollout.plan.silence_s
        for device, known in self.rollout.devices.items():
            if known.phase is DevicePhase.UPDATING and self._silent_for_s(device) > silence_s:
                self._fail(device, f"no message about its update for {silence_s:g} s")

    def _silent_for_s(self, device: str) -> float:
        return time.monotonic() - self._heard_s.setdefault(device, time.monotonic())

    def _fail(self, device: str, message: str) -> None:
        self._save(self.rollout.failed(device, message))
        self._tell_end(device)

    def _tell_end(self, device: str) -> None:
        self._sender.end(device)
        known = self.rollout.devices[device]
        if known.phase is DevicePhase.CONFIRMED:
            speed = f", {known.tokens_per_s:.1f} tok/s" if known.tokens_per_s else ""
            self._say(f"{device}: runs {self.rollout.plan.version}{speed}")
        else:
            self._say(f"{device}: failed: {known.message}")
        done = sum(d.phase.ended for d in self.rollout.devices.values())
        self._say(f"{self.rollout.stage.value}: {done} of {len(self.rollout.devices)}")

    def _save(self, rollout: Rollout) -> None:
        self.rollout = rollout
        self._files.write(rollout)
