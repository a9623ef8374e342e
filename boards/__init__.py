"""One YAML file per board, and what is computed from them."""

from boards.board import Board
from boards.catalogue import board_ids, load_board

__all__ = ["Board", "board_ids", "load_board"]
