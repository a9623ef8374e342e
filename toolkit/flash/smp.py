"""Updating firmware under MCUboot, over a serial port, with the Simple Management Protocol (smpclient).

The new image goes to the second slot while the old one runs, is started for a test, and is made permanent once it
answers. MCUboot checks hash and signature before it starts it, and goes back to the old image if it is not confirmed.
An upload that broke off is continued where the server stopped.

MCUboot's serial recovery, which a button or a board without a program leads to, speaks the same protocol but is
another thing: nothing runs, an upload replaces the first slot from its first packet on, and there is no test and no way
back (https://docs.mcuboot.com/serial_recovery.html).

Boards with stonechat's own firmware speak the protocol as well; `own_slots.py` is for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from boards import Board
from device_runtime.errors import ConfigurationError, FlashError, RolledBackError, UnreachableError
from toolkit.firmware.layout import layout_of
from toolkit.flash.flasher import Part, Report, Result, require_room
from toolkit.flash.images import Image, require_kind
from toolkit.flash.mcuboot import SignedImage, read_image
from toolkit.flash.own_slots import OwnSlots
from toolkit.flash.ports import held_port
from toolkit.flash.smp_line.line import FIRMWARE, RESTART_TIMEOUT_S, SmpLine, states_read

if TYPE_CHECKING:
    from smp.image_management import ImageState

__all__ = ["Flasher"]

_OCCUPIED = ("NO_FREE_SLOT", "IMAGE_ALREADY_PENDING")  # refusals for a test that was begun and not ended

_HALF_DONE = (
    "The board runs what it ran before, or will after the next reset: an image that is not confirmed is never kept. "
    "Run the same command again; the upload goes on where it stopped."
)


class Flasher:
    """Uploads an image, tests it, and confirms it."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._half_done = _HALF_DONE
        layout = layout_of(board)  # of stonechat's own firmware; None: somebody else's, under MCUboot
        self._own = OwnSlots(board, layout) if layout is not None else None

    @property
    def half_done(self) -> str:
        """See `toolkit.flash.flasher.Flasher`."""
        return self._own.half_done if self._own is not None else self._half_done

    def check(self, firmware: Image | None, model: Image | None) -> list[Part]:
        """See `toolkit.flash.flasher.Flasher`."""
        if self._own is not None:
            return self._own.check(firmware, model)
        if model is not None:
            address = self._board.flash.model_address
            probe = f", or write the packed bundle to 0x{address:08x} with a debug probe" if address is not None else ""
            raise ConfigurationError(
                f"{self._board.name} is updated over SMP, which writes MCUboot's image slots and nothing else, and "
                f"the firmware has one pair of them. Build the model into the firmware's image{probe}."
            )
        if firmware is None:
            return []
        require_kind(firmware, ("mcuboot",), self._board.name)
        firmware = firmware.joined()
        read_image(firmware.data, firmware.name)
        kib = self._board.flash.firmware_kib
        part = Part("firmware", firmware, 0, None if kib is None else kib * 1024)
        require_room(part, "flash.firmware_kib")
        return [part]

    def flash(self, parts: Sequence[Part], port: str | None, report: Report) -> Result:
        """See `toolkit.flash.flasher.Flasher`.

        Raises:
            RolledBackError: MCUboot refused the image, or it ran and did not stay.
        """
        with held_port(self._board, port) as held:
            return self._flash(parts, held, report)

    def _flash(self, parts: Sequence[Part], port: str, report: Report) -> Result:
        if self._own is not None:
            return self._own.flash(parts, port, report)
        line = SmpLine(self._board, port, self._refused, lambda: self.half_done)
        results = [
            asyncio.run(self._update(line, part.image.data, read_image(part.image.data, part.image.name), report))
            for part in parts
        ]
        return Result(port, "; ".join(result.verified for result in results))

    async def _update(self, line: SmpLine, data: bytes, image: SignedImage, report: Report) -> Result:
        slots = await line.first_answer()
        running = _active(slots)
        if running is None:
            return await self._recover(line, slots, data, image, report)
        if running.hash != image.digest:
            if not any(slot.hash == image.digest for slot in slots):
                await line.upload(data, FIRMWARE, report)
            await self._start(line, image, report)
        confirmed = _active(await line.confirm())
        if confirmed is None or confirmed.hash != image.digest or not confirmed.confirmed:
            raise FlashError(f"The board does not say that it has kept {image.version}. {self.half_done}")
        return Result(line.port, f"MCUboot checked version {image.version} and runs it; confirmed by its hash")

    async def _recover(
        self, line: SmpLine, slots: Sequence[ImageState], data: bytes, image: SignedImage, report: Report
    ) -> Result:
        """Replace the program through MCUboot's serial recovery; it lists only what it has checked."""
        button = self._board.flash.boot_loader
        back = f" ({button})" if button else ""
        self._half_done = (
            "The board's only program is partly written, so it does not start. MCUboot itself is whole: bring the "
            f"board back into its recovery{back} and flash again, from the beginning."
        )
        if not any(slot.slot == 0 and slot.hash == image.digest for slot in slots):
            await line.upload(data, FIRMWARE, report)
            slots = (await line.ask(states_read(), "listing the images")).images
        if not any(_is_in_first_slot(slot, image) for slot in slots):
            raise FlashError(
                f"MCUboot does not accept version {image.version}, which it has received whole. Is the image signed "
                f"with the key that the board's MCUboot has, and linked for its first slot? The board starts nothing; "
                f"flash another image in the recovery{back}."
            )
        await line.restart()
        return Result(
            line.port, f"MCUboot's recovery checked version {image.version}, hash and signature, and restarted"
        )

    async def _start(self, line: SmpLine, image: SignedImage, report: Report) -> None:
        """Have MCUboot start the image for a test, and wait until it answers."""
        await line.test(image)
        report("restart", 0.0)
        ran: ImageState | None = None

        def is_over(slots: Sequence[ImageState]) -> bool:
            nonlocal ran
            ran = _active(slots)
            if ran is not None and ran.hash == image.digest:
                return True
            return not any(slot.hash == image.digest and slot.pending for slot in slots)

        if not await line.restart_until(is_over):
            raise UnreachableError(
                f"The board has not answered for {RESTART_TIMEOUT_S:g} s since its restart. If the new image does not "
                "run, press RESET: MCUboot then goes back to the old one."
            )
        if ran is None or ran.hash != image.digest:
            raise RolledBackError(
                f"MCUboot did not keep version {image.version}: the board runs {ran.version if ran else 'nothing'}. Is "
                "the image signed with the key that the board's MCUboot has, and linked for its slots?"
            )
        report("restart", 1.0)

    def _refused(self, what: str, reason: str) -> str:
        """A server's refusal, and the next step."""
        if reason.startswith(_OCCUPIED):
            return (
                f"The board refused {what}: {reason}. Its other slot waits for a test, or is the way back from one. "
                "Press RESET, which ends a test (twice, if it had not begun), and flash again."
            )
        return f"The board refused {what}: {reason}. {self.half_done}"


def _active(slots: Sequence[ImageState]) -> ImageState | None:
    """The firmware that runs."""
    return next((slot for slot in slots if slot.active and (slot.image or 0) == FIRMWARE), None)


def _is_in_first_slot(slot: ImageState, image: SignedImage) -> bool:
    """Is this the image? A serial recovery need not report hashes; then its version has to do."""
    if slot.slot != 0 or slot.image not in (None, 0):
        return False
    if slot.hash is not None:
        return slot.hash == image.digest
    return slot.version == image.version.removesuffix("+0").replace("+", ".")
