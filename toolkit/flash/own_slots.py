"""Updating a board with stonechat's own firmware over SMP: firmware, model or both, in one restart.

Everything new is uploaded into the slots that are not in use, marked for a test, and started together: a model may need
the firmware that comes with it. What runs then has to prove itself, and is kept by one confirmation; if it does not, a
restart brings back what ran before, all of it. A cut of the power in between does the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from boards import Board
from device_runtime.errors import (
    ConfigurationError,
    DoesNotFitError,
    FlashError,
    RolledBackError,
    StonechatError,
    UnreachableError,
)
from toolkit.firmware.container import board_of
from toolkit.firmware.layout import FlashLayout
from toolkit.flash.flasher import Part, Report, Result, require_room
from toolkit.flash.images import Image, require_kind
from toolkit.flash.mcuboot import SignedImage, read_image
from toolkit.flash.smp_line.line import BAUD, FIRMWARE, MODEL, RESTART_TIMEOUT_S, SmpLine

if TYPE_CHECKING:
    from smp.image_management import ImageState

__all__ = ["OwnSlots"]

_REFUSED = ("INVALID_TLV", "CURRENT_VERSION_IS_NEWER", "EBADSTATE")  # of an image by its signature or its counter
_NAME_WAIT_S = 5.0  # for a board that has answered just now
_NUMBERS = {"firmware": FIRMWARE, "model": MODEL}
_UPLOADING = (
    "The board runs what it ran before: an upload goes into the slot that is not in use. Run the same command again; "
    "the upload goes on where it stopped, or at the beginning if the board was restarted."
)
_TESTING = (
    "It was all uploaded and is not kept yet: the board runs it for a test, now or after its next restart, and the "
    "restart after that brings back what ran before. Run the same command again, which tests it and keeps it."
)


class OwnSlots:
    """The slots of a board, which has two each for firmware and model."""

    def __init__(self, board: Board, layout: FlashLayout) -> None:
        self._board, self._layout = board, layout
        self.half_done = _UPLOADING  # see `toolkit.flash.flasher.Flasher`; what it says changes as the update goes on

    def check(self, firmware: Image | None, model: Image | None) -> list[Part]:
        """See `toolkit.flash.flasher.Flasher`."""
        parts = []
        if firmware is not None:
            require_kind(firmware, ("mcuboot",), self._board.name)
            firmware = firmware.joined()
            read_image(firmware.data, firmware.name)
            if (found := board_of(firmware.data)) not in (None, self._board.id):
                raise DoesNotFitError(
                    f"{firmware.name} is firmware for {found}, not for {self._board.id}; "
                    f"make one with `stonechat firmware build BUNDLE --board {self._board.id}`."
                )
            parts.append(Part("firmware", firmware, 0, self._layout.firmware_bytes))
            require_room(parts[-1], "firmware.update.firmware_kib")
        if model is not None:
            parts.append(Part("model", model, 0, self._layout.model_bytes))
            require_room(parts[-1], "storage.model_kib")
        return parts

    def flash(
        self, parts: Sequence[Part], port: str, report: Report, prove: Callable[[], object] = lambda: None
    ) -> Result:
        """Bring all parts onto the board, and see them run.

        Args:
            prove: called when they run and are not kept yet, with the port free; raises what is wrong with them.

        Raises:
            RolledBackError: one of them did not start or did not prove itself; the board runs what it ran before.
            DoesNotFitError: the board says that it is another.
            FlashError: the board refused one, or fell silent.
            UnreachableError: it does not answer.
        """
        self.half_done = _UPLOADING
        line = SmpLine(self._board, port, self._refused, lambda: self.half_done)
        images: dict[str, SignedImage] = {part.what: read_image(part.image.data, part.image.name) for part in parts}
        data: dict[str, bytes] = {part.what: part.image.data for part in parts}
        started = asyncio.run(self._start(line, images, data, report))
        if started:
            try:
                prove()
            except BaseException as error:
                asyncio.run(self._go_back(line))
                if isinstance(error, StonechatError) and not isinstance(error, UnreachableError):
                    raise RolledBackError(f"{error} The board runs what it ran before.") from error
                raise
        asyncio.run(self._keep(line, images))
        words = (
            f"the board checked the {what} {image.version} and runs it; confirmed by its hash"
            for what, image in images.items()
        )
        return Result(port, "; ".join(words))

    def _check_name(self, port: str) -> None:
        """A firmware names its board in its tags, and a model none: so the board is asked what it is.

        One that does not say is taken at the user's word.
        """
        from device_runtime.bridge.link import Link
        from device_runtime.bridge.messages import MAX_NAME

        try:
            with Link(port, self._board.flash.baud or BAUD) as link:
                found = link.open(_NAME_WAIT_S).board
        except (UnreachableError, ConfigurationError):
            return
        if found and found != self._board.id[:MAX_NAME]:
            raise DoesNotFitError(
                f"The board on {port} is {found}, not {self._board.id}. Nothing was written. Give --board {found}, or "
                "the port of the other."
            )

    async def _start(
        self, line: SmpLine, images: dict[str, SignedImage], data: dict[str, bytes], report: Report
    ) -> bool:
        """Upload what the board lacks, and start what does not run; whether there was anything to start."""
        slots = await line.first_answer()
        if any(slot.active and slot.image == FIRMWARE for slot in slots):  # the boot loader alone only takes updates
            self._check_name(line.port)
        new = {what: image for what, image in images.items() if not _runs(slots, what, image)}
        for what, image in new.items():
            if not any(slot.hash == image.digest and slot.bootable for slot in slots):  # else it lacks a signature
                await line.upload(data[what], _NUMBERS[what], report, f"upload {what}")
        self.half_done = _TESTING
        if not new:
            return False
        for image in new.values():
            await line.test(image)
        report("restart", 0.0)
        ran: Sequence[ImageState] = ()

        def is_over(slots: Sequence[ImageState]) -> bool:
            nonlocal ran
            ran = slots
            return not any(slot.pending for slot in slots)

        if not await line.restart_until(is_over):
            raise UnreachableError(
                f"The board has not answered for {RESTART_TIMEOUT_S:g} s since its restart. If what is new does not "
                "run, press RESET: the board then goes back to what it ran before."
            )
        for what, image in new.items():
            if not _runs(ran, what, image):
                await self._go_back(line)
                runs = [slot.version for slot in ran if slot.active and slot.image == _NUMBERS[what]]
                raise RolledBackError(
                    f"The board did not keep version {image.version} of the {what} and runs "
                    f"{runs[0] if runs else 'nothing'} again. A model "
                    "has to fit the firmware's memory and to pass its self-test; build the firmware for this bundle."
                )
        report("restart", 1.0)
        return True

    async def _keep(self, line: SmpLine, images: dict[str, SignedImage]) -> None:
        slots = await line.confirm()
        for what, image in images.items():
            if not any(slot.confirmed for slot in slots if slot.active and slot.hash == image.digest):
                raise FlashError(
                    f"The board does not say that it has kept the {what} {image.version}. {self.half_done}"
                )

    async def _go_back(self, line: SmpLine) -> None:
        """End the test of whatever is not confirmed, by a restart."""

        def is_back(slots: Sequence[ImageState]) -> bool:
            running = [slot for slot in slots if slot.active]
            return bool(running) and all(slot.confirmed for slot in running)

        slots = await line.first_answer()
        if is_back(slots) or not any(slot.active for slot in slots):
            return
        if not await line.restart_until(is_back):
            raise UnreachableError(
                f"The board has not answered for {RESTART_TIMEOUT_S:g} s since the restart that ends the test; press "
                "RESET: it then goes back to what it ran before."
            )

    def _refused(self, what: str, reason: str) -> str:
        """A server's refusal, and the next step."""
        if reason.startswith(_REFUSED):
            return (
                f"The board refused {what}: {reason}. It takes images that its key has signed (--key), whose "
                "security counter is no lower than that of those it has kept. It runs what it ran before."
            )
        if reason.startswith("HASH_NOT_FOUND"):  # it lists only what it could start
            return (
                f"The board refused {what}: {reason}. It does not take what its slot has for an image of its own: "
                f"check that {self._board.id} is the board on this port, and that nothing else uploads to it. It runs "
                "what it ran before."
            )
        return f"The board refused {what}: {reason}. {self.half_done}"


def _runs(slots: Sequence[ImageState], what: str, image: SignedImage) -> bool:
    return any(slot.active and slot.hash == image.digest and slot.image == _NUMBERS[what] for slot in slots)
