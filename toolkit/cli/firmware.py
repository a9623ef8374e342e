"""`stonechat firmware`: build it for a board and a bundle, see what it takes, run it in QEMU."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options import add_json
from toolkit.cli.output import rows, show, table

if TYPE_CHECKING:
    from boards import Board
    from toolkit.firmware.build import Build

__all__ = ["HELP", "add_arguments", "run"]

HELP = "build firmware for a microcontroller, see its size, run it in QEMU"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `build`, `size` and `run`."""
    commands = parser.add_subparsers(metavar="ACTION", required=True)
    for name, text, action in (
        ("build", "compile firmware.elf for a board, sized for a bundle", _build),
        ("size", "flash and RAM by part", _size),
        ("run", "build it and talk to it in QEMU", _run),
    ):
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        sub.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle of profile micro")
        sub.add_argument("--board", metavar="ID", required=True, help="a board's id, or the path of a board file")
        sub.add_argument(
            "-o", "--output", metavar="DIR", type=Path, default=Path("build/firmware"), help="where to build"
        )
        if name == "run":
            sub.add_argument("--prompt", metavar="TEXT", help="ask this and end; without it, lines from stdin")
        else:
            add_json(sub)
        sub.set_defaults(action=action)


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    code: int = args.action(args)
    return code


def _built(args: argparse.Namespace) -> tuple[Board, Build]:
    from boards import load_board
    from device_runtime.update.slots import open_bundle
    from toolkit.firmware.build import build_firmware

    board = load_board(args.board)
    return board, build_firmware(open_bundle(args.bundle), board, args.output / board.id)


def _build(args: argparse.Namespace) -> int:
    board, build = _built(args)
    facts = {
        "board": board.id,
        "firmware": str(build.elf),
        "image": str(build.image),
        "image_address": f"{build.image_address:#010x}",
    }
    return show(args, facts, rows(facts.items()))


def _size(args: argparse.Namespace) -> int:
    from toolkit.firmware.size import read_sizes

    board, build = _built(args)
    sizes = read_sizes(build.map)
    assert board.firmware is not None
    flash, ram = sum(s.flash_bytes for s in sizes), sum(s.ram_bytes for s in sizes)
    result = {
        "board": board.id,
        "parts": [{"part": s.part, "flash_bytes": s.flash_bytes, "ram_bytes": s.ram_bytes} for s in sizes],
        "flash_bytes": flash,
        "ram_bytes": ram,
        "arena_bytes": build.arena_bytes,
        "kv_cache_bytes": build.kv_cache_bytes,
        "image_bytes": build.image.stat().st_size,
        "code_kib": board.firmware.code_kib,
        "ram_kib": board.firmware.ram_kib,
    }

    lines = [(size.part, f"{size.flash_bytes:,}", f"{size.ram_bytes:,}") for size in sizes]
    lines += [("together", f"{flash:,}", f"{ram:,}")]
    lines += [("the board has", f"{board.firmware.code_kib * 1024:,}", f"{board.firmware.ram_kib * 1024:,}")]
    lines += [("the model's image", f"{build.image.stat().st_size:,}", "")]
    return show(args, result, table(lines, ("part", "flash, bytes", "RAM, bytes"), right=(1, 2)))


def _run(args: argparse.Namespace) -> int:
    from toolkit.firmware.qemu import Emulator

    board, build = _built(args)
    with Emulator(build, board) as emulator:
        print(f"{emulator.wait_until_ready()} ({board.name})", file=sys.stderr)
        for line in [args.prompt] if args.prompt is not None else sys.stdin:
            if not line.strip():
                continue
            for piece in emulator.ask(line.strip()):
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
            print(flush=True)
    return 0
