"""`stonechat bridge`: put a microcontroller on a serial port on the air."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options import require_extra, whole_number
from toolkit.cli.serve import default_state_dir

if TYPE_CHECKING:
    from device_runtime.mqtt.fleet import Fleet
    from device_runtime.mqtt.service import DeviceConfig

__all__ = ["HELP", "add_arguments", "run"]

HELP = "put a microcontroller on a serial port on the air, as a device of the fleet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat bridge`."""
    parser.add_argument("fleet", metavar="FLEET.yaml", type=Path, nargs="?", help="the fleet file, for links and model")
    parser.add_argument(
        "--port", metavar="PORT", required=True, help="/dev/ttyACM0, or socket://host:port, as pyserial names it"
    )
    parser.add_argument("--device", metavar="ID", required=True, help="which device this is")
    parser.add_argument(
        "--baud", metavar="N", type=whole_number(300, 12_000_000), default=115_200, help="default 115200"
    )
    parser.add_argument(
        "--bundle",
        metavar="DIR",
        type=Path,
        help="what the board runs; its tokenizer is used here (default: the file's)",
    )
    parser.add_argument("--broker", metavar="URL", help="mqtt://[user@]host[:port] (default: the file's, or localhost)")
    parser.add_argument(
        "--certs", metavar="DIR", type=Path, help="ca.crt, and ID.crt and ID.key of the device (default: the file's)"
    )
    parser.add_argument(
        "--wait", metavar="S", type=whole_number(1), default=5, help="for the board to answer (default 5 s)"
    )
    parser.add_argument("--state-dir", metavar="DIR", type=Path, help="keeps the boot counter (default: per user)")
    parser.add_argument("--password-file", metavar="FILE", type=Path, help="the user's password at the broker")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    import logging

    try:
        import cobs  # noqa: F401
        import serial  # noqa: F401
    except ImportError as error:
        raise require_extra("bridge", error) from None

    from device_runtime.bundle import Bundle
    from device_runtime.errors import ConfigurationError
    from device_runtime.mqtt import fleet
    from device_runtime.mqtt.service import Service, stop_on_signals
    from device_runtime.serial.link import Link
    from device_runtime.serial.model import SerialModel, check_schema

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")  # to stderr
    logging.getLogger("stonechat").setLevel(logging.INFO)

    if args.fleet is not None and args.certs is not None:
        raise ConfigurationError("--certs is for a bridge without a fleet file; with one, name the folder there.")
    plan = fleet.load(args.fleet) if args.fleet is not None else None
    name, path = _model(args, plan)
    bundle = Bundle.open(path) if path is not None else None
    config = _config(args, plan, bundle.manifest.name if bundle else "")
    if plan is not None and bundle is not None:
        plan.check_model(args.device, name, bundle.manifest, check_schema)
    model = SerialModel(Link(args.port, args.baud), bundle)
    service = Service(config, lambda _: model.open(args.wait, lambda: service.stopping), hardware=model)
    try:
        with stop_on_signals(service):
            service.run()
    finally:
        model.close()
    return 0


def _model(args: argparse.Namespace, plan: Fleet | None) -> tuple[str, Path | None]:
    """The name and the bundle of what the board runs."""
    from device_runtime.errors import ConfigurationError

    if plan is None:
        return "", args.bundle
    models = plan.models_of(args.device)
    if len(models) > 1:
        raise ConfigurationError(f"{args.device!r} has {len(models)} models in {args.fleet}; a board runs one.")
    name, entry = next(iter(models.items()))
    return name, args.bundle or Path(entry.bundle)


def _config(args: argparse.Namespace, plan: Fleet | None, model: str) -> DeviceConfig:
    from device_runtime.mqtt.client import BrokerAddress, Certificates, read_password
    from device_runtime.mqtt.models import ModelSettings
    from device_runtime.mqtt.service import DeviceConfig
    from device_runtime.mqtt.topics import check_id, is_id

    state_dir = args.state_dir or default_state_dir(args.device)
    if plan is not None:
        return plan.device(args.device, plan.address(args.device, args.broker, args.password_file), state_dir)
    device = check_id("device", args.device)
    password = read_password(args.password_file, device)
    certificates = Certificates.of(args.certs, device) if args.certs is not None else None
    url = args.broker or "mqtt://localhost:1883"
    broker = BrokerAddress.from_url(url, password=password, certificates=certificates)
    return DeviceConfig(device, broker, state_dir, (ModelSettings(model if is_id(model) else "default"),))
