"""Which board file describes a running Linux board."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.machine.machine import program_arch

if TYPE_CHECKING:
    from boards.board import Board

__all__ = ["detect", "detect_here"]

_COMPATIBLE = Path("/proc/device-tree/compatible")


def detect(compatible: Collection[str], arch: str, ram_kib: int) -> Board | None:
    """Of the boards with one of these device tree names and this instruction set, the one nearest in RAM."""
    from boards.catalogue import board_ids, load_board  # where there is no device tree, no board's file is read

    known = map(load_board, board_ids())
    fits = [board for board in known if board.detect.device_tree in compatible and board.arch == arch]
    return min(fits, key=lambda board: abs(board.memory.ram_kib - ram_kib), default=None)


def detect_here() -> Board | None:
    """The board that this process runs on."""
    try:
        names = _COMPATIBLE.read_bytes().decode("utf-8", "replace").strip("\0").split("\0")
    except OSError:
        return None
    ram_kib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1024
    return detect(names, program_arch(), ram_kib)
