"""One YAML file per board, and what is computed from them."""

from boards.board import Board, board_ids, load_board

__all__ = ["Board", "board_ids", "load_board"]
