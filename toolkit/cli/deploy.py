"""`stonechat deploy`: bring a bundle to a device, try it there, and run it."""

from __future__ import annotations

import argparse
from pathlib import Path

from toolkit.cli.device import add_connection, open_remote
from toolkit.cli.options import add_json, positive_number, require_extra, whole_number
from toolkit.cli.output import say, show
from toolkit.cli.rollout import add_rollout, begin

__all__ = ["HELP", "add_arguments", "run"]

HELP = "bring a bundle to a device, try it there, and run it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat deploy`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle folder, or a packed bundle")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", metavar="[USER@]HOST[:PORT]", help="a board set up by `device init`, or fleet:GROUP")
    where.add_argument(
        "--port", metavar="PORT", help="a microcontroller with stonechat's firmware: its serial port, or socket://…"
    )
    parser.add_argument("--baud", metavar="N", type=whole_number(300, 12_000_000), default=115_200, help="of --port")
    parser.add_argument("--board", metavar="ID", help="with --port: a board's id or file (default: what it says)")
    parser.add_argument("--model", metavar="NAME", help="for which model of its fleet file (default: the device's)")
    parser.add_argument("--keys", metavar="DIR", type=Path, help="check its signature here first, by these public keys")
    parser.add_argument("--min-tps", metavar="N", type=positive_number, help="its trial fails below N tokens a second")
    parser.add_argument("--max-rss-mb", metavar="MB", type=positive_number, help="its trial fails above MB of memory")
    add_connection(parser)
    add_rollout(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Deploy; the exit code is that of the device: 4 signature, 5 does not fit, 6 rolled back."""
    if args.port is not None:
        return _to_port(args)
    if args.to.startswith("fleet:"):
        return begin(args)
    from device_runtime.update.state import TrialLimits
    from toolkit.packed import as_folder
    from toolkit.progress import ProgressBar
    from toolkit.ssh.board_lock import only_one
    from toolkit.ssh.deploy import Outgoing, deploy
    from toolkit.ssh.device import BoardDevice
    from toolkit.ssh.over_ssh import OverSsh

    limits, remote = TrialLimits(args.min_tps, args.max_rss_mb), open_remote(args, args.to)
    with as_folder(args.bundle) as folder, ProgressBar() as bar:
        if args.keys is not None:
            check_signature(folder, args.keys)
        bundle = Outgoing.open(folder)
        with remote:
            board = BoardDevice(remote, args.root)
            with only_one(board):
                done = deploy(bundle, OverSsh(board, say), args.model, limits, say, bar.update)
    state = "is online" if done.restarted else "waits for the service to restart"
    return show(args, done.to_fields(), [f"{done.device}: {done.name} {done.version} {state} as {done.model}"])


def _to_port(args: argparse.Namespace) -> int:
    """Deploy to the microcontroller at a serial port."""
    try:
        from toolkit.bridge.board_updates import BoardUpdates
    except ImportError as error:
        raise require_extra("flash", error) from None
    from device_runtime.bundle.trust import TrustStore
    from device_runtime.update.active import open_bundle
    from device_runtime.update.state import TrialLimits
    from toolkit.packed import as_folder
    from toolkit.progress import ProgressBar

    limits = TrialLimits(args.min_tps, args.max_rss_mb)
    keys = TrustStore.load(args.keys, required=True).keys if args.keys is not None else {}
    with as_folder(args.bundle) as folder, ProgressBar() as bar:
        if args.keys is not None:
            check_signature(folder, args.keys)
        bundle = open_bundle(folder, verify=True)
        updates = BoardUpdates.find(args.port, args.baud, args.board, keys=keys, report=bar.update)
        say(f"{bundle.manifest.name} {bundle.manifest.version} for {updates.board.name} on {args.port}")
        try:
            found, verified = updates.tried(bundle, limits)
        except ImportError as error:
            raise require_extra("flash", error) from None
    fields = {
        "board": updates.board.id, "port": args.port, "name": bundle.manifest.name, "version": bundle.manifest.version,
        "tokens_per_s": round(found.tokens_per_s, 2), "memory_mb": round(found.peak_rss_mb, 2), "score": found.score,
        "verified": verified,
    }  # fmt: skip
    rate = f", {found.tokens_per_s:.1f} tok/s" if found.tokens_per_s else ""
    return show(
        args, fields, [f"{updates.board.id}: {bundle.manifest.name} {bundle.manifest.version} runs{rate}", verified]
    )


def check_signature(folder: Path, keys: Path) -> None:
    """Raise a `SignatureError` if none of the keys has signed this bundle: nothing has to travel to find out."""
    from device_runtime.bundle.manifest import MANIFEST
    from device_runtime.bundle.trust import TrustStore
    from toolkit.ssh.deploy import SIGNATURE

    trust = TrustStore.load(keys, required=True)
    if (folder / MANIFEST).is_file():  # else `Outgoing.open` says what is there instead
        signature = folder / SIGNATURE
        trust.verify((folder / MANIFEST).read_bytes(), signature.read_bytes() if signature.is_file() else None)
