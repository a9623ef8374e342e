"""`stonechat gateway`: bundles or a fleet, to programs that speak to OpenAI's API."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.broker_access import add_broker_access, broker_access
from toolkit.cli.options import add_runtime, require_extra, seconds, whole_number
from toolkit.cli.output import say

if TYPE_CHECKING:
    from toolkit.gateway.source import Source

__all__ = ["HELP", "add_arguments", "run"]

HELP = "serve bundles, or a fleet, to programs that speak to OpenAI's API"
PORT = 8383


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat gateway`."""
    from toolkit.cli.web_access import add_listen

    parser.add_argument(
        "bundles", metavar="[NAME=]BUNDLE", nargs="*", help="bundles on this machine; without any, --broker is asked"
    )
    fleet = parser.add_argument_group("a fleet")
    whom = fleet.add_mutually_exclusive_group()
    whom.add_argument("--device", metavar="ID", help="ask this device alone (default: all that the broker knows)")
    whom.add_argument("--pool", metavar="GROUP", help="ask whichever device of this pool is free")
    fleet.add_argument(
        "--fleet", metavar="FLEET.yaml", type=Path, help="its broker, and its router for the model `auto`"
    )
    add_broker_access(fleet)
    add_runtime(parser)
    parser.add_argument(
        "--queue", metavar="N", type=whole_number(1, 1000), default=16, help="requests to bundles may wait (default 16)"
    )
    parser.add_argument(
        "--timeout", metavar="S", type=seconds, default=300.0,
        help="an answer ends after S seconds with what it has (default 300)",
    )  # fmt: skip
    add_listen(parser, PORT)
    parser.add_argument(
        "--allow-origin", metavar="URL", action="append", type=_origin,
        help="let pages of this site ask, such as https://chat.local (repeatable; default: none)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401  # before anything is opened
    except ImportError as error:
        raise require_extra("gateway", error) from None
    from toolkit.cli.web_access import listen_of
    from toolkit.gateway.app import Gateway
    from toolkit.web.server import WebServer

    listen = listen_of(args)
    with ExitStack() as stack:
        source = _source(args, stack)
        source.open()
        stack.callback(source.close)
        gateway = Gateway(source, listen, args.timeout)
        server = WebServer(gateway.app, listen, gateway.end)
        names = ", ".join(card.id for card in source.cards()) or "no model yet"
        say(f"serving {names} at {server.url}/v1" + ("" if listen.token else "; no token is asked on this machine"))
        server.run()
    say("stopped")
    return 0


def _source(args: argparse.Namespace, stack: ExitStack) -> Source:
    from device_runtime.errors import ConfigurationError

    of_a_fleet = any(given is not None for given in (args.broker, args.device, args.pool, args.fleet))
    if of_a_fleet == bool(args.bundles):
        raise ConfigurationError(
            "Say what to serve: either bundles on this machine (`stonechat gateway BUNDLE`), or the devices of a "
            "broker (`stonechat gateway --broker mqtt://localhost`)."
        )
    if of_a_fleet:
        from toolkit.gateway.fleet import FleetModels

        router, planned = None, None
        if args.fleet is not None:
            from device_runtime.fleet.file import load
            from toolkit.gateway.fleet_router import FleetRouter

            file = load(args.fleet)
            planned = file.devices
            args.broker = args.broker or file.broker.url
            router = FleetRouter(file) if args.device is None and args.pool is None else None
        broker, name = broker_access(args)
        return FleetModels(broker, name, device=args.device, pool=args.pool, router=router, planned=planned)
    from toolkit.gateway.bundles import Bundles, by_name
    from toolkit.packed import as_folder

    folders = []
    for word in args.bundles:
        name, equals, path = word.partition("=")
        named = bool(equals) and not Path(word).exists()
        folder = stack.enter_context(as_folder(Path(path if named else word)))
        folders.append((name if named else None, folder))
    return Bundles(by_name(folders), backend=args.backend, threads=args.threads, queue=args.queue)


def _origin(text: str) -> str:
    """An argparse type: scheme, host and port of a site."""
    from urllib.parse import urlsplit

    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path not in ("", "/") or parts.query:
        raise argparse.ArgumentTypeError(f"{text!r} is no site; expected such as https://chat.local")
    return f"{parts.scheme}://{parts.netloc}".lower()
