"""Runs one device of a fleet file, with its models in this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from device_runtime.device.extensions.updates import UpdatePlan
from device_runtime.device.service import Service
from device_runtime.device.watchdog import ServiceManager
from device_runtime.fleet.file import load
from toolkit.device.installed import policy_here, power_here, prompt_states_share
from toolkit.device.service import default_state_dir, device_models, log_to_stderr, run_until_stopped

__all__ = ["serve"]


def serve(
    path: Path,
    device: str,
    *,
    broker_url: str | None = None,
    state_dir: Path | None = None,
    password_file: Path | None = None,
    keys: Path | None = None,
    board: str | None = None,
    wait_for_broker: bool = True,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        path: the fleet file.
        device: its id there.
        broker_url, password_file, keys: in place of the file's.
        state_dir: None is this user's folder for it.
        board: an id or a board file; None is what `device init` noted, or what the device tree says.
        wait_for_broker: try until there is a broker.

    Raises:
        StonechatError: the device cannot serve.
    """
    log_to_stderr()
    manager = ServiceManager.from_environment()
    fleet = load(path)
    models = replace(device_models(device, fleet, keys), keep_bytes=prompt_states_share(path, board))
    broker = fleet.address(device, broker_url, password_file)
    config = fleet.device(device, broker, state_dir or default_state_dir(device))
    config = replace(config, power=power_here(path, board))
    folders = models.slot_folders
    updates = UpdatePlan(folders, policy_here(path, board, models.trust)) if folders else None
    models.hold_trials(manager)
    service = Service(config, lambda name: models.open(name, manager), manager, updates=updates)
    run_until_stopped(service, wait_for_broker=wait_for_broker)
