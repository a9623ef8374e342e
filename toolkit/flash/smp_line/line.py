"""Requests of the Simple Management Protocol to one board, each over a connection of its own (smpclient).

What a lost byte or a board that restarts can cost is asked again; what the server refuses becomes an error in words.
"""

from __future__ import annotations

import asyncio
import binascii
import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from boards import Board
from device_runtime.errors import FlashError
from toolkit.flash.flasher import Report
from toolkit.flash.mcuboot import SignedImage
from toolkit.flash.ports import silent

if TYPE_CHECKING:
    from smp.image_management import ImageState
    from smpclient import SMPClient

__all__ = ["BAUD", "FIRMWARE", "MODEL", "RESTART_TIMEOUT_S", "SmpLine", "line_troubles", "states_read"]

FIRMWARE, MODEL = 0, 1  # SMP's numbers of images; MCUboot's servers know the first alone
RESTART_TIMEOUT_S = 120.0  # swapping two slots of a large flash takes a minute
BAUD = 115200
_TIMEOUT_S = 2.5
_ERASE_TIMEOUT_S = 40.0  # the first packet of an upload makes the server erase the slot
_RESTART_AGAIN_S = 5.0  # from a request to restart until a board that still runs the old image is taken to have lost it
_ATTEMPTS_WITHOUT_PROGRESS = 3
# What another program left unfinished on the line of our firmware ends with a zero; MCUboot takes it for an empty line.
_END_OF_FRAME = b"\0\n"


class SmpLine:
    """The server on a port."""

    def __init__(
        self, board: Board, port: str, refused: Callable[[str, str], str], half_done: Callable[[], str]
    ) -> None:
        """Prepare; each request opens the port and closes it.

        Args:
            refused: what to say of a step that the server refuses, and why it does.
            half_done: what the board is like when the step is broken off that is under way.
        """
        for name in ("smpclient", "smp"):  # they log what we raise
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self.port = port
        self._board, self._refused, self._half_done = board, refused, half_done

    async def first_answer(self) -> list[ImageState]:
        """What is in the slots of a board that may be printing its log, or starting, just now."""
        trouble: Exception | None = None
        for _ in range(_ATTEMPTS_WITHOUT_PROGRESS):
            try:
                return await self.slots()
            except line_troubles() as error:
                trouble = error
        if isinstance(trouble, _unreadable()):
            raise FlashError(
                f"The board on {self.port} answers, but its list of images cannot be read: {_words(trouble)} Nothing "
                "was written. Update smpclient (`pip install -U smpclient`), or use the tool of the firmware's maker."
            )
        raise silent(self._board, self.port, "no answer to an SMP request")

    async def slots(self) -> list[ImageState]:
        """What is in the slots. Raises what `line_troubles` names."""
        from smpclient.generics import success

        async with self._client() as client:
            answer = await client.request(states_read())
        if not success(answer):
            raise FlashError(f"The board does not list its image slots: {_reason(answer)}.")
        return answer.images

    async def upload(self, data: bytes, number: int, report: Report, step: str = "upload") -> None:
        """Upload to the slot that is not in use; go on where the server stopped when a packet is lost."""
        best, failures = -1, 0
        report(step, 0.0)
        while True:
            try:
                async with self._client() as client:
                    async for offset in client.upload(data, number, first_timeout_s=_ERASE_TIMEOUT_S):
                        report(step, offset / len(data))
                        if offset > best:
                            best, failures = offset, 0
                return
            except line_troubles() as error:
                failures += 1
                if failures == _ATTEMPTS_WITHOUT_PROGRESS:
                    raise FlashError(
                        f"The upload stopped at byte {max(best, 0)} of {len(data)}: {_sentence(error)} "
                        f"{self._half_done()}"
                    ) from None
            except _upload_error() as error:
                raise FlashError(self._refused("the upload", _words(error))) from None

    async def test(self, image: SignedImage) -> None:
        """Have the board start an image at its next start, for a test."""
        from smpclient.requests.image_management import ImageStatesWrite

        await self.ask(ImageStatesWrite(hash=image.digest), "marking the image for a test")

    async def confirm(self) -> list[ImageState]:
        """Keep what runs; what is in the slots then."""
        from smpclient.requests.image_management import ImageStatesWrite

        answer = await self.ask(ImageStatesWrite(confirm=True), "confirming the image")
        slots: list[ImageState] = answer.images
        return slots

    async def restart(self) -> None:
        """Ask for a restart, once: the answer may be lost in it, and a second one would end the new image's test."""
        from smpclient.generics import success
        from smpclient.requests.os_management import ResetWrite

        try:
            async with self._client() as client:
                answer = await client.request(ResetWrite())
        except line_troubles():
            return
        if not success(answer) and getattr(answer, "rc", None) != 0:  # MCUboot's own answer has an error of 0: none
            raise FlashError(self._refused("restarting", _reason(answer)))

    async def restart_until(self, is_over: Callable[[Sequence[ImageState]], bool]) -> bool:
        """Restart, and look at the slots until `is_over` says that the board has done it; False: it has not in time."""
        await self.restart()
        asked = time.monotonic()
        deadline = asked + RESTART_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                slots = await self.slots()
            except line_troubles():
                await asyncio.sleep(0.1)
                continue
            if is_over(slots):
                return True
            if time.monotonic() - asked > _RESTART_AGAIN_S:
                await self.restart()
                asked = time.monotonic()
            await asyncio.sleep(0.1)  # it has not restarted yet
        return False

    async def ask(self, request: Any, what: str) -> Any:
        """Send a request that may be sent twice, until it is answered."""
        from smpclient.generics import success

        for attempt in range(_ATTEMPTS_WITHOUT_PROGRESS):
            try:
                async with self._client() as client:
                    answer = await client.request(request)
            except line_troubles() as error:
                if attempt < _ATTEMPTS_WITHOUT_PROGRESS - 1:
                    continue
                raise FlashError(f"The board fell silent at {what}: {_sentence(error)} {self._half_done()}") from None
            if success(answer):
                return answer
            raise FlashError(self._refused(what, _reason(answer)))
        raise AssertionError

    def _client(self) -> SMPClient:
        """A new connection: it begins with empty buffers."""
        from smpclient import SMPClient

        from toolkit.flash.smp_line.answers import TolerantTransport

        if self.port.startswith("socket://"):
            from toolkit.flash.smp_line.socket_port import SocketTransport

            transport: TolerantTransport = SocketTransport()
        else:
            transport = TolerantTransport(baudrate=self._board.flash.baud or BAUD, exclusive=True)
        if self._board.firmware is not None:
            transport.before = _END_OF_FRAME
        return SMPClient(transport, self.port, _TIMEOUT_S)


def line_troubles() -> tuple[type[Exception], ...]:
    """What a lost or altered byte, or a board that restarts, can make smpclient raise."""
    from serial import SerialException
    from smp.exceptions import SMPException
    from smpclient.exceptions import SMPBadSequence, SMPValidationException
    from smpclient.transport import SMPTransportDisconnected

    return (
        TimeoutError, OSError, SerialException, SMPException, SMPBadSequence, SMPValidationException,
        SMPTransportDisconnected, binascii.Error, KeyError, ValueError,
    )  # fmt: skip


def states_read() -> Any:
    """A request for what is in the slots."""
    from smpclient.requests.image_management import ImageStatesRead

    return ImageStatesRead()


def _unreadable() -> type[Exception]:
    """What smpclient raises for an answer that came whole and is none that it knows."""
    from smpclient.exceptions import SMPValidationException

    return SMPValidationException


def _upload_error() -> type[Exception]:
    from smpclient.exceptions import SMPUploadError

    return SMPUploadError


def _reason(answer: Any) -> str:
    """Why a server refused, by the name of its error."""
    error = getattr(answer, "err", answer)
    code = getattr(error, "rc", None)
    return f"{code.name} ({code.value})" if code is not None else str(answer)


def _sentence(error: Exception) -> str:
    words = _words(error)
    return words if words.endswith((".", "?")) else f"{words}."


def _words(error: Exception) -> str:
    """An exception in one line."""
    if isinstance(error, TimeoutError):  # smpclient's message has the whole request
        return "no answer; has it power, and did another program take the line?"
    cause = error.args[0] if error.args else ""
    if hasattr(cause, "header"):  # an SMP error response
        return _reason(cause)
    if found := re.search(r"No offset received: .*\brc=(\d+)", str(error)):  # smpclient shows the whole answer
        from smp.error import MGMT_ERR

        code = int(found[1])
        return f"{MGMT_ERR(code).name} ({code})" if code in MGMT_ERR.__members__.values() else f"error {code}"
    return (str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__
