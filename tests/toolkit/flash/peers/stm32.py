"""The boot loader in an STM32's system memory, as AN3155 describes it: the device's side, written by itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from tests.toolkit.flash.peers.serial_line import PtyPeer

ACK, NACK = b"\x79", b"\x1f"
START = 0x08000000


@dataclass
class Faults:
    """What goes wrong."""

    nack_writes: int = 0  # so many WRITEs are refused
    nack_erase: bool = False
    protected: tuple[int, ...] = ()  # sectors that keep what they have; it says ACK all the same (AN3155)
    early_ack_from: int | None = None  # of sectors from here on it says ACK while it still erases …
    erase_s: float = 0.1  # … for so long; a command in that time hangs it (the STM32H743's version 9.1)
    corrupt_byte_at: int | None = None  # a bit of flash that does not take
    unplug_after_writes: int | None = None
    silent_after_writes: int | None = None
    deaf: bool = False  # runs its program and never answers
    chatty: bytes = b""  # runs its program, which prints this
    awake: bool = False  # a host has synchronized before


@dataclass
class Log:
    """What the host asked for."""

    erased: list[int] = field(default_factory=list)
    writes: int = 0
    went_to: int | None = None


class Stm32Peer(PtyPeer):
    """Erased flash is 0xFF; writing can only clear bits, so a host that forgets to erase is found out."""

    def __init__(
        self, sectors_kib: tuple[int, ...], product_id: int, *, faults: Faults | None = None, extended: bool = True
    ) -> None:
        super().__init__()
        self.sectors_kib = sectors_kib
        self.product_id = product_id
        self.faults = faults or Faults()
        self.extended = extended
        self.log = Log()
        self.busy_until_s = 0.0
        self.flash = bytearray(b"\x5a" * (sum(sectors_kib) * 1024))  # an old program

    def serve(self) -> None:
        if self.faults.chatty or self.faults.deaf:
            while True:
                self.read_some()
                if self.faults.chatty:
                    self.write(self.faults.chatty)
        if not self.faults.awake:
            while self.read(1) != b"\x7f":
                pass
            self.write(ACK)
        while True:
            code = self.read(1)[0]
            assert time.monotonic() >= self.busy_until_s, "a command while it still erases"
            complement = self.read(1)[0]
            command = self.commands().get(code)
            if complement != code ^ 0xFF or command is None:
                self.write(NACK)
                continue
            self.write(ACK)
            command()

    def commands(self):
        table = {0x00: self.get, 0x02: self.get_id, 0x11: self.read_memory, 0x21: self.go, 0x31: self.write_memory}
        return table | ({0x44: self.extended_erase} if self.extended else {0x43: self.erase})

    def get(self) -> None:
        codes = bytes(self.commands())
        self.write(bytes((len(codes), 0x31)) + codes + ACK)

    def get_id(self) -> None:
        self.write(b"\x01" + self.product_id.to_bytes(2, "big") + ACK)

    def address(self) -> int | None:
        raw = self.read(5)
        value = int.from_bytes(raw[:4], "big")
        good = raw[0] ^ raw[1] ^ raw[2] ^ raw[3] == raw[4]
        if not good or not START <= value < START + len(self.flash):
            self.write(NACK)
            return None
        self.write(ACK)
        return value - START

    def read_memory(self) -> None:
        offset = self.address()
        if offset is None:
            return
        n, check = self.read(2)
        if check != n ^ 0xFF:
            self.write(NACK)
            return
        data = bytearray(self.flash[offset : offset + n + 1])
        self.write(ACK + data)

    def write_memory(self) -> None:
        offset = self.address()
        if offset is None:
            return
        n = self.read(1)[0]
        data = self.read(n + 1)
        check = self.read(1)[0]
        for byte in data:
            check ^= byte
        if check != n or (n + 1) % 4 or self.faults.nack_writes > 0:
            self.faults.nack_writes -= 1
            self.write(NACK)
            return
        self.log.writes += 1
        if self.log.writes == self.faults.unplug_after_writes:
            self.unplug()
        for i, byte in enumerate(data):
            if not self.is_protected(offset + i):
                self.flash[offset + i] &= byte
        bad = self.faults.corrupt_byte_at
        if bad is not None and offset <= bad < offset + n + 1:
            self.flash[bad] ^= 0x04
        if self.faults.silent_after_writes is not None and self.log.writes >= self.faults.silent_after_writes:
            while True:
                self.read_some()
        self.write(ACK)

    def is_protected(self, offset: int) -> bool:
        firsts = {n: sum(self.sectors_kib[:n]) * 1024 for n in self.faults.protected}
        return any(first <= offset < first + self.sectors_kib[n] * 1024 for n, first in firsts.items())

    def clear(self, sectors: list[int]) -> None:
        if self.faults.nack_erase or any(n >= len(self.sectors_kib) for n in sectors):
            self.write(NACK)
            return
        for n in sectors:
            if n in self.faults.protected:
                continue
            first = sum(self.sectors_kib[:n]) * 1024
            size = self.sectors_kib[n] * 1024
            self.flash[first : first + size] = b"\xff" * size
            self.log.erased.append(n)
            if self.faults.early_ack_from is not None and n >= self.faults.early_ack_from:
                self.busy_until_s = max(time.monotonic(), self.busy_until_s) + self.faults.erase_s
        self.write(ACK)

    def extended_erase(self) -> None:
        raw = self.read(2)
        count = int.from_bytes(raw, "big") + 1
        assert count <= 0xFFF0, "special erases are not what we use"
        raw += self.read(2 * count)
        check = self.read(1)[0]
        for byte in raw:
            check ^= byte
        if check:
            self.write(NACK)
            return
        self.clear([int.from_bytes(raw[i : i + 2], "big") for i in range(2, len(raw), 2)])

    def erase(self) -> None:
        raw = self.read(1)
        assert raw[0] != 0xFF, "a global erase is not what we use"
        raw += self.read(raw[0] + 1)
        check = self.read(1)[0]
        for byte in raw:
            check ^= byte
        if check:
            self.write(NACK)
            return
        self.clear(list(raw[1:]))

    def go(self) -> None:
        offset = self.address()
        if offset is not None:
            self.log.went_to = offset + START
            self.read_some()  # the program runs; it does not answer
