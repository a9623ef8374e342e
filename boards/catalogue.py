"""The boards that come with stonechat, and the reading of a board file by id or path.

The files beside this one describe the boards that come with stonechat; a file of the same form anywhere else
describes yours. Every figure says in `source` where it is from.
"""

from __future__ import annotations

from difflib import SequenceMatcher
from pathlib import Path

from boards import schema
from boards.board import Board
from device_runtime.errors import ConfigurationError
from device_runtime.fleet import yaml_schema

__all__ = ["board_ids", "load_board", "read_board"]

_FOLDER = Path(__file__).parent
_SUGGESTED = 6  # ids at most in a "did you mean"


def board_ids() -> list[str]:
    """The boards that come with stonechat."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def load_board(id_or_path: str) -> Board:
    """Read a board file.

    Args:
        id_or_path: the id of a board that comes with stonechat, or the path of a .yaml file.

    Raises:
        ConfigurationError: there is no such board; or the file is faulty, with every fault and its place.
    """
    if id_or_path.endswith((".yaml", ".yml")):
        path = Path(id_or_path)
    elif id_or_path in (known := board_ids()):
        path = _FOLDER / f"{id_or_path}.yaml"
    else:
        near = " or ".join(map(repr, _by_name(id_or_path, known) or _nearest(id_or_path, known)))
        hint = f"did you mean {near}?" if near else "expected an id, or the path of a .yaml file."
        raise ConfigurationError(f"There is no board {id_or_path!r}; {hint} The boards are {', '.join(known)}.")
    return read_board(path)


def _by_name(word: str, known: list[str]) -> list[str]:
    """The ids of boards whose name has this in it, as Raspberry Pi Pico 2 has `pico2`; none if an id begins with it."""

    def plain(text: str) -> str:
        return "".join(letter for letter in text.lower() if letter.isalnum())

    if any(board_id.startswith(word) for board_id in known):
        return []
    names = {board_id: plain(read_board(_FOLDER / f"{board_id}.yaml").name) for board_id in known}
    found = [board_id for board_id in known if plain(word) and plain(word) in names[board_id]]
    return sorted(found, key=lambda board_id: (len(names[board_id]), board_id))[:_SUGGESTED]


def _nearest(word: str, known: list[str]) -> list[str]:
    """The ids that begin most like `word`, or none if none does: what is left out of an id is most often its end."""

    def likeness(board_id: str) -> float:
        lengths = range(len(word) - 2, len(word) + 4)
        return max((SequenceMatcher(None, word, board_id[:n]).ratio() for n in lengths if n > 0), default=0)

    scores = {board_id: likeness(board_id) for board_id in known}
    best = max(scores.values())
    if best < 0.75:
        return []
    return sorted((i for i in known if scores[i] == best), key=lambda i: (len(i), i))[:_SUGGESTED]


def read_board(path: Path | str) -> Board:
    """Read and check a board file.

    Raises:
        ConfigurationError: it cannot be read, or is faulty: every fault and its place.
    """
    file = Path(path)
    return yaml_schema.load(file, schema.BOARD, lambda board, report: schema.check(board, report, file))
