"""What `stonechat serve` and `stonechat bridge` share: a device online, until a signal ends it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device_runtime.device.models import DeviceModels
    from device_runtime.device.service import Service
    from device_runtime.fleet.file import Fleet, ModelEntry

__all__ = ["add_service_flags", "default_state_dir", "device_models", "log_to_stderr", "run_until_stopped"]


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


def device_models(
    device: str, fleet: Fleet | None, keys: Path | None, entries: Mapping[str, ModelEntry] | None = None
) -> DeviceModels:
    """The models of a device of the fleet file, or `entries` in their place.

    Args:
        keys: a folder of public keys, in place of the fleet file's.

    Raises:
        ConfigurationError: the file has no such device, or the folder of keys has none.
    """
    from device_runtime.bundle.trust import trusted
    from device_runtime.device.models import DeviceModels
    from toolkit.device.installed import keys_beside

    if entries is None:
        entries = fleet.models_of(device) if fleet is not None else {}
    if keys is None and fleet is not None:
        keys = fleet.keys_folder() or keys_beside(fleet.path)
    return DeviceModels(device, entries, trusted(keys), fleet)


def log_to_stderr() -> None:
    """Log what a service does."""
    import logging

    from device_runtime.engine.backends.native_log import own_stderr
    from device_runtime.records.log_lines import OneLine

    handler = logging.StreamHandler(own_stderr())
    handler.setFormatter(OneLine("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler])
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
    from device_runtime.machine.state_home import state_home

    return state_home() / "stonechat" / device
