"""The seam that every way to flash a board plugs into, and the table of the ways there are.

A flasher is made for a board file. `check` needs no board: it places what is to be written and refuses what cannot
be right. `flash` finds the board, writes, and returns only after what was written has been verified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, Protocol

from boards import Board
from device_runtime.errors import ConfigurationError, DoesNotFitError
from toolkit.flash.images import Image

__all__ = [
    "METHODS", "Flasher", "Part", "Report", "Result", "flasher_for", "place_model", "require_apart", "require_room",
]  # fmt: skip

METHODS = ("esptool", "smp", "stm32", "uf2")  # each is a module of this package with a class `Flasher`
Report = Callable[[str, float], None]  # name of the step, and how much of it is done (0 … 1)


@dataclass(frozen=True)
class Part:
    """Something to write, and where."""

    what: Literal["firmware", "model"]
    image: Image
    address: int  # of the first byte; with esptool an offset in flash. What a boot loader places itself: 0
    room_bytes: int | None = None  # from there on; None: the board file does not say


@dataclass(frozen=True)
class Result:
    """What was written to which board."""

    port: str  # a serial port or a drive
    verified: str  # how it is known that the board holds it


class Flasher(Protocol):
    """One way to get software onto a microcontroller."""

    @property
    def half_done(self) -> str:
        """What the board is like if flashing is broken off now, and how to go on."""
        ...

    def check(self, firmware: Image | None, model: Image | None) -> list[Part]:
        """Say where each goes.

        Raises:
            DoesNotFitError: it is too large, or for another chip.
            ImageError: it is damaged, or no image at all.
            ConfigurationError: this board or method has no place for it.
        """
        ...

    def flash(self, parts: Sequence[Part], port: str | None, report: Report) -> Result:
        """Write the parts that `check` returned, and verify them.

        Args:
            parts: what to write.
            port: a serial port or a drive; None: found by the board file's USB ids.
            report: called with the progress.

        Raises:
            ConfigurationError: there is no such port, or several boards are plugged in.
            UnreachableError: the board does not answer.
            FlashError: the board refused, or holds something else than what was sent.
        """
        ...


def flasher_for(board: Board) -> Flasher:
    """The flasher of a board.

    Raises:
        ConfigurationError: the board runs Linux, or stonechat does not run on it.
    """
    if board.refused:
        raise ConfigurationError(f"stonechat does not run on {board.name}: {board.refused}")
    if board.flash.method not in METHODS:
        raise ConfigurationError(
            f"{board.name} runs Linux and is not flashed; `stonechat deploy` puts bundles on it over SSH."
        )
    flasher: Flasher = import_module(f"toolkit.flash.{board.flash.method}").Flasher(board)
    return flasher


def place_model(board: Board, model: Image) -> Part:
    """Put a model at the board file's `model_address`.

    Raises:
        ConfigurationError: the board file has none.
        DoesNotFitError: it is larger than the board's slot for a model.
    """
    address = board.flash.model_address
    if address is None:
        raise ConfigurationError(
            f"The board file of {board.id} has no flash.model_address; expected the address of the first model slot."
        )
    part = Part("model", model, address, board.storage.model_kib * 1024)
    require_room(part, "storage.model_kib")
    return part


def require_room(part: Part, field: str) -> None:
    """Refuse a part that is larger than its place; `field` of the board file says how large that is."""
    size = len(part.image.data)
    if part.room_bytes is not None and size > part.room_bytes:
        raise DoesNotFitError(
            f"{part.image.name} has {size} bytes; the board's place for the {part.what} has {part.room_bytes} "
            f"({field} of the board file)."
        )


def require_apart(firmware: Part, board: Board) -> None:
    """Refuse firmware that reaches into the board's slots for models."""
    first = board.flash.model_address
    if first is None:
        return
    end = first + board.storage.slots * board.storage.model_kib * 1024
    last = firmware.address + len(firmware.image.data) - 1
    if firmware.address < end and last >= first:
        raise DoesNotFitError(
            f"{firmware.image.name} takes 0x{firmware.address:08x} … 0x{last:08x} and reaches into the place for "
            f"models, 0x{first:08x} … 0x{end - 1:08x} (flash.model_address, storage of the board file)."
        )
