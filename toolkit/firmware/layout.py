"""Where a board's flash has its record, its slots and its boot loader."""

from __future__ import annotations

from dataclasses import dataclass

from boards import Board
from boards.board import UpdateSlots
from device_runtime.bundle.trust import PublicKey
from device_runtime.errors import ConfigurationError

__all__ = ["FlashLayout", "layout_of"]

RECORD_BYTES = 64 * 1024


@dataclass(frozen=True)
class FlashLayout:
    """Offsets count from `flash_address`."""

    update: UpdateSlots
    board: str
    firmware_at: tuple[int, int]
    firmware_bytes: int
    model_at: tuple[int, int]
    model_bytes: int

    @property
    def flash_bytes(self) -> int:
        """All of it."""
        return self.model_at[1] + self.model_bytes

    def header(self, key: PublicKey | None) -> str:
        """`layout.h` of a firmware and its boot loader."""
        at = ", ".join(f"{{{a:#x}u, {b:#x}u}}" for a, b in (self.firmware_at, self.model_at))
        lines = [
            "/* Made by stonechat of the board's file. */",
            '#include "update.h"',
            "",
            "static const sc_update_layout layout = {",
            f"    0, {{{at}}}, {{{self.firmware_bytes:#x}u, {self.model_bytes:#x}u}}, "
            f'{"trusted_key" if key else "0"}, "{self.board}"}};',
        ]
        if key is not None:
            data = ", ".join(f"0x{byte:02x}" for byte in key.raw)
            lines.insert(3, f"static const uint8_t trusted_key[32] = {{{data}}};")
        return "\n".join(lines) + "\n"


def layout_of(board: Board) -> FlashLayout | None:
    """The layout of a board whose firmware takes updates; None: it takes none.

    Raises:
        ConfigurationError: the board's file puts the model elsewhere than after the firmware's slots.
    """
    update = board.firmware.update if board.firmware is not None else None
    if update is None:
        return None
    firmware, model = update.firmware_kib * 1024, board.storage.model_kib * 1024
    first = RECORD_BYTES + 2 * firmware
    expected = update.flash_address + first
    if board.flash.model_address != expected or board.storage.slots != 2:
        raise ConfigurationError(
            f"The file of {board.id} has flash.model_address {board.flash.model_address or 0:#x} and storage.slots "
            f"{board.storage.slots}; expected {expected:#x}, after the record and the firmware's slots, and 2."
        )
    return FlashLayout(
        update,
        board.id,
        (RECORD_BYTES, RECORD_BYTES + firmware),
        firmware,
        (first, first + model),
        model,
    )
