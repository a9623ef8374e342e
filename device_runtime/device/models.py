"""Which bundle each model of a device runs: the slot it is in, the trial that is due, and whose signature it needs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.bundle.admission import warn_if_expired
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import Manifest
from device_runtime.bundle.trust import TrustStore
from device_runtime.device.watchdog import ServiceManager
from device_runtime.engine.opening import open_model, schema_check
from device_runtime.engine.states.store import default_keep_bytes
from device_runtime.errors import ConfigurationError, StonechatError
from device_runtime.fleet.file import Fleet, ModelEntry
from device_runtime.update.active import is_slot_folder, read_state, resolve
from device_runtime.update.trial import Probe, ready_bundle

if TYPE_CHECKING:
    from device_runtime.engine.opening import OpenedModel

__all__ = ["DeviceModels"]

OPENING_S = 600.0  # at most that opening a model takes after its trial, when its weights are packed for this machine

log = logging.getLogger("stonechat.serve")


@dataclass(frozen=True)
class DeviceModels:
    """The models of one device."""

    device: str  # its id
    entries: Mapping[str, ModelEntry]  # by name, as `Fleet.models_of` returns them
    trust: TrustStore  # as it was at the start
    fleet: Fleet | None = None  # None: there is no fleet file that could contradict a model
    probe: Probe | None = None  # runs a bundle on trial; None: this machine
    keep_bytes: int | None = None  # that kept states of prompts may take, of all models; None: the engine's own share

    def hold_trials(self, manager: ServiceManager) -> None:
        """Hold the trials that are due. The result of a trial does not depend on whether there is a broker.

        Raises:
            StonechatError: no model has a bundle that passed its trial; the error of the first.
        """
        errors = list[StonechatError]()
        for name in self.entries:
            try:
                self.ready(name, manager)
            except StonechatError as error:  # it is not opened either, and is reported then
                errors.append(error)
        if errors and len(errors) == len(self.entries):
            raise errors[0]

    def ready(self, name: str, manager: ServiceManager) -> Path:
        """The bundle of a model: of a slot folder the active one, once the trial that is due has been held.

        Args:
            manager: is informed that the start takes as long as the trial may.
        """

        def check(bundle: Bundle) -> None:
            if self.fleet is not None:
                self.fleet.check_model(self.device, name, bundle.manifest)
                self._keeps_its_links(name, bundle)

        entry = self.entries[name]
        path = Path(entry.bundle)
        if is_slot_folder(path) and (trial := read_state(path).trial) is not None:
            manager.starting(trial.limits.timeout_s + OPENING_S)
            manager.status(f"trying the new bundle of {name}")
        return ready_bundle(path, entry.threads, self.trust.reloaded(), check, self.probe)

    def open(self, name: str, manager: ServiceManager) -> OpenedModel:
        """Open a model in this process, after the trial that is due.

        Raises:
            StonechatError: it cannot be opened, or contradicts the fleet file.
        """
        entry = self.entries[name]
        opened = open_model(
            self.ready(name, manager), threads=entry.threads, trust=self.may_run, keep_bytes=self._share(entry)
        )
        try:
            self.check(name, opened.manifest)
        except BaseException:
            opened.close()
            raise
        return opened

    def _share(self, entry: ModelEntry) -> int:
        """Bytes that one model may take for kept states."""
        if entry.keep_mib is not None:
            return int(entry.keep_mib * (1 << 20))
        of_all = default_keep_bytes() if self.keep_bytes is None else self.keep_bytes
        return of_all // len(self.entries)

    @property
    def may_run(self) -> TrustStore:
        """Whose bundles this process opens: a key that is retired meanwhile ends what runs at the next start only.

        Without the keys of the start, an update that fails its trial would leave no bundle to go back to.
        """
        now = self.trust.reloaded()
        return replace(now, keys=now.keys | self.trust.keys) if self.trust.demands_signatures else self.trust

    @property
    def slot_folders(self) -> Mapping[str, Path]:
        """The models that can be updated in place."""
        paths = {name: Path(entry.bundle) for name, entry in self.entries.items()}
        return {name: path for name, path in paths.items() if is_slot_folder(path)}

    @property
    def trial_is_due(self) -> bool:
        """Whether `ready` has a trial to hold."""
        return any(read_state(path).trial is not None for path in self.slot_folders.values())

    def check(self, name: str, manifest: Manifest) -> None:
        """Check a bundle that was opened against the fleet file; see `Fleet.check_model`."""
        warn_if_expired(manifest)
        if self.fleet is not None:
            self.fleet.check_model(self.device, name, manifest)

    def _keeps_its_links(self, name: str, bundle: Bundle) -> None:
        """Raise a `ConfigurationError` for links that the bundle cannot answer and the one before it can."""
        assert self.fleet is not None
        refused, lost = self.fleet.refused_links(self.device, name, bundle.manifest, schema_check(bundle)), list[str]()
        folder = Path(self.entries[name].bundle)
        if not refused or read_state(folder).active is None:
            return
        with suppress(StonechatError):  # it is damaged: no link is lost with it
            now = Bundle.open(resolve(folder))
            refused_now = self.fleet.refused_links(self.device, name, now.manifest, schema_check(now))
            lost = [why for link, why in refused.items() if link not in refused_now]
        if lost:
            raise ConfigurationError(" ".join(lost))
