"""The board that this process runs on, as `device init` has set it up: known by what is beside the fleet file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from boards import load_board
from boards.board import Board
from boards.detect import detect_here
from boards.fit import Subject, require_fit
from device_runtime.errors import ConfigurationError
from device_runtime.machine.power import Power
from device_runtime.machine.requirements import require_room
from device_runtime.update.policy import Policy
from toolkit.device.layout import FLEET, KEYS, RECORD, Layout
from toolkit.device.record import Record

if TYPE_CHECKING:
    from device_runtime.bundle.manifest import Manifest
    from device_runtime.bundle.trust import TrustStore

__all__ = ["check_is_served", "fits_on", "keys_beside", "policy_here", "power_here", "prompt_states_share"]

log = logging.getLogger("stonechat.serve")


def policy_here(fleet: Path, board: str | None, trust: TrustStore) -> Policy:
    """What this board asks of a bundle.

    Args:
        board: an id, or the path of a board file; None takes what `device init` noted, else what the device tree says.

    Raises:
        ConfigurationError: there is no such board.
    """
    found = _board_here(fleet, board)
    if found is None:
        return Policy(trust, fits=require_room)
    return Policy(trust, found.id, fits_on(found))


def prompt_states_share(fleet: Path, board: str | None) -> int | None:
    """Bytes that the models of this board may take for states of prompts that are kept; None: no board is known.

    Args:
        board: as for `policy_here`.
    """
    found = _board_here(fleet, board)
    return None if found is None else found.memory.prompt_states_bytes


def power_here(fleet: Path, board: str | None) -> Power | None:
    """What this board draws; None: that is not known, or the board is not.

    Args:
        board: as for `policy_here`.
    """
    found = _board_here(fleet, board)
    return None if found is None else found.power


def fits_on(board: Board) -> Callable[[Manifest], object]:
    """For `Policy.fits`: raises a `DoesNotFitError` that says what does not fit, and what would."""
    return lambda manifest: require_fit(board, Subject.of_manifest(manifest))


def keys_beside(fleet: Path) -> Path | None:
    """The keys of a board that `device init` has set up, wherever its root is; None where it has none."""
    root = fleet.absolute().parent
    return root / KEYS if (root / RECORD).exists() and any((root / KEYS).rglob("*.pub")) else None


def check_is_served(folder: Path) -> None:
    """Raise a `ConfigurationError` if a new slot folder is none that this board's fleet file knows of.

    A folder whose name was mistyped would be filled, tried and confirmed, and nothing would ever run it. Elsewhere than
    in the folder for models that `device init` has made, any will do.
    """
    from device_runtime.fleet import file as fleet

    folder = folder.resolve()
    root = folder.parent.parent
    if not (root / RECORD).exists() or str(folder) != Layout(str(root)).slots(folder.name):
        return
    try:
        plan = fleet.load(root / FLEET)
        served = {Path(entry.bundle).resolve() for device in plan.devices for entry in plan.models_of(device).values()}
    except (OSError, ConfigurationError) as error:  # `serve` will say it; here it is no reason not to install
        log.warning("it is unknown whether %s is served: %s", folder, error)
        return
    if folder.name not in plan.models and folder not in served:
        near = get_close_matches(folder.name, plan.models, n=1)
        raise ConfigurationError(
            f"{plan.path} has no model {folder.name!r}, so nothing would run what is in {folder}; it has "
            f"{', '.join(plan.models)}" + (f". Did you mean {near[0]!r}?" if near else ". Add it there first.")
        )


def _board_here(fleet: Path, board: str | None) -> Board | None:
    return load_board(board) if board is not None else _noted(fleet) or detect_here()


def _noted(fleet: Path) -> Board | None:
    path = fleet.absolute().parent / RECORD
    try:
        record = Record.from_json(path.read_text(encoding="utf-8"))
        return None if record.board is None else load_board(record.board)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ConfigurationError) as error:  # no reason not to serve
        log.warning("this board cannot be recognized from %s: %s", path, error)
        return None
