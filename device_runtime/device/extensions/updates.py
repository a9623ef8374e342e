"""Updates over the air: takes a bundle in beside the one that serves, and has it tried.

A thread of its own fetches, while the model goes on answering. What it has is on the disk (see update/staging.py), so
a cut costs no more than the piece that was on its way. Then the worker thread, the only one to touch the model,
closes it and opens the new one, whose trial comes first: there is never memory needed for both.

Who may send an order is the broker's to say, and what is taken is the keys': a device without keys takes none.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from device_runtime.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES
from device_runtime.bundle.trust import MAX_SIGNATURE_BYTES, SIGNATURE
from device_runtime.device.extension import Device, Extension, Route
from device_runtime.device.queue import Job
from device_runtime.errors import (
    BundleError,
    ConfigurationError,
    RolledBackError,
    SignatureError,
    StonechatError,
    UnreachableError,
    UpdateError,
)
from device_runtime.mqtt.messages import DeviceState
from device_runtime.mqtt.ota_messages import Chunk, Order, Phase, Report, parse_report
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.strict_json import MessageError
from device_runtime.update import durable
from device_runtime.update.active import is_slot_folder, read_state
from device_runtime.update.chunk_source import ChunkSource
from device_runtime.update.http_source import HttpSource
from device_runtime.update.install import has_bundle
from device_runtime.update.policy import Policy
from device_runtime.update.slots import lock
from device_runtime.update.staging import Missing, Source, Staging
from device_runtime.update.state import Last, TrialLimits

__all__ = ["UpdatePlan", "Updates"]

REPORT_S = 0.5  # between reports while fetching
TRIAL_REPORT_S = 2.0  # between reports of a trial; each is kept on the disk
LAST = "ota.json"  # in the state folder: the last report, for an order that comes again
_CALLED_OFF = "called off: another update has been ordered."
_MESSAGE_CHARS = 2000  # of a report; what a model answered in its trial may be of any length

log = logging.getLogger("stonechat.serve")


@dataclass(frozen=True)
class UpdatePlan:
    """What a device takes."""

    folders: Mapping[str, Path]  # the slot folder of each model
    policy: Policy  # what a bundle has to be like
    progress: Callable[[], tuple[int, int]] = lambda: (
        0,
        0,
    )  # bytes done and in all, of a trial that moves the bundle on


class Updates(Extension):
    """The updates of one device, one at a time."""

    capabilities = ("ota",)

    def __init__(self, device: Device, plan: UpdatePlan) -> None:
        """Prepare; nothing happens before an order comes."""
        self._device = device
        self._folders, self._policy, self._progress = plan.folders, plan.policy, plan.progress
        self._last_path = device.config.state_dir / LAST
        self._last = _read_report(self._last_path)
        self._lock = threading.Lock()
        self._order: Order | None = None  # that is being carried out
        self._next: Order | None = None  # that has come meanwhile
        self._chunks: ChunkSource | None = None  # of the order that is being carried out, if it comes over MQTT
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    # the network thread

    def routes(self) -> Sequence[Route]:
        """Orders, and chunks of files."""
        topics = self._device.topics
        return [
            Route(Subscription(topics.ota, tell_retained=True), self._receive_order),
            Route(Subscription(topics.ota_piece), self._receive_chunk),
        ]

    def _receive_order(self, message: Incoming) -> None:
        try:
            if message.retained:
                raise MessageError("a command must not be retained.")
            if self._device.limiter.admits("updates"):
                self.order(message.payload)
        except MessageError as e:
            self._log_refusal(message, e)

    def _receive_chunk(self, message: Incoming) -> None:
        """Take in a chunk of a file; what was not requested is dropped."""
        with self._lock:
            chunks = self._chunks
        try:
            chunk = Chunk.from_payload(message.payload)
        except MessageError as e:
            return self._log_refusal(message, e)
        if chunks is not None:
            chunks.put(chunk)
        return None

    def _log_refusal(self, message: Incoming, error: MessageError) -> None:
        if self._device.limiter.admits("refusals"):
            log.info("refused a message on %s: %s", message.topic, error)

    def order(self, payload: bytes) -> None:
        """Begin an update, or report how far it is. One that is still being fetched makes room for another."""
        order = Order.from_json(payload)
        with self._lock:
            last, current, displaced = self._last, self._order, self._next
            if last is not None and last.session == order.session and (last.phase.ended or current is not None):
                self._publish(last.to_json())  # the operator has missed it
            elif current is not None and current.session == order.session:
                pass  # it came twice, and the first report is on its way
            elif current is None:
                self._order = order
                self._thread = threading.Thread(target=self._run, args=(order,), name="stonechat-update", daemon=True)
                self._thread.start()
            elif last is not None and last.session == current.session and last.phase is Phase.TRIAL:
                message = "another bundle is on trial; send the order again when that has ended."
                self._publish(Report(order.session, Phase.REFUSED, order.model, code="busy", message=message).to_json())
            else:
                if displaced is not None and displaced.session != order.session:
                    self._publish(_refusal(displaced, UnreachableError(_CALLED_OFF)).to_json())
                self._next = order

    def stop(self) -> None:
        """End what is being fetched; the next order continues with it."""
        self._stopping.set()

    def join(self, timeout_s: float = 5.0) -> None:
        """Wait for the end of what `stop` has ended, but not for a server that does not answer."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    # the thread of the update

    def _run(self, order: Order) -> None:
        following: Order | None = order
        while not self._device.lifecycle.is_open.wait(0.2):  # a trial of before the start is being held
            if self._stopping.is_set():
                return
        while following is not None:
            report = self._carry_out(following)
            if self._stopping.is_set():
                return
            log.info("update %s of %s: %s", report.session, report.model, report.message or report.phase.value)
            self._report(report)
            with self._lock:
                self._order, self._next = self._next, None
                following = self._order

    def _carry_out(self, order: Order) -> Report:
        try:
            return self._update(order)
        except StonechatError as error:
            return _refusal(order, error)
        except Exception as error:  # a full disk that says so elsewhere, a bug: the device must go on serving
            log.error("update failed: %s", type(error).__name__)
            log.debug("details", exc_info=error)
            return _refusal(order, error)

    def _check_not_stopping(self) -> None:
        if self._stopping.is_set():
            raise UnreachableError("the device is shutting down.")

    def _check_goes_on(self) -> None:
        self._check_not_stopping()
        if self._next is not None:
            raise UnreachableError(_CALLED_OFF)

    def _update(self, order: Order) -> Report:
        policy = self._policy_now()
        folder = self._folder(order)
        if (ended := self._ended_meanwhile(order, folder)) is not None:
            return ended
        source: Source = HttpSource(order.url) if order.url else self._over_mqtt(order)
        with lock(folder, make=True) as slots:
            self._report(Report(order.session, Phase.FETCHING, order.model))
            manifest = self._whole(source, MANIFEST, MAX_MANIFEST_BYTES)
            if not manifest and order.url:
                raise BundleError(
                    f"there is no {order.url}/{MANIFEST}; expected the URL of a bundle's folder, with its files in it."
                )
            if hashlib.sha256(manifest).hexdigest() != order.manifest_sha256:
                raise BundleError("the manifest that came is not the one that was ordered; send the order again.")
            signature = self._whole(source, SIGNATURE, MAX_SIGNATURE_BYTES) or None
            admitted = policy.judge(manifest, signature, slots.state.security_counter)
            report = Report(order.session, Phase.CONFIRMED, order.model, admitted.manifest.version)
            if not has_bundle(slots, manifest):
                staging = Staging.begin(slots, admitted)
                self._fetch(staging, source, replace(report, phase=Phase.FETCHING))
                limits = TrialLimits(order.min_tps, order.max_rss_mb)
                staging.finish(limits if order.timeout_s is None else replace(limits, timeout_s=order.timeout_s))
            elif slots.state.trial is None:  # it runs already
                return report
        self._check_not_stopping()  # it is due from here on, and no other order calls it off
        trial = replace(report, phase=Phase.TRIAL)
        self._report(trial)
        self.reopen(order.model, lambda: self._report_trial(trial))
        report = _outcome(read_state(folder).last, report)
        if (why := self._device.runner.not_open.get(order.model)) is not None:
            raise StonechatError(f"it passed its trial, and cannot be opened: {why}")
        return report

    def reopen(self, model: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Have the worker thread close a model and open it again, with the trial that is due; wait until it has."""
        _Reopen(self._device, model).wait(meanwhile)

    def _report_trial(self, trial: Report) -> None:
        """How far a trial is whose bundle has to go on, from here into a microcontroller."""
        done, total = self._progress()
        last = self._last
        if total > 0 and last is not None and (last.done_bytes, last.total_bytes) != (done, total):
            self._report(replace(trial, done_bytes=done, total_bytes=total))

    def _policy_now(self) -> Policy:
        """With the keys as they are now: one that was retired a minute ago has signed nothing that is taken."""
        trust = self._policy.trust.reloaded() if self._policy.trust is not None else None
        if trust is None or not trust.demands_signatures:
            raise SignatureError(
                "this device has no keys, and takes no updates over the air before it has; make one with "
                "`stonechat key new` and give the device its .pub file."
            )
        return replace(self._policy, trust=trust)

    def _ended_meanwhile(self, order: Order, folder: Path) -> Report | None:
        """What came of this order's trial, if the device was restarted in the middle of it.

        A bundle that takes the board down with it is not put on trial again because its order comes again.
        """
        reported, last = self._last, read_state(folder).last
        if reported is None or reported.session != order.session or reported.phase is not Phase.TRIAL:
            return None
        if last is None or last.version != reported.version or last.outcome == "installed":
            return None
        return _outcome(last, reported)

    def _folder(self, order: Order) -> Path:
        if order.model not in self._folders:
            names = ", ".join(map(repr, self._folders))
            raise ConfigurationError(f"this device has no model {order.model!r}; it has {names}.")
        folder = self._folders[order.model]
        if folder.exists() and not is_slot_folder(folder):
            raise ConfigurationError(
                f"the model {order.model!r} is a plain bundle on this device; install it into a slot folder first, "
                "with `stonechat slots install`."
            )
        return folder

    def _whole(self, source: Source, name: str, limit: int) -> bytes:
        """A small file."""
        content = b""
        for data in source.read(name):
            self._check_goes_on()
            content += data
            if len(content) > limit:
                raise BundleError(f"{name} has more than {limit:,} bytes, which is the most that is read.")
        return content

    def _fetch(self, staging: Staging, source: Source, report: Report) -> None:
        for file in staging.missing():
            try:
                self._fetch_file(staging, source, file, report)
            except BundleError:
                dropped = any(left.name == file.name and left.have_bytes == 0 for left in staging.missing())
                if file.have_bytes == 0 or not dropped:
                    raise
                # Its beginning is of before a restart, and a loss of power may have damaged that.
                self._fetch_file(staging, source, replace(file, have_bytes=0), report)
        self._report(_with_progress(report, staging))

    def _fetch_file(self, staging: Staging, source: Source, file: Missing, report: Report) -> None:
        offset, reported_s = file.have_bytes, -REPORT_S
        if file.size_bytes == 0:
            staging.write(file.name, 0, b"")
        for data in source.read(file.name, offset):
            staging.write(file.name, offset, data)
            offset += len(data)
            if time.monotonic() - reported_s >= REPORT_S:
                reported_s = time.monotonic()
                self._report(_with_progress(report, staging))
            self._check_goes_on()
        if offset < file.size_bytes:
            raise BundleError(f"{file.name} ended after {offset:,} bytes; the manifest says {file.size_bytes:,}.")

    def _over_mqtt(self, order: Order) -> ChunkSource:
        chunks = ChunkSource(order.session, self._publish, self._check_goes_on)
        with self._lock:
            self._chunks = chunks
        return chunks

    def _publish(self, payload: bytes) -> None:
        self._device.client.publish(self._device.topics.ota_report, payload, qos=1)

    def _report(self, report: Report) -> None:
        with self._lock:
            self._last = report
        if report.phase is not Phase.FETCHING:
            with suppress(OSError):  # a full disk costs a repeated answer and nothing else
                durable.replace_file(self._last_path, report.to_json())
        self._publish(report.to_json())


class _Reopen(Job):
    """Close a model and open it again, with the trial that is due, in the worker thread."""

    def __init__(self, device: Device, name: str) -> None:
        self._device, self._name = device, name
        self._done = threading.Event()

    def run(self) -> None:
        """Without any model the device cannot go on."""
        self._device.lifecycle.enter(DeviceState.UPDATING)
        try:
            self._device.runner.reopen(self._name)
            self._device.announce()  # before the report of the update: who reads that finds the new bundle online
            self._device.lifecycle.enter(DeviceState.READY)
        except Exception as error:
            self._device.lifecycle.fail(error)
        finally:
            self._done.set()

    def drop(self) -> None:
        """The device is shutting down; the trial is held at its next start."""
        self._done.set()

    def wait(self, meanwhile: Callable[[], None]) -> None:
        """Queue it, and wait until the model is open; `meanwhile` is called now and then.

        Raises:
            UnreachableError: the device is shutting down.
            StonechatError: no model can be opened any more; the service ends.
        """
        if not self._device.queue.add_task(self):
            raise UnreachableError("the device is shutting down.")
        while not self._done.wait(TRIAL_REPORT_S):
            meanwhile()
        if (failure := self._device.lifecycle.failure) is not None:
            raise StonechatError(f"the model cannot be opened any more: {failure}")


def _outcome(last: Last | None, report: Report) -> Report:
    """The report of a trial that has ended, by what the slot folder says of it."""
    if last is not None and last.outcome == "installed":
        raise UpdateError("its trial could not be held, and is due at the next start of the service; see its log.")
    if last is None or last.outcome != "confirmed":
        raise RolledBackError((last.reason if last else None) or "it did not pass its trial.")
    return replace(report, phase=Phase.CONFIRMED, tokens_per_s=last.tokens_per_s)


def _refusal(order: Order, error: Exception) -> Report:
    phase = Phase.ROLLED_BACK if isinstance(error, RolledBackError) else Phase.REFUSED
    code = error.code if isinstance(error, StonechatError) else "failed"
    return Report(order.session, phase, order.model, code=code, message=str(error)[:_MESSAGE_CHARS])


def _with_progress(report: Report, staging: Staging) -> Report:
    total = sum(entry.size_bytes for entry in staging.manifest.files.values())
    left = sum(file.size_bytes - file.have_bytes for file in staging.missing())
    return replace(report, done_bytes=total - left, total_bytes=total)


def _read_report(path: Path) -> Report | None:
    with suppress(OSError, MessageError):
        report: Any = parse_report(path.read_bytes())
        return report if isinstance(report, Report) else None
    return None
