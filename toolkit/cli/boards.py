"""`stonechat boards`: the boards that stonechat knows, and the checking of board files."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from toolkit.cli.options import add_json
from toolkit.cli.output import rows, show, table

if TYPE_CHECKING:
    from boards import Board

__all__ = ["HELP", "add_arguments", "run"]

HELP = "list boards, show one, or check a board file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat boards`."""
    actions = parser.add_subparsers(metavar="list|show|check", required=True)
    listing = actions.add_parser("list", help="all boards that come with stonechat", allow_abbrev=False)
    listing.set_defaults(action=_list)
    show = actions.add_parser("show", help="what is known of one board", allow_abbrev=False)
    show.add_argument("board", metavar="ID", help="a board's id, or the path of a .yaml file")
    show.set_defaults(action=_show)
    check = actions.add_parser("check", help="find every fault of a board file of your own", allow_abbrev=False)
    check.add_argument("file", metavar="FILE.yaml")
    check.set_defaults(action=_check)
    for action in (listing, show, check):
        add_json(action)


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    return int(args.action(args))


def _list(args: argparse.Namespace) -> int:
    from boards import board_ids, load_board

    boards = [load_board(board_id) for board_id in board_ids()]
    lines = []
    for board in boards:
        budget = board.model_budget_kib
        size = f"{budget / 1024:,.0f} MiB" if board.kind == "linux" else f"{budget:,} KiB"
        lines.append((board.id, "refused" if board.refused else board.profile, size, board.name))
    header = ("board", "profile", "for a model", "")
    return show(args, {"boards": [_row(board) for board in boards]}, table(lines, header, right=(2,)))


def _row(board: Board) -> dict[str, Any]:
    return {
        "id": board.id, "name": board.name, "class": board.kind, "profile": board.profile, "arch": board.arch,
        "ram_kib": board.ram_kib, "model_budget_kib": board.model_budget_kib, "refused": board.refused,
        "proven": _proven(board),
    }  # fmt: skip


def _show(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from boards import load_board

    board = load_board(args.board)
    values = asdict(board)
    values["class"] = values.pop("kind")
    values["proven"] = _proven(board)
    soc, memory, storage = board.soc, board.memory, board.storage
    lines = [
        ("board", f"{board.name} ({board.id}), {board.kind}"),
        (
            "processor",
            f"{soc.cores} × {soc.core} at {soc.mhz} MHz, {soc.arch}: {', '.join(soc.features) or 'no extras'}",
        ),
        (
            "memory",
            f"{memory.ram_kib:,} KiB, PSRAM {memory.psram_kib:,} KiB; {memory.model_budget_kib:,} KiB for a model",
        ),
        ("weights", f"run from {memory.weights}, at most {memory.bandwidth_mb_s:,} MB/s"),
        ("storage", f"{storage.slots} × {storage.model_kib:,} KiB"),
        ("graph", f"profile {board.profile}, context up to {board.max_context}"),
        ("flash", _flash_facts(board)),
        ("detect", _detect_facts(board)),
        ("proven", _proven(board)),
        ("source", board.source.strip()),
    ]
    if board.refused:
        lines.insert(1, ("refused", board.refused.strip()))
    lines += [("measured", f"{m.model}: {m.tokens_per_s} tok/s, {m.date}") for m in board.measured]
    return show(args, values, rows(lines))


def _proven(board: Board) -> str:
    """What of a board stonechat's tests have run, and what is left to its owner."""
    if board.kind == "linux":
        return "the runtime of its processor, in QEMU; figures under `measured` are of the board itself"
    if board.firmware is None:
        return (
            "the board file only; nothing was built or run for it. `stonechat firmware export` writes a component for "
            "the tools of its maker"
        )
    machine = board.firmware.machine
    ran = f"firmware built, and run in QEMU ({machine})" if machine else "firmware built"
    slots = (
        "two slots each for firmware and model, over the serial line or over MQTT"
        if board.firmware.update
        else "one slot, which the chip's boot loader writes over a cable; there is no going back"
    )
    network = f"; MQTT by itself: {board.firmware.network}, without TLS" if board.firmware.network else ""
    return f"{ran}; on the real part: no; updates: {slots}{network}"


def _flash_facts(board: Board) -> str:
    flash = board.flash
    facts = [
        ("chip {}", flash.chip),
        ("{} baud", flash.baud),
        ("UF2 family {:#010x}", flash.uf2_family),
        ("drive {}", flash.uf2_board_id),
        ("firmware at {:#010x}", flash.firmware_address),
        ("{:,} KiB for it", flash.firmware_kib),
        ("models from {:#010x}", flash.model_address),
        ("to enter the boot loader: {}", flash.boot_loader),
    ]
    return "; ".join([flash.method, *(text.format(value) for text, value in facts if value is not None)])


def _detect_facts(board: Board) -> str:
    detect = board.detect
    facts = [
        ("device tree {}", detect.device_tree),
        ("USB {}", ", ".join(detect.usb)),
        ("boot loader USB {}", ", ".join(detect.boot_usb)),
    ]
    return "; ".join(text.format(value) for text, value in facts if value) or "by no id"


def _check(args: argparse.Namespace) -> int:
    from boards.catalogue import read_board

    board = read_board(args.file)
    fields = {"file": args.file, "id": board.id, "faults": []}
    return show(args, fields, [f"{args.file}: board {board.id}, no faults"])
