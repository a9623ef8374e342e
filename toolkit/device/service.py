"""What `stonechat serve` and `stonechat bridge` share: a device on the air, until a signal ends it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from device_runtime.bundle.folder import Bundle
    from device_runtime.bundle.manifest import Manifest
    from device_runtime.bundle.trust import TrustStore
    from device_runtime.device.service import Service
    from device_runtime.device.watchdog import ServiceManager
    from device_runtime.fleet.file import Fleet, ModelEntry

__all__ = ["DeviceModels", "add_service_flags", "default_state_dir", "log_to_stderr", "run_until_stopped"]

OPENING_S = 600.0  # at most that opening a model takes after its trial: its weights are arranged anew


def add_service_flags(parser: argparse.ArgumentParser) -> None:
    """--state-dir, --password-file, --no-wait and --keys"""
    parser.add_argument("--state-dir", metavar="DIR", type=Path, help="keeps the boot counter (default: per user)")
    parser.add_argument(
        "--password-file", metavar="FILE", type=Path, help="the password at the broker, in place of the fleet file's"
    )
    parser.add_argument("--no-wait", action="store_true", help="exit 3 at once when the broker cannot be reached")
    parser.add_argument(
        "--keys", metavar="DIR", type=Path, help="run only what these keys have signed (default: this device's keys)"
    )


@dataclass(frozen=True)
class DeviceModels:
    """The models of one device, and whose signature their bundles need."""

    device: str  # its id
    entries: Mapping[str, ModelEntry]  # by name, as `Fleet.models_of` returns them
    trust: TrustStore  # as it was at the start
    plan: Fleet | None = None  # None: there is no fleet file that could contradict a model

    @classmethod
    def of(
        cls, device: str, plan: Fleet | None, keys: Path | None, entries: Mapping[str, ModelEntry] | None = None
    ) -> DeviceModels:
        """Those of the fleet file, or `entries` in their place.

        Args:
            keys: a folder of public keys, in place of the fleet file's.

        Raises:
            ConfigurationError: the file has no such device, or the folder of keys has none.
        """
        from device_runtime.bundle.trust import trusted
        from toolkit.device.installed import keys_beside

        if entries is None:
            entries = plan.models_of(device) if plan is not None else {}
        if keys is None and plan is not None:
            keys = plan.keys_folder() or keys_beside(plan.path)
        return cls(device, entries, trusted(keys), plan)

    def hold_trials(self, manager: ServiceManager) -> None:
        """Hold the trials that are due. What a bundle is worth does not depend on whether there is a broker.

        Raises:
            ConfigurationError: a slot folder has no bundle that passed its trial.
        """
        for name in self.entries:
            self.ready(name, manager)

    def ready(self, name: str, manager: ServiceManager) -> Path:
        """The bundle of a model: of a slot folder the active one, once the trial that is due has been held.

        Args:
            manager: hears that the start takes as long as the trial may.
        """
        from device_runtime.engine.structured import SchemaCompiler
        from device_runtime.update.slots import is_slot_folder, read_state
        from device_runtime.update.trial import ready_bundle

        def check(bundle: Bundle) -> None:
            if self.plan is not None:
                self.plan.check_model(self.device, name, bundle.manifest, SchemaCompiler(bundle).check)

        entry = self.entries[name]
        path = Path(entry.bundle)
        if is_slot_folder(path) and (trial := read_state(path).trial) is not None:
            manager.starting(trial.limits.timeout_s + OPENING_S)
            manager.status(f"trying the new bundle of {name}")
        return ready_bundle(path, entry.threads, self.trust.reloaded(), check)

    @property
    def may_run(self) -> TrustStore:
        """Whose bundles this process opens: a key that is retired meanwhile ends what runs at the next start only.

        Without the keys of the start, an update that fails its trial would leave no bundle to go back to.
        """
        from dataclasses import replace

        now = self.trust.reloaded()
        return replace(now, keys=now.keys | self.trust.keys) if self.trust.demands_signatures else self.trust

    def check(
        self, name: str, manifest: Manifest, check_schema: Callable[[Mapping[str, Any], int | None], None]
    ) -> None:
        """Hold a bundle that was opened against the fleet file; see `Fleet.check_model`."""
        from device_runtime.bundle.admission import warn_if_expired

        warn_if_expired(manifest)
        if self.plan is not None:
            self.plan.check_model(self.device, name, manifest, check_schema)


def log_to_stderr() -> None:
    """What a service does, for whoever looks on."""
    import logging

    from device_runtime.engine.backends.native_log import own_stderr

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=own_stderr())
    logging.getLogger("stonechat").setLevel(logging.INFO)


def run_until_stopped(service: Service, *, wait_for_broker: bool) -> None:
    """Serve until SIGTERM or SIGINT."""
    from device_runtime.device.service import stop_on_signals

    with stop_on_signals(service):
        service.run(wait_for_broker=wait_for_broker)


def default_state_dir(device: str) -> Path:
    """Where systemd says (STATE_DIRECTORY), else where the XDG base directory specification says."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    root = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(root) / "stonechat" / device
