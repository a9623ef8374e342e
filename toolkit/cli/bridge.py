"""`stonechat bridge`: put a microcontroller on a serial port on the air."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options import require_extra, whole_number
from toolkit.device.service import DeviceModels, add_service_flags, default_state_dir, log_to_stderr, run_until_stopped

if TYPE_CHECKING:
    from device_runtime.bundle.folder import Bundle
    from device_runtime.device.watchdog import ServiceManager
    from device_runtime.fleet.file import Fleet
    from device_runtime.fleet.settings import DeviceConfig

__all__ = ["HELP", "add_arguments", "run"]

HELP = "put a microcontroller on a serial port on the air, as a device of the fleet"
POOL_GRACE_S = 3.0  # that an answer of a pool waits for a lost board: a reset is over by then, and others are waiting


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat bridge`."""
    parser.add_argument("fleet", metavar="FLEET.yaml", type=Path, nargs="?", help="the fleet file, for links and model")
    parser.add_argument(
        "--port",
        metavar="PORT",
        required=True,
        help="/dev/ttyACM0, socket://host:port or rfc2217://host:port, as pyserial names it",
    )
    parser.add_argument("--device", metavar="ID", required=True, help="which device this is")
    parser.add_argument(
        "--baud", metavar="N", type=whole_number(300, 12_000_000), default=115_200, help="default 115200"
    )
    parser.add_argument(
        "--bundle",
        metavar="DIR",
        type=Path,
        help="what the board runs, a bundle or a slot folder; its tokenizer is used here (default: the file's)",
    )
    parser.add_argument("--broker", metavar="URL", help="mqtt://[user@]host[:port] (default: the file's, or localhost)")
    parser.add_argument(
        "--certs", metavar="DIR", type=Path, help="ca.crt, and ID.crt and ID.key of the device (default: the file's)"
    )
    parser.add_argument(
        "--wait", metavar="S", type=whole_number(1), default=5, help="for the board to answer (default 5 s)"
    )
    add_service_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    try:
        import cobs  # noqa: F401
        import serial  # noqa: F401
    except ImportError as error:
        raise require_extra("bridge", error) from None

    from device_runtime.bridge.link import Link
    from device_runtime.bridge.model import SerialModel
    from device_runtime.bridge.timing import Timing
    from device_runtime.device.service import Service
    from device_runtime.device.watchdog import ServiceManager
    from device_runtime.errors import ConfigurationError
    from device_runtime.fleet import file as fleet

    log_to_stderr()
    manager = ServiceManager.from_environment()
    if args.fleet is not None and args.certs is not None:
        raise ConfigurationError("--certs is for a bridge without a fleet file; with one, name the folder there.")
    plan = fleet.load(args.fleet) if args.fleet is not None else None
    bundle = _bundle(args, plan, manager)
    config = _config(args, plan, bundle)
    timing = Timing(grace_s=POOL_GRACE_S) if config.pool else Timing()
    model = SerialModel(Link(args.port, args.baud, timing), bundle)
    service = Service(config, lambda _: model.open(args.wait, lambda: service.stopping), manager, model)
    try:
        run_until_stopped(service, wait_for_broker=not args.no_wait)
    finally:
        model.close()
    return 0


def _bundle(args: argparse.Namespace, plan: Fleet | None, manager: ServiceManager) -> Bundle | None:
    """What the board runs, as far as it was named: trusted, and not at odds with the fleet file."""
    from device_runtime.bridge.model import check_schema
    from device_runtime.bundle.folder import Bundle
    from device_runtime.errors import ConfigurationError
    from device_runtime.fleet.file import ModelEntry

    entries = dict(plan.models_of(args.device)) if plan is not None else {}
    if len(entries) > 1:
        raise ConfigurationError(f"{args.device!r} has {len(entries)} models in {args.fleet}; a board runs one.")
    if args.bundle is not None:
        entries = {name: ModelEntry(str(args.bundle)) for name in entries or ("",)}
    models = DeviceModels.of(args.device, plan, args.keys, entries)
    for name in entries:
        bundle = Bundle.open(models.ready(name, manager), trust=models.trust)
        models.check(name, bundle.manifest, check_schema)
        return bundle
    return None


def _config(args: argparse.Namespace, plan: Fleet | None, bundle: Bundle | None) -> DeviceConfig:
    """What the service needs. It takes no updates: the model is in the board's flash, and goes there over a cable."""
    from device_runtime.device.models import ModelSettings
    from device_runtime.fleet.settings import DeviceConfig
    from device_runtime.mqtt.address import BrokerAddress, Certificates, read_password
    from device_runtime.mqtt.topics import check_id, is_id

    state_dir = args.state_dir or default_state_dir(args.device)
    if plan is not None:
        return plan.device(args.device, plan.address(args.device, args.broker, args.password_file), state_dir)
    device = check_id("device", args.device)
    password = read_password(args.password_file, device)
    certificates = Certificates.of(args.certs, device) if args.certs is not None else None
    url = args.broker or "mqtt://localhost:1883"
    broker = BrokerAddress.from_url(url, password=password, certificates=certificates)
    name = bundle.manifest.name if bundle is not None and is_id(bundle.manifest.name) else "default"
    return DeviceConfig(device, broker, state_dir, (ModelSettings(name),))
