"""A board with MCUboot and an SMP server: two slots, swap, test, confirm, and the way back.

Frames and messages are those of the `smp` package; whether an image may start is judged by imgtool, with the key.
"""

from __future__ import annotations

import hashlib
import struct
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import cbor2
from imgtool import keys
from imgtool.image import Image, VerifyResult
from smp import header as smpheader
from smp import image_management as img
from smp import os_management as osm
from smp import packet
from smp.error import MGMT_ERR

from tests.toolkit.flash.peers.serial_line import PtyPeer

SLOT_BYTES = 256 * 1024


@dataclass
class Faults:
    """What goes wrong."""

    deaf: bool = False
    lose_answer_at: int | None = None  # this answer of the upload is lost, once
    garble_answer_at: int | None = None  # a byte of this one is altered, once
    stop_after: int | None = None  # silent for ever from this packet of the upload on
    refuse_upload: bool = False
    mismatch: bool = False  # the flash holds something else than was sent
    crashes: bool = False  # the new image restarts by itself before it answers
    slow_restart: int = 0  # so many requests are still answered by the old image
    replug: Path | None = None  # a link to the port, which goes away for a while at the restart, as with USB
    mute_polls: int = 0  # so many requests after the restart stay without an answer
    lose_resets: int = 0  # so many requests to restart do not arrive
    restart_at_once: bool = False  # before the request to restart is answered
    recovery: bool = False  # waits in MCUboot's serial recovery, as its boot_serial.c does
    news: bool = False  # its lists have keys that no client knows yet
    no_version: bool = False  # its list of images lacks what the protocol asks for
    recovery_hashes: bool = False  # MCUBOOT_SERIAL_IMG_GRP_HASH


class SmpBoard(PtyPeer):
    """slots[0] runs."""

    def __init__(self, running: bytes, key: Path, faults: Faults | None = None) -> None:
        super().__init__()
        self.key = keys.load(str(key))
        self.slots = [running, b""]
        self.faults = faults or Faults()
        self.pending = False
        self.confirmed = True  # what runs
        self.restarts = 0
        self.packets: list[int] = []  # offsets of the uploads that came
        self._upload: tuple[bytes, int] | None = None  # sha, length
        self._mute = 0
        self._until_restart = 0

    def serve(self) -> None:
        line = b""
        decoder = None
        while True:
            line += self.read_some()
            while b"\n" in line:
                one, line = line.split(b"\n", 1)
                try:
                    if one.startswith(packet.START_DELIMITER):
                        decoder = packet.decode()
                        next(decoder)
                    if decoder is not None:
                        decoder.send(one + b"\n")
                except StopIteration as whole:
                    decoder = None
                    self.answer(bytes(whole.value))

    def answer(self, frame: bytes) -> None:
        header = smpheader.Header.loads(frame[: smpheader.Header.SIZE])
        if self.faults.deaf:
            return
        if self._mute > 0:
            self._mute -= 1
            return
        group, command = header.group_id, header.command_id
        write = header.op == smpheader.OP.WRITE
        if self.faults.recovery:
            self.recover(header, frame)
        elif (group, command) == (0, 6):
            self.send(osm.MCUMgrParametersReadResponse(sequence=header.sequence, buf_size=1024, buf_count=4))
        elif (group, command) == (0, 5):
            if self.faults.lose_resets > 0:
                self.faults.lose_resets -= 1
                return
            if not self.faults.restart_at_once:
                self.send(osm.ResetWriteResponse(sequence=header.sequence))
            self._until_restart = self.faults.slow_restart
            if self._until_restart == 0:
                self.restart()
        elif (group, command, write) == (1, 0, False):
            if self._until_restart > 0:
                self._until_restart -= 1
                if self._until_restart == 0:
                    self.restart()
            if self.faults.news or self.faults.no_version:
                self.list_images_otherwise(header)
            else:
                self.send(img.ImageStatesReadResponse(sequence=header.sequence, images=self.states()))
        elif (group, command, write) == (1, 0, True):
            self.set_state(img.ImageStatesWriteRequest.loads(frame))
        elif (group, command) == (1, 1):
            self.upload(img.ImageUploadWriteRequest.loads(frame))
        else:
            self.refuse(header, group, MGMT_ERR.ENOTSUP)

    def list_images_otherwise(self, request: smpheader.Header) -> None:
        """The list of images with keys of a later server, or without one that it has to have."""
        slots = [state.model_dump(exclude_none=True) for state in self.states()]
        for slot in slots:
            slot["compressed"] = False
            if self.faults.no_version:
                del slot["version"]
        self.reply(request, {"images": slots, "splitStatus": 0, "mode": "swap"}, smpheader.Version.V2)

    def send(self, message) -> None:
        wire = b"".join(packet.encode(bytes(message)))
        if isinstance(message, img.ImageUploadWriteResponse):
            if self.faults.lose_answer_at == len(self.packets):
                self.faults.lose_answer_at = None
                return
            if self.faults.garble_answer_at == len(self.packets):
                self.faults.garble_answer_at = None
                wire = wire[:5] + bytes((wire[5] ^ 1,)) + wire[6:]
        self.write(b"log: not a frame\r\n" + wire)  # a console shares the line

    def refuse(self, request: smpheader.Header, group: int, reason: int) -> None:
        """An error of SMP's second version."""
        self.reply(request, {"err": {"group": group, "rc": int(reason)}}, smpheader.Version.V2)

    def answer_v1(self, request: smpheader.Header, content: dict[str, object]) -> None:
        """An answer of SMP's first version, where errors are a number among the rest."""
        self.reply(request, content, smpheader.Version.V1)

    def reply(self, request: smpheader.Header, content: dict[str, object], version: smpheader.Version) -> None:
        body = cbor2.dumps(content)
        op = smpheader.OP.WRITE_RSP if request.op == smpheader.OP.WRITE else smpheader.OP.READ_RSP
        header = smpheader.Header(
            op=op, version=version, flags=smpheader.Flag(0), length=len(body), group_id=request.group_id,
            sequence=request.sequence, command_id=request.command_id,
        )  # fmt: skip
        self.write(b"".join(packet.encode(bytes(header) + body)))

    def recover(self, request: smpheader.Header, frame: bytes) -> None:
        """MCUboot's serial recovery: answers of the first version, nothing active, and the first slot is written."""
        group, command, write = request.group_id, request.command_id, request.op == smpheader.OP.WRITE
        if (group, command) == (0, 5):
            self.answer_v1(request, {"rc": 0})
            self.faults.recovery = False
            self.restarts += 1
        elif (group, command, write) == (1, 0, False):
            images = []
            if len(self.slots[0]) >= 32 and self.verify(self.slots[0])[0] is VerifyResult.OK:
                major, minor, revision, _ = struct.unpack_from("<BBHI", self.slots[0], 20)
                images.append({"slot": 0, "version": f"{major}.{minor}.{revision}"})
                if self.faults.recovery_hashes:
                    images[0]["hash"] = self.digest(self.slots[0])
            self.answer_v1(request, {"images": images})
        elif (group, command) == (1, 1):
            self.upload_in_recovery(request, img.ImageUploadWriteRequest.loads(frame))
        else:
            self.answer_v1(request, {"rc": int(MGMT_ERR.ENOTSUP)})

    def upload_in_recovery(self, header: smpheader.Header, request: img.ImageUploadWriteRequest) -> None:
        if self.faults.refuse_upload:
            self.answer_v1(header, {"rc": int(MGMT_ERR.EINVAL)})
            return
        self.packets.append(request.off)
        if self.faults.stop_after is not None and len(self.packets) > self.faults.stop_after:
            return
        if request.off == 0:
            self.slots[0] = b""  # an upload always begins again
        if request.off == len(self.slots[0]):
            self.slots[0] += request.data
        self.answer_v1(header, {"rc": 0, "off": len(self.slots[0])})

    def verify(self, data: bytes):
        """imgtool's judgement: hash and signature, then version and digest."""
        with tempfile.NamedTemporaryFile(suffix=".bin") as file:
            file.write(data)
            file.flush()
            return Image.verify(file.name, self.key)

    def digest(self, data: bytes) -> bytes:
        """The hash that the image says, as a server reads it from its tags."""
        hdr_size, _, img_size = struct.unpack_from("<HHI", data, 8)
        return data[hdr_size + img_size + 8 :][:32]

    def states(self) -> list[img.ImageState]:
        found = []
        for slot, data in enumerate(self.slots):
            if len(data) < 32:
                continue
            major, minor, revision, _ = struct.unpack_from("<BBHI", data, 20)
            found.append(
                img.ImageState(
                    slot=slot, version=f"{major}.{minor}.{revision}", hash=self.digest(data), bootable=True,
                    active=slot == 0, confirmed=slot == 0 and self.confirmed, pending=slot == 1 and self.pending,
                )
            )  # fmt: skip
        return found

    def set_state(self, request: img.ImageStatesWriteRequest) -> None:
        if request.confirm:
            self.confirmed = True
        elif self.slots[1] and request.hash == self.digest(self.slots[1]):
            self.pending = True
        else:
            self.refuse(request.header, 1, img.IMG_MGMT_ERR.HASH_NOT_FOUND)
            return
        self.send(img.ImageStatesWriteResponse(sequence=request.sequence, images=self.states()))

    def upload(self, request: img.ImageUploadWriteRequest) -> None:
        if self.faults.refuse_upload:
            self.refuse(request.header, 1, img.IMG_MGMT_ERR.NO_FREE_SLOT)
            return
        self.packets.append(request.off)
        if self.faults.stop_after is not None and len(self.packets) > self.faults.stop_after:
            return
        if request.off == 0:
            assert request.len is not None and request.sha is not None
            if request.len > SLOT_BYTES:
                self.refuse(request.header, 1, img.IMG_MGMT_ERR.INVALID_IMAGE_TOO_LARGE)
                return
            if self._upload != (request.sha, request.len):
                self._upload = (request.sha, request.len)
                self.slots[1] = request.data
        elif request.off == len(self.slots[1]):
            self.slots[1] += request.data
        assert self._upload is not None
        sha, length = self._upload
        match = None
        if len(self.slots[1]) == length:
            if self.faults.mismatch:
                self.slots[1] = self.slots[1][:-1] + bytes((self.slots[1][-1] ^ 1,))
            match = hashlib.sha256(self.slots[1]).digest() == sha
            self._upload = None
        self.send(
            img.ImageUploadWriteResponse(
                sequence=request.sequence, off=len(self.slots[1]), **({} if match is None else {"match": match})
            )
        )

    def restart(self) -> None:
        """What MCUboot does."""
        self.restarts += 1
        self._mute = self.faults.mute_polls
        if (link := self.faults.replug) is not None:
            link.unlink()
            threading.Timer(0.3, link.symlink_to, [self.port]).start()
        if not self.confirmed:  # a test that was not confirmed
            self.slots.reverse()
            self.confirmed = True
        elif self.pending:
            self.pending = False
            if self.verify(self.slots[1])[0] is not VerifyResult.OK:
                self.slots[1] = b""
                return
            self.slots.reverse()
            self.confirmed = False
            if self.faults.crashes:
                self.restart()
