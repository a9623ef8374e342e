"""One YAML file per board, and what is computed from them.

Each name is loaded when it is first used: reading a board's file needs YAML, and most commands read none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boards.board import Board as Board
    from boards.catalogue import board_ids as board_ids
    from boards.catalogue import load_board as load_board

__all__ = ["Board", "board_ids", "load_board"]

_HOMES = {"Board": "boards.board", "board_ids": "boards.catalogue", "load_board": "boards.catalogue"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
