"""The serial protocol of the boot loader in every STM32's system memory, STMicroelectronics AN3155.

stm32loader speaks it too, but is under the GPL and made for a person at a terminal; the protocol is small.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from functools import reduce
from operator import xor
from typing import Protocol

from device_runtime.errors import FlashError, NoAnswerError

__all__ = ["MAX_TRANSFER_BYTES", "BootLoader", "Line"]

MAX_TRANSFER_BYTES = 256  # sections 3.4 and 3.6
_ACK, _NACK = 0x79, 0x1F
_SYNC = 0x7F
_GET, _GET_ID, _READ, _GO, _WRITE, _ERASE, _EXTENDED_ERASE = 0x00, 0x02, 0x11, 0x21, 0x31, 0x43, 0x44
_NEED_NO_PROTECTION = (_READ, _GO, _WRITE, _ERASE, _EXTENDED_ERASE)  # NACK while the flash is read-protected
_SYNC_ATTEMPTS = 5
# Of a command. A sector of 128 KiB takes up to 4 s in steps of 8 bits (datasheet DS8626, flash memory programming),
# which is how the F4's boot loader erases (AN2606: its voltage range is 1.62 to 2.1 V).
_ERASE_TIMEOUT_S = 60.0
_ERASES_AT_ONCE = 8


class Line(Protocol):
    """What is used of pyserial's Serial."""

    def read(self, size: int = 1) -> bytes: ...
    def write(self, data: bytes, /) -> int | None: ...
    def reset_input_buffer(self) -> None: ...


class BootLoader:
    """The host's side of the protocol, on an open line with even parity."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._commands: frozenset[int] = frozenset()

    def connect(self) -> int:
        """Wake the boot loader up and ask what chip it is on.

        Returns:
            The product id, as in AN2606.

        Raises:
            NoAnswerError: it does not answer.
            FlashError: what answers is no such boot loader.
        """
        self._synchronize()
        self._command(_GET)
        reply = self._read(self._read(1)[0] + 1)
        self._expect_ack("GET")
        self._commands = frozenset(reply[1:])  # the first byte is the protocol's version
        self._command(_GET_ID)
        product = self._read(self._read(1)[0] + 1)
        self._expect_ack("GET ID")
        return int.from_bytes(product, "big")

    def erase(self, sectors: Sequence[int], report: Callable[[float], None]) -> None:
        """Erase sectors (pages) by their numbers.

        A boot loader says ACK for a sector that is write-protected, too (section 3.8): only reading shows it.
        """
        for start in range(0, len(sectors), _ERASES_AT_ONCE):
            some = sectors[start : start + _ERASES_AT_ONCE]
            if _EXTENDED_ERASE in self._commands:
                self._command(_EXTENDED_ERASE)
                body = struct.pack(f">{len(some) + 1}H", len(some) - 1, *some)
            else:
                self._command(_ERASE)
                body = bytes((len(some) - 1, *some))
            self._send_checked(body)
            self._expect_ack(f"the erasing of sectors {some[0]} to {some[-1]}", _ERASE_TIMEOUT_S)
            report(min(1.0, (start + len(some)) / len(sectors)))

    def write(self, address: int, data: bytes) -> None:
        """Write up to 256 bytes, a multiple of 4."""
        self._command(_WRITE)
        self._send_address(address)
        self._send_checked(bytes((len(data) - 1,)) + data)
        self._expect_ack(f"the writing at 0x{address:08x}")

    def read(self, address: int, size: int) -> bytes:
        """Read up to 256 bytes."""
        self._command(_READ)
        self._send_address(address)
        self._send_checked(bytes((size - 1,)), complement=True)
        self._expect_ack(f"the reading at 0x{address:08x}")
        return self._read(size)

    def go(self, address: int) -> None:
        """Leave the boot loader and start the program whose vector table is at `address`."""
        self._command(_GO)
        self._send_address(address)

    def _synchronize(self) -> None:
        """Send 0x7F, by which the boot loader measures the line's speed.

        A boot loader that measured it earlier takes the byte as half a command: after the second it says NACK.
        """
        for _ in range(_SYNC_ATTEMPTS):
            self._line.reset_input_buffer()
            self._line.write(bytes((_SYNC,)))
            answer = self._line.read(1)
            if answer and answer[0] in (_ACK, _NACK):
                return
            if answer:
                raise FlashError(
                    f"What answers is no STM32 boot loader (0x{answer[0]:02x}); expected 0x{_ACK:02x}. "
                    "The board runs its program: bring it into the boot loader."
                )
        raise NoAnswerError("the boot loader did not answer in time.")

    def _command(self, code: int) -> None:
        self._line.write(bytes((code, code ^ 0xFF)))
        hint = (
            " The chip is read-protected (its option bytes say so); STM32CubeProgrammer takes that off, and erases all."
            if code in _NEED_NO_PROTECTION
            else ""
        )
        self._expect_ack(f"the command 0x{code:02x}", hint=hint)

    def _send_address(self, address: int) -> None:
        self._send_checked(address.to_bytes(4, "big"))
        self._expect_ack(f"the address 0x{address:08x}")

    def _send_checked(self, body: bytes, complement: bool = False) -> None:
        self._line.write(body + bytes((reduce(xor, body, 0xFF if complement else 0),)))

    def _expect_ack(self, what: str, timeout_s: float = 0.0, hint: str = "") -> None:
        """Wait for ACK: as long as the line's own timeout, or until `timeout_s` has passed."""
        deadline = time.monotonic() + timeout_s
        while not (reply := self._line.read(1)):
            if time.monotonic() >= deadline:
                raise NoAnswerError("the boot loader did not answer in time.")
        answer = reply[0]
        if answer != _ACK:
            found = "NACK" if answer == _NACK else f"0x{answer:02x}"
            raise FlashError(f"The boot loader answered {what} with {found}; expected ACK.{hint}")

    def _read(self, size: int) -> bytes:
        data = self._line.read(size)
        if len(data) < size:
            raise NoAnswerError("the boot loader did not answer in time.")
        return data
