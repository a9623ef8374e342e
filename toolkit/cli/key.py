"""`stonechat key`: keys that sign bundles."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options import add_json, require_extra
from toolkit.cli.output import say, show

if TYPE_CHECKING:
    from device_runtime.bundle.trust import PublicKey

__all__ = ["HELP", "add_arguments", "add_passphrase", "run"]

HELP = "make, show and retire the keys that sign bundles"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat key`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser("new", help="make NAME.key (secret) and NAME.pub (for devices)", allow_abbrev=False)
    new.add_argument("name", metavar="NAME", help="1 to 64 characters from a-z, 0-9 and -")
    new.add_argument("-o", "--output", metavar="DIR", type=Path, default=Path(), help="made if needed (default: here)")
    add_passphrase(new)
    add_json(new)
    show = actions.add_parser("show", help="name and id of a key", allow_abbrev=False)
    show.add_argument("file", metavar="FILE", type=Path, help="a .pub or a .key")
    add_passphrase(show)
    add_json(show)
    retire = actions.add_parser("retire", help="trust a key no longer", allow_abbrev=False)
    retire.add_argument("file", metavar="KEYFILE", type=Path, help="its .pub")
    retire.add_argument("--keys", metavar="DIR", type=Path, required=True, help="the trusted keys of a device")
    add_json(retire)


def add_passphrase(parser: argparse.ArgumentParser) -> None:
    """--passphrase-file"""
    parser.add_argument(
        "--passphrase-file",
        metavar="FILE",
        type=Path,
        help="protects the secret key (default: the variable STONECHAT_KEY_PASSPHRASE, else none)",
    )


def run(args: argparse.Namespace) -> int:
    """Make, show or retire a key."""
    try:
        from toolkit.signing.keys import new_key, read_any_key, read_passphrase, retire
    except ImportError as error:
        raise require_extra("sign", error) from None
    from device_runtime.bundle.trust import read_key
    from device_runtime.mqtt.topics import check_id

    if args.action == "new":
        key = new_key(check_id("key", args.name), args.output, read_passphrase(args.passphrase_file)).public
        files = {"private": str(args.output / f"{key.name}.key"), "public": str(args.output / f"{key.name}.pub")}
        _show(args, key, files, f"{files['private']} signs and stays secret; {files['public']} goes to the devices")
    elif args.action == "show":
        _show(args, read_any_key(args.file, read_passphrase(args.passphrase_file)), {})
    else:
        key = read_key(args.file)
        target, trusted = retire(key, args.keys)
        left = [str(other) for other in trusted.keys.values()]
        _show(args, key, {"retired": str(target)}, f"{target}: retired; trusted are {', '.join(left) or 'none'}")
        if not left:
            say(f"stonechat: no key is left in {args.keys}: a device with it refuses every bundle")
    return 0


def _show(args: argparse.Namespace, key: PublicKey, files: dict[str, str], line: str = "") -> None:
    fields = {"name": key.name, "id": key.key_id, **files}
    show(args, fields, [f"key {key.name}, id {key.key_id}", *([line] if line else [])])
