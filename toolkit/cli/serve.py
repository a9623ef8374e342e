"""`stonechat serve`: put a device of a fleet file on the air."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.device.service import DeviceModels, add_service_flags, default_state_dir, log_to_stderr, run_until_stopped

__all__ = ["HELP", "add_arguments", "run"]

HELP = "answer requests and sensor readings over MQTT, as one device of a fleet file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat serve`."""
    parser.add_argument("fleet", metavar="FLEET.yaml", type=Path, help="the fleet file")
    parser.add_argument("--device", metavar="ID", required=True, help="which device of the file this is")
    parser.add_argument("--broker", metavar="URL", help="mqtt://[user@]host[:port] in place of the file's")
    add_service_flags(parser)
    parser.add_argument(
        "--board", metavar="ID", help="which board this is: no update that does not fit it (default: found out)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from dataclasses import replace

    from device_runtime.device.service import Service
    from device_runtime.device.updates import UpdatePlan
    from device_runtime.device.watchdog import ServiceManager
    from device_runtime.engine.language_model import LanguageModel
    from device_runtime.fleet import file as fleet
    from device_runtime.update.slots import is_slot_folder
    from toolkit.device.installed import policy_here

    log_to_stderr()
    manager = ServiceManager.from_environment()
    plan = fleet.load(args.fleet)
    models = DeviceModels.of(args.device, plan, args.keys)
    broker = plan.address(args.device, args.broker, args.password_file)
    config = plan.device(args.device, broker, args.state_dir or default_state_dir(args.device))

    def open_model(name: str) -> LanguageModel:
        opened = LanguageModel.open(
            models.ready(name, manager), threads=models.entries[name].threads, trust=models.may_run
        )
        try:
            models.check(name, opened.manifest, opened.check_schema)
        except BaseException:
            opened.close()
            raise
        return opened

    paths = {name: Path(entry.bundle) for name, entry in models.entries.items()}
    folders = {name: path for name, path in paths.items() if is_slot_folder(path)}
    updates = UpdatePlan(folders, policy_here(args.fleet, args.board, models.trust)) if folders else None
    models.hold_trials(manager)
    service = Service(replace(config, updates=updates), open_model, manager)
    run_until_stopped(service, wait_for_broker=not args.no_wait)
    return 0
