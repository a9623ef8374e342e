"""An ESP chip in its boot loader: SLIP frames, the ROM's commands, and those of the stub that esptool uploads.

Written to Espressif's "Serial Protocol" (esptool documentation). The stub's code is not run: when esptool starts it,
the chip answers as the stub would, which has the same commands with shorter answers.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass

from tests.toolkit.flash.peers.serial_line import SocketPeer, Unplugged

FLASH_BYTES = 16 * 1024 * 1024
FLASH_ID = 0x1840C8  # GigaDevice, 2**0x18 bytes
SPI_W0 = 0x60002058
INVALID = 0x05  # status: the message is not known or not valid
CHECKSUM_WRONG = 0x07


@dataclass
class Faults:
    """What goes wrong."""

    deaf: bool = False
    no_stub: bool = False  # the stub does not come up
    refuse_blocks: int = 0  # so many blocks are answered with an error
    drop_byte_in_block: int | None = None  # a byte of this answer is lost on the line, once
    corrupt_at: int | None = None  # a byte of flash that does not take
    unplug_after_blocks: int | None = None
    stall_after_blocks: int | None = None  # takes the line for ever without an answer


class EspPeer(SocketPeer):
    """A chip by its number, as GET_SECURITY_INFO tells it: 9 is the ESP32-S3, 5 the ESP32-C3."""

    def __init__(self, chip_id: int = 9, faults: Faults | None = None) -> None:
        super().__init__()
        self.chip_id = chip_id
        self.faults = faults or Faults()
        self.flash = bytearray(b"\xff" * FLASH_BYTES)
        self.stub = False
        self.blocks = 0
        self.ended = False
        self._at = 0
        self._inflate = zlib.decompressobj()

    def serve(self) -> None:
        while True:
            frame = self.frame()
            if self.faults.deaf or len(frame) < 8 or frame[0] != 0:
                continue
            _, op, size, checksum = struct.unpack_from("<BBHI", frame)
            self.answer(op, frame[8 : 8 + size], checksum)

    def frame(self) -> bytes:
        """One SLIP frame of the host."""
        while self.read(1) != b"\xc0":
            pass
        data = bytearray()
        while (byte := self.read(1)) != b"\xc0":
            data += byte
        return bytes(data).replace(b"\xdb\xdc", b"\xc0").replace(b"\xdb\xdd", b"\xdb")

    def send(self, payload: bytes) -> None:
        self.write(b"\xc0" + payload.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc") + b"\xc0")

    def reply(self, op: int, value: int = 0, data: bytes = b"", status: int = 0) -> None:
        tail = bytes((1 if status else 0, status)) + (b"" if self.stub else b"\0\0")
        payload = struct.pack("<BBHI", 1, op, len(data) + len(tail), value) + data + tail
        if op in (0x03, 0x11) and self.faults.drop_byte_in_block == self.blocks:
            self.faults.drop_byte_in_block = None
            payload = payload[:3] + payload[4:]
        self.send(payload)

    def answer(self, op: int, data: bytes, checksum: int) -> None:
        if op == 0x08:  # SYNC: eight answers, whose value is 0 only in the stub
            for _ in range(8):
                self.reply(op, 0 if self.stub else 0x20120707)
        elif op == 0x0A:  # READ_REG
            (address,) = struct.unpack("<I", data)
            self.reply(op, FLASH_ID if address == SPI_W0 else 0)
        elif op == 0x14:  # GET_SECURITY_INFO
            self.reply(op, data=struct.pack("<I8BII", 0, *[0] * 8, self.chip_id, 0))
        elif op in (0x09, 0x0B, 0x0D, 0x0F, 0x05):  # registers, flash parameters, attach, speed, RAM
            self.reply(op)
        elif op == 0x07:  # MEM_DATA
            self.reply(op, status=0 if self.good(data, checksum) else CHECKSUM_WRONG)
        elif op == 0x06:  # MEM_END: starts the stub
            self.reply(op)
            if not self.faults.no_stub:
                self.stub = True
                self.send(b"OHAI")
        elif op in (0x02, 0x10):  # FLASH_BEGIN, FLASH_DEFL_BEGIN
            size, _, _, self._at = struct.unpack_from("<4I", data)
            if size:
                start, end = self._at // 4096 * 4096, -(-(self._at + size) // 4096) * 4096
                self.flash[start:end] = b"\xff" * (end - start)
            self._inflate = zlib.decompressobj()
            self.reply(op)
        elif op in (0x03, 0x11):  # FLASH_DATA, FLASH_DEFL_DATA
            self.block(op, data, checksum)
        elif op in (0x04, 0x12):  # FLASH_END, FLASH_DEFL_END
            self.ended = True
            self.reply(op)
        elif op == 0x13:  # SPI_FLASH_MD5: the ROM answers in hexadecimal
            address, size = struct.unpack_from("<2I", data)
            digest = hashlib.md5(self.flash[address : address + size])
            self.reply(op, data=digest.digest() if self.stub else digest.hexdigest().encode())
        else:
            self.reply(op, status=INVALID)

    def good(self, data: bytes, checksum: int) -> bool:
        (size,) = struct.unpack_from("<I", data)
        found = 0xEF
        for byte in data[16 : 16 + size]:
            found ^= byte
        return found == checksum & 0xFF and len(data) == 16 + size

    def block(self, op: int, data: bytes, checksum: int) -> None:
        if self.faults.refuse_blocks > 0 or not self.good(data, checksum):
            self.faults.refuse_blocks -= 1
            self.reply(op, status=CHECKSUM_WRONG)
            return
        self.blocks += 1
        if self.blocks == self.faults.unplug_after_blocks:
            raise Unplugged
        if self.blocks == self.faults.stall_after_blocks:
            while True:
                self.read_some()
        content = data[16:]
        if op == 0x11:
            content = self._inflate.decompress(content)
        self.flash[self._at : self._at + len(content)] = content
        bad = self.faults.corrupt_at
        if bad is not None and self._at <= bad < self._at + len(content):
            self.flash[bad] ^= 0x10
        self._at += len(content)
        self.reply(op)
