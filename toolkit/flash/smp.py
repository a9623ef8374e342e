"""Updating firmware under MCUboot, over a serial port, with the Simple Management Protocol (smpclient).

The new image goes to the second slot while the old one runs, is started for a test, and is made permanent once it
answers. MCUboot checks hash and signature before it starts it, and goes back to the old image if it is not confirmed.
An upload that broke off is continued where the server stopped.

MCUboot's serial recovery, which a button or a board without a program leads to, speaks the same protocol but is
another thing: nothing runs, an upload replaces the first slot from its first packet on, and there is no test and no way
back (https://docs.mcuboot.com/serial_recovery.html).
"""

from __future__ import annotations

import asyncio
import binascii
import logging
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from boards import Board
from device_runtime.errors import ConfigurationError, FlashError, RolledBackError, UnreachableError
from toolkit.firmware.layout import layout_of
from toolkit.flash.flasher import Part, Report, Result, require_room
from toolkit.flash.images import Image, require_kind
from toolkit.flash.mcuboot import SignedImage, read_image
from toolkit.flash.ports import silent, usable_port

if TYPE_CHECKING:
    from smp.image_management import ImageState
    from smpclient import SMPClient

__all__ = ["Flasher"]

_BAUD = 115200
_TIMEOUT_S = 2.5
_ERASE_TIMEOUT_S = 40.0  # the first packet of an upload makes the server erase the slot
_RESTART_TIMEOUT_S = 120.0  # swapping two slots of a large flash takes a minute
_RESTART_AGAIN_S = 5.0  # from a request to restart until a board that still runs the old image is taken to have lost it
_ATTEMPTS_WITHOUT_PROGRESS = 3
_REFUSED = ("INVALID_TLV", "CURRENT_VERSION_IS_NEWER", "EBADSTATE")  # of an image by its signature or its counter
_OCCUPIED = ("NO_FREE_SLOT", "IMAGE_ALREADY_PENDING")  # refusals for a test that was begun and not ended


class Flasher:
    """Uploads an image, tests it, and confirms it."""

    half_done = (
        "The board runs what it ran before, or will after the next reset: an image that is not confirmed is never "
        "kept. Run the same command again; the upload goes on where it stopped."
    )

    def __init__(self, board: Board) -> None:
        self._board = board
        self._layout = layout_of(board)  # of stonechat's own firmware; None: somebody else's, under MCUboot
        self._number = 0  # of SMP's images: 0 the firmware, 1 the model

    def check(self, firmware: Image | None, model: Image | None) -> list[Part]:
        """See `toolkit.flash.flasher.Flasher`."""
        if self._layout is not None:
            return self._check_own(firmware, model)
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

    def _check_own(self, firmware: Image | None, model: Image | None) -> list[Part]:
        """The parts for a board with stonechat's firmware: an image for a slot each."""
        assert self._layout is not None
        parts = []
        if firmware is not None:
            require_kind(firmware, ("mcuboot",), self._board.name)
            firmware = firmware.joined()
            read_image(firmware.data, firmware.name)
            parts.append(Part("firmware", firmware, 0, self._layout.firmware_bytes))
            require_room(parts[-1], "firmware.update.firmware_kib")
        if model is not None:
            parts.append(Part("model", model, 0, self._layout.model_bytes))
            require_room(parts[-1], "storage.model_kib")
        return parts

    def flash(self, parts: Sequence[Part], port: str | None, report: Report) -> Result:
        """See `toolkit.flash.flasher.Flasher`.

        Raises:
            RolledBackError: MCUboot refused the image, or it ran and did not stay.
        """
        for name in ("smpclient", "smp"):  # they log what we raise
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        port = usable_port(self._board, port)
        results = []
        for part in parts:
            self._number = 0 if part.what == "firmware" else 1
            image = read_image(part.image.data, part.image.name)
            results.append(asyncio.run(self._update(part.image.data, image, port, report)))
        return Result(port, "; ".join(result.verified for result in results))

    async def _update(self, data: bytes, image: SignedImage, port: str, report: Report) -> Result:
        slots = await self._first_answer(port)
        running = self._active(slots)
        if running is None and self._layout is None:
            return await self._recover(slots, data, image, port, report)
        if running is None or running.hash != image.digest:
            if not any(slot.hash == image.digest for slot in slots):
                await self._upload(data, port, report)
            await self._start(image, port, report)
        confirmed = self._active(await self._confirm(port))
        if confirmed is None or confirmed.hash != image.digest or not confirmed.confirmed:
            raise FlashError(f"The board does not say that it has kept {image.version}. {self.half_done}")
        if self._layout is not None:
            what = ("firmware", "model")[self._number]
            return Result(port, f"the board checked the {what} {image.version} and runs it; confirmed by its hash")
        return Result(port, f"MCUboot checked version {image.version} and runs it; confirmed by its hash")

    async def _recover(
        self, slots: Sequence[ImageState], data: bytes, image: SignedImage, port: str, report: Report
    ) -> Result:
        """Replace the program through MCUboot's serial recovery; it lists only what it has checked."""
        button = self._board.flash.boot_loader
        back = f" ({button})" if button else ""
        self.half_done = (
            "The board's only program is partly written, so it does not start. MCUboot itself is whole: bring the "
            f"board back into its recovery{back} and flash again, from the beginning."
        )
        if not any(slot.slot == 0 and slot.hash == image.digest for slot in slots):
            await self._upload(data, port, report)
            slots = (await self._ask(port, _states_read(), "listing the images")).images
        if not any(_is_in_first_slot(slot, image) for slot in slots):
            raise FlashError(
                f"MCUboot does not accept version {image.version}, which it has received whole. Is the image signed "
                f"with the key that the board's MCUboot has, and linked for its first slot? The board starts nothing; "
                f"flash another image in the recovery{back}."
            )
        await self._restart(port)
        return Result(port, f"MCUboot's recovery checked version {image.version}, hash and signature, and restarted")

    async def _first_answer(self, port: str) -> list[ImageState]:
        """What is in the slots of a board that may be printing its log, or starting, just now."""
        trouble: Exception | None = None
        for _ in range(_ATTEMPTS_WITHOUT_PROGRESS):
            try:
                return await self._slots(port)
            except _line_troubles() as error:
                trouble = error
        if isinstance(trouble, _unreadable()):
            raise FlashError(
                f"The board on {port} answers, but its list of images cannot be read: {_words(trouble)} Nothing was "
                "written. Update smpclient (`pip install -U smpclient`), or use the tool of the firmware's maker."
            )
        raise silent(self._board, port, "no answer to an SMP request")

    async def _upload(self, data: bytes, port: str, report: Report) -> None:
        """Upload to the second slot; go on where the server stopped when a packet is lost."""
        best, failures = -1, 0
        report("upload", 0.0)
        while True:
            try:
                async with self._client(port) as client:
                    async for offset in client.upload(data, self._number, first_timeout_s=_ERASE_TIMEOUT_S):
                        report("upload", offset / len(data))
                        if offset > best:
                            best, failures = offset, 0
                return
            except _line_troubles() as error:
                failures += 1
                if failures == _ATTEMPTS_WITHOUT_PROGRESS:
                    raise FlashError(
                        f"The upload stopped at byte {max(best, 0)} of {len(data)}: {_words(error)}. {self.half_done}"
                    ) from None
            except _upload_error() as error:
                raise FlashError(self._refused("the upload", _words(error))) from None

    async def _start(self, image: SignedImage, port: str, report: Report) -> None:
        """Have MCUboot start the image for a test, and wait until it answers."""
        from smpclient.requests.image_management import ImageStatesWrite

        await self._ask(port, ImageStatesWrite(hash=image.digest), "marking the image for a test")
        await self._restart(port)
        asked = time.monotonic()
        deadline = asked + _RESTART_TIMEOUT_S
        report("restart", 0.0)
        while time.monotonic() < deadline:
            try:
                slots = await self._slots(port)
            except _line_troubles():
                await asyncio.sleep(0.1)
                continue
            running = self._active(slots)
            if running is not None and running.hash == image.digest:
                report("restart", 1.0)
                return
            if not any(slot.hash == image.digest and slot.pending for slot in slots):
                version = running.version if running else "nothing"
                if self._layout is not None:
                    raise RolledBackError(
                        f"The board did not keep version {image.version} and runs {version} again. A model has to fit "
                        "the firmware's memory and to pass its self-test; build the firmware for this bundle."
                    )
                raise RolledBackError(
                    f"MCUboot did not keep version {image.version}: the board runs {version}. Is the image signed with "
                    "the key that the board's MCUboot has, and linked for its slots?"
                )
            if time.monotonic() - asked > _RESTART_AGAIN_S:
                await self._restart(port)
                asked = time.monotonic()
            await asyncio.sleep(0.1)  # it has not restarted yet
        raise UnreachableError(
            f"The board has not answered for {_RESTART_TIMEOUT_S:g} s since its restart. If the new image does not "
            "run, press RESET: MCUboot then goes back to the old one."
        )

    async def _restart(self, port: str) -> None:
        """Ask for a restart, once: the answer may be lost in it, and a second one would end the new image's test."""
        from smpclient.generics import success
        from smpclient.requests.os_management import ResetWrite

        try:
            async with self._client(port) as client:
                answer = await client.request(ResetWrite())
        except _line_troubles():
            return
        if not success(answer) and getattr(answer, "rc", None) != 0:  # MCUboot's own answer has an error of 0: none
            raise FlashError(self._refused("restarting", _reason(answer)))

    async def _confirm(self, port: str) -> list[ImageState]:
        from smpclient.requests.image_management import ImageStatesWrite

        slots: list[ImageState] = (await self._ask(port, ImageStatesWrite(confirm=True), "confirming the image")).images
        return slots

    async def _slots(self, port: str) -> list[ImageState]:
        """What is in the slots. Raises what `_line_troubles` names."""
        from smpclient.generics import success

        async with self._client(port) as client:
            answer = await client.request(_states_read())
        if not success(answer):
            raise FlashError(f"The board does not list its image slots: {_reason(answer)}.")
        return answer.images

    async def _ask(self, port: str, request: Any, what: str) -> Any:
        """Send a request that may be sent twice, until it is answered."""
        from smpclient.generics import success

        for attempt in range(_ATTEMPTS_WITHOUT_PROGRESS):
            try:
                async with self._client(port) as client:
                    answer = await client.request(request)
            except _line_troubles() as error:
                if attempt < _ATTEMPTS_WITHOUT_PROGRESS - 1:
                    continue
                raise FlashError(f"The board fell silent at {what}: {_words(error)}. {self.half_done}") from None
            if success(answer):
                return answer
            raise FlashError(self._refused(what, _reason(answer)))
        raise AssertionError

    def _active(self, slots: Sequence[ImageState]) -> ImageState | None:
        """The image that runs, of those that are being updated."""
        return next((slot for slot in slots if slot.active and (slot.image or 0) == self._number), None)

    def _refused(self, what: str, reason: str) -> str:
        """A server's refusal, and the next step."""
        if self._layout is not None and reason.startswith(_REFUSED):
            return (
                f"The board refused {what}: {reason}. It takes images that its key has signed (--key), whose "
                "security counter is no lower than that of those it has kept. It runs what it ran before."
            )
        if reason.startswith(_OCCUPIED):
            return (
                f"The board refused {what}: {reason}. Its other slot waits for a test, or is the way back from one. "
                "Press RESET, which ends a test (twice, if it had not begun), and flash again."
            )
        return f"The board refused {what}: {reason}. {self.half_done}"

    def _client(self, port: str) -> SMPClient:
        """A new connection: it begins with empty buffers."""
        from smpclient import SMPClient

        from toolkit.flash.smp_answers import TolerantTransport

        if port.startswith("socket://"):
            from toolkit.flash.socket_port import SocketTransport

            return SMPClient(SocketTransport(), port, _TIMEOUT_S)
        transport = TolerantTransport(baudrate=self._board.flash.baud or _BAUD, exclusive=True)
        return SMPClient(transport, port, _TIMEOUT_S)


def _line_troubles() -> tuple[type[Exception], ...]:
    """What a lost or altered byte, or a board that restarts, can make smpclient raise."""
    from serial import SerialException
    from smp.exceptions import SMPException
    from smpclient.exceptions import SMPBadSequence, SMPValidationException
    from smpclient.transport import SMPTransportDisconnected

    return (
        TimeoutError, OSError, SerialException, SMPException, SMPBadSequence, SMPValidationException,
        SMPTransportDisconnected, binascii.Error, KeyError, ValueError,
    )  # fmt: skip


def _unreadable() -> type[Exception]:
    """What smpclient raises for an answer that came whole and is none that it knows."""
    from smpclient.exceptions import SMPValidationException

    return SMPValidationException


def _upload_error() -> type[Exception]:
    from smpclient.exceptions import SMPUploadError

    return SMPUploadError


def _states_read() -> Any:
    """A request for what is in the slots."""
    from smpclient.requests.image_management import ImageStatesRead

    return ImageStatesRead()


def _is_in_first_slot(slot: ImageState, image: SignedImage) -> bool:
    """Is this the image? A serial recovery need not report hashes; then its version has to do."""
    if slot.slot != 0 or slot.image not in (None, 0):
        return False
    if slot.hash is not None:
        return slot.hash == image.digest
    return slot.version == image.version.removesuffix("+0").replace("+", ".")


def _reason(answer: Any) -> str:
    """Why a server refused, by the name of its error."""
    error = getattr(answer, "err", answer)
    code = getattr(error, "rc", None)
    return f"{code.name} ({code.value})" if code is not None else str(answer)


def _words(error: Exception) -> str:
    """An exception in one line."""
    if isinstance(error, TimeoutError):  # smpclient's message has the whole request
        return "no answer"
    cause = error.args[0] if error.args else ""
    if hasattr(cause, "header"):  # an SMP error response
        return _reason(cause)
    if found := re.search(r"No offset received: .*\brc=(\d+)", str(error)):  # smpclient shows the whole answer
        from smp.error import MGMT_ERR

        code = int(found[1])
        return f"{MGMT_ERR(code).name} ({code})" if code in MGMT_ERR.__members__.values() else f"error {code}"
    return (str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__
