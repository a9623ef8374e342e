"""The board that this process runs on, as `device init` has left it: told by what lies beside the fleet file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from boards import load_board
from boards.board import Board
from boards.detect import detect_here
from boards.fit import Subject, require_fit
from device_runtime.errors import ConfigurationError
from device_runtime.room import require_room
from device_runtime.update.policy import Policy
from toolkit.deploy.device import Record
from toolkit.deploy.layout import KEYS, RECORD

if TYPE_CHECKING:
    from device_runtime.bundle import Manifest
    from device_runtime.trust import TrustStore

__all__ = ["fits_on", "keys_beside", "policy_here"]

log = logging.getLogger("stonechat.serve")


def policy_here(fleet: Path, board: str | None, trust: TrustStore) -> Policy:
    """What this board asks of a bundle.

    Args:
        board: an id, or the path of a board file; None takes what `device init` noted, else what the device tree says.

    Raises:
        ConfigurationError: there is no such board.
    """
    found = load_board(board) if board is not None else _noted(fleet) or detect_here()
    if found is None:
        return Policy(trust, fits=require_room)
    return Policy(trust, found.id, fits_on(found))


def fits_on(board: Board) -> Callable[[Manifest], object]:
    """For `Policy.fits`: raises a `DoesNotFitError` that says what does not fit, and what would."""
    return lambda manifest: require_fit(board, Subject.of_manifest(manifest))


def keys_beside(fleet: Path) -> Path | None:
    """The keys of a board that `device init` has set up, wherever its root is; None where it has none."""
    root = fleet.absolute().parent
    return root / KEYS if (root / RECORD).exists() and any((root / KEYS).rglob("*.pub")) else None


def _noted(fleet: Path) -> Board | None:
    path = fleet.absolute().parent / RECORD
    try:
        record = Record.from_json(path.read_text(encoding="utf-8"))
        return None if record.board is None else load_board(record.board)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ConfigurationError) as error:  # no reason not to serve
        log.warning("which board this is cannot be told from %s: %s", path, error)
        return None
