"""Flashing through the boot loader in an STM32's system memory, over a serial port (AN3155)."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from boards import Board
from device_runtime.errors import (
    ConfigurationError,
    DoesNotFitError,
    FlashError,
    ImageError,
    NoAnswerError,
    StonechatError,
    UnreachableError,
)
from toolkit.flash.an3155 import MAX_TRANSFER_BYTES, BootLoader
from toolkit.flash.flasher import Part, Report, Result, place_model, require_apart, require_room
from toolkit.flash.images import Image, require_kind
from toolkit.flash.ports import held_port, silent

__all__ = ["CHIPS", "Chip", "Flasher"]

_FLASH_START = 0x08000000
_BAUD = 115200
_TIMEOUT_S = 2.0  # on top of the time that a transfer is on the line
_BITS_A_BYTE = 11  # start, eight of data, parity, stop
_BLOCK_ATTEMPTS = 3
# What is programmed at once: 4 bytes on the F4 and 16 on the U5 (AN2606, flash memory alignment constraints), 32 on the
# H7 (RM0433, embedded flash memory: a flash word has 256 bits), of which its boot loader takes parts.
_FLASH_WORD_BYTES = 32
_ERASE_S = 4.0  # the longest for 128 KiB: datasheet DS12110, flash memory programming, in steps of 8 bits


@dataclass(frozen=True)
class Chip:
    """What has to be known of a line of chips."""

    product_id: int  # what GET ID answers: AN2606, table of device-dependent boot loader parameters, "PID"
    sectors_kib: tuple[int, ...]  # in the order of their numbers, from 0x08000000; those of a second bank go on
    early_ack_from: int | None = None  # the sector from which on the boot loader may say ACK before it has erased


# The parts with the most flash of each line; of a smaller one, the sectors that are not there cannot be erased.
CHIPS = {
    # RM0090, embedded flash memory interface, flash module organization (STM32F40x and F41x): sectors 0 to 11.
    "stm32f405": Chip(0x413, (16, 16, 16, 16, 64, *[128] * 7)),
    # RM0433, embedded flash memory: two banks of eight sectors. The H743xG has four in each, and a gap between.
    # AN2606, STM32H74xxx/75xxx boot loader versions: 9.1 says ACK too early in bank 2; the next command may hang it.
    "stm32h743": Chip(0x450, (128,) * 16, early_ack_from=8),
    # RM0456, embedded flash memory: two banks of 128 pages; 2 MB are always two banks.
    "stm32u575": Chip(0x482, (8,) * 256),
    "stm32u585": Chip(0x482, (8,) * 256),
}


class Flasher:
    """Erases the sectors that it needs, writes them, and reads all of it back."""

    half_done = (
        "The flash is only partly written, so the board does not start. Its boot loader is in ROM and cannot be lost: "
        "bring the board back into it and flash again."
    )

    def __init__(self, board: Board) -> None:
        self._board = board

    def check(self, firmware: Image | None, model: Image | None) -> list[Part]:
        """See `toolkit.flash.flasher.Flasher`."""
        chip = self._chip()
        parts = []
        if firmware is not None:
            require_kind(firmware, ("raw",), self._board.name)
            address = firmware.address or self._board.flash.firmware_address or _FLASH_START
            kib = self._board.flash.firmware_kib
            for run in _in_sectors(chip, firmware, address):
                offset = (run.address or 0) - address
                parts.append(Part("firmware", run, run.address or 0, None if kib is None else kib * 1024 - offset))
                require_room(parts[-1], "flash.firmware_kib")
            _check_vectors(firmware, address)
        if model is not None:
            parts.append(place_model(self._board, model))
        for part in parts:
            _sectors(chip, part)
            if part.what == "firmware":  # each begins a sector, so that two that do not overlap share none
                require_apart(part, self._board)
        return parts

    def flash(self, parts: Sequence[Part], port: str | None, report: Report) -> Result:
        """See `toolkit.flash.flasher.Flasher`."""
        with held_port(self._board, port) as held:
            return self._flash(parts, held, report)

    def _flash(self, parts: Sequence[Part], port: str, report: Report) -> Result:
        with self._boot_loader(port) as loader:
            try:
                product = loader.connect()
            except NoAnswerError:
                raise silent(self._board, port, "no answer to 0x7F") from None
            if product != self._chip().product_id:
                raise DoesNotFitError(
                    f"The chip on {port} has the product id 0x{product:03x}; {self._board.flash.chip} has "
                    f"0x{self._chip().product_id:03x}. Nothing was changed."
                )
            try:
                self._write_all(loader, parts, report)
            except NoAnswerError:
                raise FlashError(f"The board on {port} fell silent. {self.half_done}") from None
            except _line_errors() as error:
                if isinstance(error, StonechatError):
                    raise
                raise FlashError(f"The line to {port} broke: {error}. {self.half_done}") from None
            verified = "read back, every byte is the same"
            try:
                loader.go(self._entry(parts))
            except (NoAnswerError, FlashError):
                verified += "; press RESET to start it"
        return Result(port, verified)

    def _entry(self, parts: Sequence[Part]) -> int:
        """Where the firmware begins."""
        firmware = next((part for part in parts if part.what == "firmware"), None)
        return firmware.address if firmware else self._board.flash.firmware_address or _FLASH_START

    def _write_all(self, loader: BootLoader, parts: Sequence[Part], report: Report) -> None:
        chip = self._chip()
        report("erase", 0.0)
        for part in parts:
            _erase(loader, chip, _sectors(chip, part), lambda share: report("erase", share))
        for part in parts:
            for address, block in _blocks(part):
                _write_block(loader, address, block)
                report(f"write {part.what}", _share(part, address, block))
        for part in parts:
            for address, block in _blocks(part):
                found = loader.read(address, len(block))
                if found != block:
                    at = next(i for i, (a, b) in enumerate(zip(found, block, strict=True)) if a != b)
                    raise FlashError(
                        f"Reading back, 0x{address + at:08x} holds 0x{found[at]:02x}; written was 0x{block[at]:02x}. "
                        "If it never changes, the sector is write-protected (option bytes; STM32CubeProgrammer takes "
                        f"that off): a boot loader does not say which. {self.half_done}"
                    )
                report(f"verify {part.what}", _share(part, address, block))

    def _chip(self) -> Chip:
        name = self._board.flash.chip
        if name not in CHIPS:
            raise ConfigurationError(
                f"The board file of {self._board.id} says flash.chip: {name}; expected one of {', '.join(CHIPS)}."
            )
        return CHIPS[name]

    @contextmanager
    def _boot_loader(self, port: str) -> Iterator[BootLoader]:
        import termios

        import serial

        baud = self._board.flash.baud or _BAUD
        timeout_s = _TIMEOUT_S + MAX_TRANSFER_BYTES * _BITS_A_BYTE / baud
        try:
            try:
                line = serial.serial_for_url(port, baud, parity=serial.PARITY_EVEN, timeout=timeout_s)
            except termios.error:  # a pseudo-terminal, as emulators and network ports have it, knows no parity
                line = serial.serial_for_url(port, baud, timeout=timeout_s)
            with line:
                yield BootLoader(line)
        except _line_errors() as error:
            if isinstance(error, StonechatError):
                raise
            raise UnreachableError(f"The line to {port} does not work: {error}. Nothing was changed.") from None


def _line_errors() -> tuple[type[Exception], ...]:
    """What pyserial raises. StonechatError's children are among OSError's, too: let them pass."""
    import serial

    return serial.SerialException, OSError


def _erase(loader: BootLoader, chip: Chip, sectors: Sequence[int], report: Callable[[float], None]) -> None:
    """Erase sectors; one by one, each with a pause, where the boot loader does not wait for the end itself."""
    hasty = [n for n in sectors if chip.early_ack_from is not None and n >= chip.early_ack_from]
    patient = [n for n in sectors if n not in hasty]
    if patient:
        loader.erase(patient, lambda share: report(share * len(patient) / len(sectors)))
    for done, number in enumerate(hasty, len(patient) + 1):
        loader.erase([number], lambda share: None)
        time.sleep(_ERASE_S)
        report(done / len(sectors))


def _write_block(loader: BootLoader, address: int, block: bytes) -> None:
    """Write a block; a NACK (a byte that was changed on the line) is worth another try."""
    for attempt in range(_BLOCK_ATTEMPTS):
        try:
            return loader.write(address, block)
        except FlashError as error:
            if attempt == _BLOCK_ATTEMPTS - 1:
                raise FlashError(f"{error} {Flasher.half_done}") from None
    return None


def _blocks(part: Part) -> Iterator[tuple[int, bytes]]:
    """Address and bytes of each transfer, filled up to whole flash words."""
    data = part.image.data
    for offset in range(0, len(data), MAX_TRANSFER_BYTES):
        block = data[offset : offset + MAX_TRANSFER_BYTES]
        yield part.address + offset, block.ljust(-(-len(block) // _FLASH_WORD_BYTES) * _FLASH_WORD_BYTES, b"\xff")


def _share(part: Part, address: int, block: bytes) -> float:
    """How much of a part is done after a block."""
    return min(1.0, (address + len(block) - part.address) / len(part.image.data))


def _sectors(chip: Chip, part: Part) -> list[int]:
    """The numbers of the sectors that a part touches; it has to begin at the start of one."""
    start, end = part.address, part.address + len(part.image.data)
    first, numbers, aligned = _FLASH_START, [], False
    for number, kib in enumerate(chip.sectors_kib):
        aligned |= first == start
        if first < end and first + kib * 1024 > start:
            numbers.append(number)
        first += kib * 1024
    if start < _FLASH_START or end > first:
        raise DoesNotFitError(
            f"{part.image.name} takes 0x{start:08x} … 0x{end - 1:08x}; the chip's flash is "
            f"0x{_FLASH_START:08x} … 0x{first - 1:08x}."
        )
    if not aligned:
        raise DoesNotFitError(
            f"{part.image.name} goes to 0x{start:08x}, inside a sector of flash, and erasing it would take what lies "
            "before; expected the start of a sector."
        )
    return numbers


def _in_sectors(chip: Chip, firmware: Image, address: int) -> list[Image]:
    """The stretches of a program that share no sector: erasing the one of the later would take what the first wrote.

    A gap within a sector is erased with it, so it is filled with 0xFF; sectors in between stay as they are.
    """
    starts = [_FLASH_START]
    for kib in chip.sectors_kib:
        starts.append(starts[-1] + kib * 1024)
    joined = [Image(firmware.name, firmware.data, address)]
    for run in firmware.more:
        last, start = joined[-1], run.address or 0
        first = last.address or 0
        sector = max((place for place in starts if place <= start), default=start)
        if sector < first + len(last.data):  # it begins in the sector where the last one ends
            joined[-1] = Image(last.name, last.data.ljust(start - first, b"\xff") + run.data, first)
        else:
            joined.append(Image(run.name, b"\xff" * (start - sector) + run.data, sector))
    return joined


def _check_vectors(firmware: Image, address: int) -> None:
    """The first two words of a Cortex-M program: the stack's top in RAM, and where it starts, in itself."""
    if len(firmware.data) < 8:
        raise ImageError(f"{firmware.name} has {len(firmware.data)} bytes; expected a program with a vector table.")
    stack, reset = struct.unpack_from("<2I", firmware.data)
    in_ram = 0x10000000 <= stack <= 0x10010000 or 0x20000000 <= stack <= 0x3FFFFFFF
    if not in_ram or stack % 4:
        raise DoesNotFitError(
            f"{firmware.name} does not begin with a vector table: its first word, the stack pointer, is 0x{stack:08x}; "
            "expected an address in RAM. Is it a program for an STM32?"
        )
    if not reset & 1 or not address <= reset < address + len(firmware.data):
        raise DoesNotFitError(
            f"{firmware.name} starts at 0x{reset:08x}; expected an odd address in 0x{address:08x} … "
            f"0x{address + len(firmware.data) - 1:08x}: it was linked for another place or chip."
        )
