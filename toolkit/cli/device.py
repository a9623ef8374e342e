"""`stonechat device`: set up a Linux board over SSH, and look after it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options import add_json, whole_number
from toolkit.cli.output import rows, say, show

if TYPE_CHECKING:
    from toolkit.ssh.device import BoardDevice
    from toolkit.ssh.ssh import Remote

__all__ = ["HELP", "add_arguments", "add_connection", "open_remote", "run"]

HELP = "set up a Linux board over SSH, and look after it"
_ROOT, _PREFIX = "/var/lib/stonechat", "/opt/stonechat"  # toolkit/device/layout.py, which would cost start-up time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions of `stonechat device` and their flags."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    texts = {
        "init": "install stonechat and its service on a board; run it again to repair or upgrade",
        "status": "versions, slots, the last update, and the service",
        "logs": "what the service has said",
        "doctor": "find what is wrong with a board",
        "rollback": "go back to the bundle before the one that runs",
    }
    for name, text in texts.items():
        action = actions.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".", allow_abbrev=False)
        action.add_argument("target", metavar="[USER@]HOST[:PORT]", help="the board; ~/.ssh/config is honoured")
        if name == "init":
            _add_init(action)
        add_connection(action)
        if name == "logs":
            action.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
            action.add_argument("-n", "--lines", metavar="N", type=whole_number(0), default=50, help="default 50")
        else:
            add_json(action)
        if name == "rollback":
            action.add_argument("--model", metavar="NAME", help="which model (default: the device's)")


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="ID", required=True, help="which device of the fleet file it is")
    parser.add_argument("--fleet", metavar="FLEET.yaml", type=Path, required=True, help="the fleet file")
    parser.add_argument("--keys", metavar="DIR", type=Path, help="public keys (*.pub) whose bundles it takes")
    parser.add_argument(
        "--certs", metavar="DIR", type=Path, help="its certificates, or password (default: the fleet's)"
    )
    parser.add_argument("--board", metavar="ID", help="a board, or the path of a board file (default: found out)")
    parser.add_argument("--prefix", metavar="DIR", default=_PREFIX, help=f"the program (default {_PREFIX})")
    parser.add_argument("--wheelhouse", metavar="DIR", type=Path, help="wheels, for a board without internet")
    parser.add_argument("--service", choices=["systemd", "none"], default="systemd", help="what runs it (systemd)")
    parser.add_argument(
        "--restart", metavar="COMMAND", help="with --service none: restarts it, and ends well once it is ready"
    )
    parser.add_argument("--dry-run", action="store_true", help="check the board and say what would be done")


def add_connection(parser: argparse.ArgumentParser) -> None:
    """--identity, --ssh-option and --root"""
    parser.add_argument("--identity", metavar="FILE", type=Path, help="the private key (default: ssh's choice)")
    parser.add_argument("--ssh-config", metavar="FILE", type=Path, help="in place of ~/.ssh/config")
    parser.add_argument("--root", metavar="DIR", default=_ROOT, help=f"its data on the board (default {_ROOT})")


def open_remote(args: argparse.Namespace, target: str) -> Remote:
    """The connection that the flags describe, not yet opened."""
    from toolkit.ssh.ssh import Remote, Target

    options = ("-F", str(args.ssh_config)) if args.ssh_config else ()
    return Remote(Target.parse(target), args.identity, options)


def run(args: argparse.Namespace) -> int:
    """Do one thing to a board."""
    from toolkit.ssh.device import BoardDevice

    with_remote = open_remote(args, args.target)
    if args.action == "init":
        return _init(args, with_remote)
    with with_remote as remote:
        board = BoardDevice(remote, args.root)
        return {"status": _status, "logs": _logs, "doctor": _doctor, "rollback": _rollback}[args.action](args, board)


def _init(args: argparse.Namespace, remote: Remote) -> int:
    from dataclasses import asdict

    from boards import board_ids, load_board
    from device_runtime.errors import ConfigurationError
    from toolkit.device.layout import Layout
    from toolkit.progress import ProgressBar
    from toolkit.ssh.install import Installer
    from toolkit.ssh.plan import Plan

    if args.restart is not None and args.service != "none":
        raise ConfigurationError("--restart is for --service none; systemd restarts the service itself.")
    if args.wheelhouse is not None and not args.wheelhouse.is_dir():
        raise ConfigurationError(f"There is no folder {args.wheelhouse} (--wheelhouse).")
    plan = Plan(
        args.device, args.fleet, Layout(args.root, args.prefix), args.keys, args.certs, args.wheelhouse, args.service,
        args.restart, load_board(args.board) if args.board else None,
        Path(args.board) if args.board and args.board not in board_ids() else None,
    )  # fmt: skip

    with ProgressBar() as bar:
        installer = Installer(remote, plan, say, bar.update)
        with remote:
            report = installer.run(args.dry_run)
    changed = [step.name for step in report.steps if step.changed]
    first = f"{report.device} at {report.target}: {', '.join(changed) + ' changed' if changed else 'nothing changed'}"
    return show(args, asdict(report), [first, *([report.next] if report.next else [])])


def _status(args: argparse.Namespace, board: BoardDevice) -> int:
    from toolkit.ssh.maintain import status

    found = status(board)
    return show(args, found.to_fields(), rows(found.rows()))


def _logs(args: argparse.Namespace, board: BoardDevice) -> int:
    from toolkit.ssh.maintain import logs

    return logs(board, args.lines, args.follow)


def _doctor(args: argparse.Namespace, board: BoardDevice) -> int:
    from toolkit.cli.doctor import print_findings
    from toolkit.ssh.maintain import doctor

    return print_findings(doctor(board), args.json)


def _rollback(args: argparse.Namespace, board: BoardDevice) -> int:
    from toolkit.ssh.board_lock import only_one
    from toolkit.ssh.maintain import rollback
    from toolkit.ssh.over_ssh import OverSsh

    transport = OverSsh(board, say)
    model = transport.choose_model(args.model)
    with only_one(board):
        slots = rollback(board, model, say)
    if not board.restartable:
        transport.start(model, slots)  # which says how
    fields = {"device": board.record.device, "model": model, "restarted": board.restartable}
    return show(
        args,
        fields | {"slots": slots.to_fields()},
        [f"{board.record.device}: model {model} is back at version {slots.version(slots.active)}"],
    )
