"""`stonechat dashboard`: one page on which a fleet is watched, asked and linked."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options import require_extra, seconds
from toolkit.cli.output import say

if TYPE_CHECKING:
    from device_runtime.fleet.file import Fleet

__all__ = ["HELP", "add_arguments", "run"]

HELP = "serve a page that shows a fleet live, asks it, and edits its links"
PORT = 8384
NAME = "dashboard"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat dashboard`."""
    from toolkit.cli.web_access import add_listen

    parser.add_argument("fleet", metavar="FLEET.yaml", type=Path, help="the fleet file")
    parser.add_argument("--broker", metavar="URL", help="mqtt://[user@]host[:port] in place of the file's")
    parser.add_argument(
        "--as", metavar="NAME", dest="name", default=NAME, help=f"who it is at the broker (default {NAME})"
    )
    parser.add_argument("--password-file", metavar="FILE", type=Path, help="the password at the broker")
    parser.add_argument(
        "--operator",
        metavar="NAME",
        help="let the page resume roll-outs and read records, as this operator at the broker",
    )
    parser.add_argument("--read-only", action="store_true", help="show, but ask and change nothing")
    parser.add_argument(
        "--timeout", metavar="S", type=seconds, default=300.0,
        help="an answer ends after S seconds with what it has (default 300)",
    )  # fmt: skip
    add_listen(parser, PORT)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    try:
        import ruamel.yaml  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401  # before anything is done
    except ImportError as error:
        raise require_extra("dashboard", error) from None
    from device_runtime.mqtt.topics import check_id
    from toolkit.cli.web_access import listen_of
    from toolkit.dashboard.app import Dashboard
    from toolkit.dashboard.dry_run import DryRun
    from toolkit.dashboard.editor import FleetEditor
    from toolkit.dashboard.file_watch import FileWatch
    from toolkit.dashboard.kept_there import KeptThere
    from toolkit.dashboard.live import LiveFleet
    from toolkit.dashboard.rollouts import Rollouts
    from toolkit.gateway.fleet import FleetModels
    from toolkit.gateway.fleet_router import FleetRouter
    from toolkit.web.server import WebServer

    listen = listen_of(args)
    editor = FleetEditor(args.fleet)
    fleet = editor.fleet()
    name = check_id("client", args.name)
    broker = fleet.address_for(name, args.broker, args.password_file)
    client = name if broker.user is not None or broker.certificates.own is not None else None
    with ExitStack() as stack:
        live = LiveFleet(fleet, broker, client)
        live.open()
        stack.callback(live.close)
        router = FleetRouter(fleet) if fleet.router is not None else None
        models = FleetModels(broker, client, watch=live.watch, router=router, planned=fleet.devices)
        stack.callback(models.close)
        rollouts = Rollouts(_operator(args, fleet))
        rollouts.watch(lambda found: live.put("rollouts", found))
        stack.callback(rollouts.close)
        file = FileWatch(editor, args.fleet)
        file.start(live.links)
        stack.callback(file.close)
        live.put("fleet", {"name": args.fleet.name, "broker": str(broker)})
        dry_run = DryRun(broker, client)
        reader = None
        if args.operator is not None:
            operator = fleet.address_for(check_id("operator", args.operator), args.broker, args.password_file)
            reader = operator, args.operator
        kept = KeptThere(broker, client, reader)
        dashboard = Dashboard(
            live, editor, rollouts, models, dry_run, kept, listen, read_only=args.read_only, timeout_s=args.timeout
        )
        server = WebServer(dashboard.app, listen, dashboard.end)
        say(f"the dashboard of {args.fleet} is at {server.url}" + ("" if listen.token else "; for this machine alone"))
        server.run()
    say("stopped")
    return 0


def _operator(args: argparse.Namespace, fleet: Fleet) -> tuple[str, ...] | None:
    """Flags of `stonechat rollout resume`. A broker without users lets everybody order, so that it needs no name."""
    broker = ("--broker", args.broker) if args.broker else ()
    if args.operator is not None:
        return ("--as", args.operator, *broker)
    open_broker = fleet.broker.certs is None and fleet.broker.password_file is None and "@" not in fleet.broker.url
    return broker if open_broker and args.password_file is None and "@" not in (args.broker or "") else None
