"""`stonechat serve`: put a device of a fleet file on the air."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

__all__ = ["HELP", "add_arguments", "run"]

OPENING_S = 600.0  # at most that opening a model takes after its trial: its weights are arranged anew
HELP = "answer requests and sensor readings over MQTT, as one device of a fleet file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat serve`."""
    parser.add_argument("fleet", metavar="FLEET.yaml", type=Path, help="the fleet file")
    parser.add_argument("--device", metavar="ID", required=True, help="which device of the file this is")
    parser.add_argument("--broker", metavar="URL", help="mqtt://[user@]host[:port] in place of the file's")
    parser.add_argument("--state-dir", metavar="DIR", type=Path, help="keeps the boot counter (default: per user)")
    parser.add_argument(
        "--password-file", metavar="FILE", type=Path, help="the password at the broker, in place of the fleet file's"
    )
    parser.add_argument("--no-wait", action="store_true", help="exit 3 at once when the broker cannot be reached")
    parser.add_argument(
        "--keys", metavar="DIR", type=Path, help="run only what these keys have signed (default: this device's keys)"
    )
    parser.add_argument(
        "--board", metavar="ID", help="which board this is: no update that does not fit it (default: found out)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    import logging
    from dataclasses import replace

    from device_runtime.admission import warn_if_expired
    from device_runtime.backends.native_log import own_stderr
    from device_runtime.bundle import Bundle
    from device_runtime.engine import LanguageModel
    from device_runtime.mqtt import fleet
    from device_runtime.mqtt.ota import UpdatePlan
    from device_runtime.mqtt.service import Service, stop_on_signals
    from device_runtime.service_manager import ServiceManager
    from device_runtime.structured import SchemaCompiler
    from device_runtime.trust import trusted
    from device_runtime.update.slots import is_slot_folder, read_state
    from device_runtime.update.trial import ready_bundle
    from toolkit.deploy.installed import keys_beside, policy_here

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=own_stderr())
    logging.getLogger("stonechat").setLevel(logging.INFO)

    manager = ServiceManager.from_environment()
    plan = fleet.load(args.fleet)
    models = plan.models_of(args.device)
    trust = trusted(args.keys or plan.keys_folder() or keys_beside(args.fleet))
    broker = plan.address(args.device, args.broker, args.password_file)
    config = plan.device(args.device, broker, args.state_dir or default_state_dir(args.device))

    def open_model(name: str) -> LanguageModel:
        model = models[name]
        path = Path(model.bundle)
        if is_slot_folder(path) and (trial := read_state(path).trial) is not None:
            manager.starting(trial.limits.timeout_s + OPENING_S)

        def check(bundle: Bundle) -> None:
            plan.check_model(args.device, name, bundle.manifest, SchemaCompiler(bundle).check)

        bundle = ready_bundle(path, model.threads, trust, check)
        opened = LanguageModel.open(bundle, threads=model.threads, trust=trust)
        try:
            warn_if_expired(opened.manifest)
            plan.check_model(args.device, name, opened.manifest, opened.check_schema)
        except BaseException:
            opened.close()
            raise
        return opened

    folders = {name: Path(model.bundle) for name, model in models.items() if is_slot_folder(Path(model.bundle))}
    updates = UpdatePlan(folders, policy_here(args.fleet, args.board, trust)) if folders else None
    service = Service(replace(config, updates=updates), open_model, manager)
    with stop_on_signals(service):
        service.run(wait_for_broker=not args.no_wait)
    return 0


def default_state_dir(device: str) -> Path:
    """Where systemd says (STATE_DIRECTORY), else where the XDG base directory specification says."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    root = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(root) / "stonechat" / device
