"""`stonechat flash`: firmware and a model onto a microcontroller, verified."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options import add_json, require_extra
from toolkit.cli.output import rows, say, show

if TYPE_CHECKING:
    from toolkit.flash.flasher import Flasher, Part, Result

__all__ = ["HELP", "add_arguments", "run"]

HELP = "write firmware, a model or both to a microcontroller, and verify it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat flash`."""
    parser.add_argument(
        "firmware", metavar="FIRMWARE", nargs="?", type=Path, help=".bin, .hex or .uf2, as the board takes it"
    )
    parser.add_argument("--model", metavar="BUNDLE", type=Path, help="a bundle for the board's model slot")
    parser.add_argument("--board", metavar="ID", required=True, help="a board's id, or the path of a board file")
    parser.add_argument(
        "--port",
        metavar="PORT",
        help="serial port, socket://host:port, or where the UF2 drive is mounted (default: found by USB id)",
    )
    parser.add_argument(
        "--key", metavar="FILE", type=Path, help="sign the model with this key, for a board that asks for signatures"
    )
    parser.add_argument("--passphrase-file", metavar="FILE", type=Path, help="of the key")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Check everything that can be checked without the board, then write and verify."""
    from boards import load_board
    from device_runtime.errors import ConfigurationError
    from toolkit.flash.flasher import flasher_for
    from toolkit.flash.images import read_firmware
    from toolkit.flash.model import read_model
    from toolkit.signing.keys import read_passphrase, read_signing_key

    if args.firmware is None and args.model is None:
        raise ConfigurationError("There is nothing to flash; give FIRMWARE, --model BUNDLE or both.")
    board = load_board(args.board)
    try:
        flasher = flasher_for(board)
        firmware = read_firmware(args.firmware) if args.firmware else None
        key = read_signing_key(args.key, read_passphrase(args.passphrase_file)) if args.key is not None else None
        model = read_model(args.model, board, key) if args.model else None
        parts = flasher.check(firmware, model)
        result = _flash(flasher, parts, args.port)
    except ImportError as error:
        raise require_extra("flash", error) from None
    return _show(args, board.id, parts, result)


def _flash(flasher: Flasher, parts: list[Part], port: str | None) -> Result:
    """Write with a progress bar; after Ctrl-C say what state the board is in."""
    from toolkit.progress import ProgressBar

    at = ""
    try:
        with ProgressBar() as bar:

            def report(step: str, share: float) -> None:
                nonlocal at
                at = f"Stopped in the step {step!r}, at {share:.0%}."
                bar.update(step, share)

            return flasher.flash(parts, port, report)
    except KeyboardInterrupt:
        say(f"stonechat: {at} {flasher.half_done}" if at else "stonechat: Nothing was written.")
        raise


def _show(args: argparse.Namespace, board: str, parts: list[Part], result: Result) -> int:
    written = [{"what": p.what, "file": p.image.name, "address": p.address, "bytes": len(p.image.data)} for p in parts]
    lines: list[tuple[str, str]] = []
    for part in parts:
        place = f" at 0x{part.address:08x}" if part.address else ""
        lines.append((part.what, f"{part.image.name}, {len(part.image.data)} bytes{place}"))
    lines += [("board", f"{board} on {result.port}"), ("verified", result.verified)]
    fields = {"board": board, "port": result.port, "written": written, "verified": result.verified}
    return show(args, fields, rows(lines))
