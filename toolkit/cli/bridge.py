"""`stonechat bridge`: connect a microcontroller on a serial port to MQTT."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.cli.options import LONGEST_S, require_extra, whole_number
from toolkit.device.service import add_service_flags

__all__ = ["HELP", "add_arguments", "run"]

HELP = "connect a microcontroller on a serial port to MQTT, as a device of the fleet"


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
        "--wait", metavar="S", type=whole_number(1, LONGEST_S), default=5, help="for the board to answer (default 5 s)"
    )
    parser.add_argument(
        "--board", metavar="ID", help="a board's id or file, for updates (default: what the board's firmware says)"
    )
    add_service_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    try:
        import cobs  # noqa: F401
        import serial  # noqa: F401
    except ImportError as error:
        raise require_extra("bridge", error) from None

    from toolkit.bridge.service import bridge

    bridge(
        args.fleet,
        args.device,
        port=args.port,
        baud=args.baud,
        bundle=args.bundle,
        broker_url=args.broker,
        certs=args.certs,
        state_dir=args.state_dir,
        password_file=args.password_file,
        keys=args.keys,
        board=args.board,
        wait_s=args.wait,
        wait_for_broker=not args.no_wait,
    )
    return 0
