"""`stonechat serve`: run one device of a fleet file."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.device.service import add_service_flags

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
    from toolkit.device.serve import serve

    serve(
        args.fleet,
        args.device,
        broker_url=args.broker,
        state_dir=args.state_dir,
        password_file=args.password_file,
        keys=args.keys,
        board=args.board,
        wait_for_broker=not args.no_wait,
    )
    return 0
