"""UF2: the format, and a boot loader that sees the sectors of a drive."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flash_boards import board
from hypothesis import given, settings
from hypothesis import strategies as st
from intelhex import IntelHex

from device_runtime.errors import ConfigurationError, DoesNotFitError, FlashError, ImageError, UnreachableError
from tests.toolkit.flash.peers.uf2 import Uf2Peer
from toolkit.flash import uf2
from toolkit.flash.images import Image, read_firmware
from toolkit.flash.uf2 import Flasher
from toolkit.flash.uf2_format import Block, Flag, decode, encode

RP2040, RP2350 = 0xE48BFF56, 0xE48BFF59
FIRMWARE_AT, MODEL_AT = 0x10000000, 0x10100000
NOISE = random.Random(3).randbytes(70_000)


def flasher(mounts: list[Path] | None = None, **flash: object) -> Flasher:
    fields = {
        "uf2_family": RP2040, "uf2_board_id": "RPI-RP2", "firmware_address": FIRMWARE_AT, "firmware_kib": 1024,
        "model_address": MODEL_AT,
    }  # fmt: skip
    return Flasher(board("uf2", **fields | flash), lambda: mounts or [])


def run(using: Flasher, port: Path | None, firmware: Image | None, model: Image | None = None):
    parts = using.check(firmware, model)
    return using.flash(parts, port and str(port), lambda step, share: None)


def test_a_uf2_file_reaches_the_flash_and_the_drive_goes_away(tmp_path: Path) -> None:
    file = Image("blink.uf2", encode([(FIRMWARE_AT, NOISE)], RP2040))
    with Uf2Peer(tmp_path, RP2040) as peer:
        result = run(flasher([tmp_path, peer.drive]), None, file)
    assert peer.restarted and not peer.drive.exists()
    assert peer.memory(FIRMWARE_AT, len(NOISE)) == NOISE
    assert result.port == str(peer.drive)
    assert "took 288 blocks" in result.verified and "cannot be read back" in result.verified


def test_through_the_sectors_of_a_real_fat_drive(tmp_path: Path) -> None:
    if shutil.which("mkfs.vfat") is None or shutil.which("mcopy") is None:
        pytest.skip("dosfstools and mtools are not installed")
    image = tmp_path / "drive.img"
    with open(image, "wb") as file:
        file.truncate(8 * 1024 * 1024)
    subprocess.run(["mkfs.vfat", "-s", "1", image], check=True, stdout=subprocess.DEVNULL)
    with Uf2Peer(tmp_path, RP2040, image=image) as peer:
        run(flasher([peer.drive]), None, Image("blink.bin", NOISE), Image("bundle", b"model" * 1000))
    assert peer.memory(FIRMWARE_AT, len(NOISE)) == NOISE
    assert peer.memory(MODEL_AT, 5000) == b"model" * 1000


def test_a_model_alone_touches_no_other_sector(tmp_path: Path) -> None:
    with Uf2Peer(tmp_path, RP2040) as peer:
        run(flasher(), peer.drive, None, Image("bundle", b"weights" * 100))
    assert sorted(peer.flash) == list(range(MODEL_AT, MODEL_AT + 4096, 256))
    assert peer.memory(MODEL_AT, 4096) == b"weights" * 100 + b"\xff" * 3396


@pytest.mark.parametrize("family", [RP2040, RP2350])
def test_firmware_that_ends_inside_a_sector_leaves_the_model_behind_it_whole(tmp_path: Path, family: int) -> None:
    """The boot loader of the RP2040 erases by the numbers of blocks, sixteen for a sector."""
    firmware, model = NOISE[:300], NOISE[:9000]
    with Uf2Peer(tmp_path, family) as peer:
        run(flasher(uf2_family=family), peer.drive, Image("f.bin", firmware), Image("bundle", model))
    assert peer.memory(FIRMWARE_AT, 300) == firmware
    assert peer.memory(MODEL_AT, 9000) == model


def test_gaps_of_a_uf2_file_stay_as_they_are_but_for_the_sectors_that_it_touches(tmp_path: Path) -> None:
    parts = [(FIRMWARE_AT, b"a" * 256), (FIRMWARE_AT + 0x400, b"b" * 256), (FIRMWARE_AT + 0x8F00, b"c" * 256)]
    with Uf2Peer(tmp_path, RP2040) as peer:
        run(flasher(), peer.drive, Image("gaps.uf2", encode(parts, RP2040)))
    assert all(peer.memory(address, 256) == data for address, data in parts)
    assert {page // 4096 * 4096 for page in peer.flash} == {FIRMWARE_AT, FIRMWARE_AT + 0x8000}
    assert peer.memory(FIRMWARE_AT + 0x100, 0x300) == b"\xff" * 0x300


def test_a_models_place_inside_a_sector_is_a_fault_of_the_board_file() -> None:
    with pytest.raises(ConfigurationError, match=r"0x10100100, inside a sector.*expected a multiple of 0x1000"):
        flasher(model_address=MODEL_AT + 0x100).check(None, Image("bundle", b"x"))


def test_the_block_that_picotool_puts_first_for_rp2350_is_passed_on_and_not_counted(tmp_path: Path) -> None:
    ignored = struct.pack("<8I", 0x0A324655, 0x9E5D5157, 0xA000, 0x10FFFF00, 256, 0, 2, 0xE48BFF57)
    ignored += (b"\xef" * 256 + struct.pack("<I", 0x9957E304)).ljust(476, b"\0") + struct.pack("<I", 0x0AB16F30)
    file = Image("blink.uf2", ignored + encode([(FIRMWARE_AT, NOISE[:1000])], RP2350))
    with Uf2Peer(tmp_path, RP2350, board_id="RP2350") as peer:
        run(flasher(uf2_family=RP2350, uf2_board_id="RP2350"), peer.drive, file)
    assert peer.memory(FIRMWARE_AT, 1000) == NOISE[:1000]
    assert len(peer.ignored) == 1


def test_a_file_for_another_family_is_refused_without_a_board() -> None:
    with pytest.raises(DoesNotFitError, match=r"another chip: it has blocks of 0xe48bff59.*family 0xe48bff56"):
        flasher().check(Image("pico2.uf2", encode([(FIRMWARE_AT, b"x")], RP2350)), None)
    nameless = b"".join(Block(FIRMWARE_AT, b"x" * 256, 0, 1).to_bytes() for _ in range(1))
    with pytest.raises(DoesNotFitError, match=r"blocks of no family"):
        flasher().check(Image("old.uf2", nameless), None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xe9" + bytes(99), "an image for an ESP chip; Test board"),
        (b"\x7fELF" + bytes(99), "objcopy"),
        (b"\x3d\xb8\xf3\x96" + bytes(99), "an MCUboot image"),
    ],
)
def test_files_of_other_kinds_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(DoesNotFitError, match=message):
        flasher().check(Image("f", data), None)


def test_what_does_not_fit_into_its_place_is_refused() -> None:
    with pytest.raises(DoesNotFitError, match=r"1048577 bytes; the board's place for the firmware has 1048576"):
        flasher().check(Image("f.bin", bytes(1024 * 1024 + 1)), None)
    with pytest.raises(DoesNotFitError, match=r"starts at 0x20000000"):
        flasher().check(Image("ram.uf2", encode([(0x20000000, b"x")], RP2040)), None)
    with pytest.raises(ConfigurationError, match=r"no flash.model_address"):
        flasher(model_address=None).check(None, Image("bundle", b"x"))


def test_a_drive_that_stays_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uf2, "ACCEPT_TIMEOUT_S", 0.2)
    with Uf2Peer(tmp_path, RP2350, board_id="RPI-RP2") as peer:  # a boot loader of another chip, which ignores blocks
        with pytest.raises(FlashError, match=r"still there.*did not accept it"):
            run(flasher(), peer.drive, Image("f.bin", NOISE))
        while not peer.ignored:
            time.sleep(0.01)  # until it has looked
        assert peer.flash == {}


def test_a_drive_that_goes_away_in_the_middle_is_not_an_acceptance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uf2, "_CHUNK_BYTES", 4096)
    with Uf2Peer(tmp_path, RP2040) as peer:
        peer.refuse = True
        using = flasher()
        parts = using.check(Image("f.bin", NOISE), None)

        def pull(step: str, share: float) -> None:
            if share > 0 and peer.drive.exists():
                shutil.rmtree(peer.drive)

        real = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: real(fd) if peer.drive.exists() else _no_device())
        with pytest.raises(FlashError, match=r"stopped after 8192 of"):
            using.flash(parts, str(peer.drive), pull)


def test_a_drive_that_may_not_be_written_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(uf2, "open", refuse, raising=False)
    with pytest.raises(FlashError, match=r"Permission denied. Mount it for your user.*Nothing was written"):
        uf2._copy(bytes(512), tmp_path, lambda step, share: None)


def _no_device() -> None:
    raise OSError(5, "Input/output error")


def test_no_drive_says_what_is_there_and_which_button_to_hold(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=r"found no UF2 drive.*hold BOOT and press RESET"):
        run(flasher([tmp_path]), None, Image("f.bin", b"x" * 300))
    other = Uf2Peer(tmp_path, RP2350, board_id="RP2350")
    with pytest.raises(UnreachableError, match=r"RP2350 \(RP2350\)"):
        run(flasher([tmp_path, other.drive]), None, Image("f.bin", b"x" * 300))
    with pytest.raises(DoesNotFitError, match=r"the drive of a board 'RP2350'; .* calls itself 'RPI-RP2'"):
        run(flasher(), other.drive, Image("f.bin", b"x" * 300))
    with pytest.raises(ConfigurationError, match=r"has no INFO_UF2.TXT"):
        run(flasher(), tmp_path, Image("f.bin", b"x" * 300))


def test_drives_are_found_where_fat_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uf2, "_TABLE", tmp_path / "mounts")
    assert uf2._mount_points() == []
    (tmp_path / "mounts").write_text(
        "proc /proc proc rw 0 0\n/dev/sdb1 /media/müller/RPI-RP2\\0401 vfat rw 0 0\n/dev/sda1 / ext4 rw 0 0\n"
    )
    assert uf2._mount_points() == [Path("/media/müller/RPI-RP2 1")]


def test_a_mount_that_outlives_its_device_is_a_drive_that_went_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = Uf2Peer(tmp_path, RP2040)  # nobody unmounts: the folder stays readable
    device = tmp_path / "sdb1"
    device.touch()
    monkeypatch.setattr(uf2, "_TABLE", tmp_path / "mounts")
    (tmp_path / "mounts").write_text(f"{device} {peer.drive} vfat rw 0 0\n")
    assert not uf2._is_gone(peer.drive)
    device.unlink()
    assert uf2._is_gone(peer.drive)


def test_a_board_that_restarts_on_the_last_block_has_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    using = flasher()
    parts = using.check(Image("f.bin", NOISE), None)
    with Uf2Peer(tmp_path, RP2040) as peer:
        real = os.fsync

        def restart(descriptor: int) -> None:
            real(descriptor)
            if os.fstat(descriptor).st_size == 288 * 512:  # the last block came: the device is gone
                peer._thread.join(20)
                _no_device()

        monkeypatch.setattr(os, "fsync", restart)
        assert "took 288 blocks" in using.flash(parts, str(peer.drive), lambda step, share: None).verified
    assert peer.memory(FIRMWARE_AT, len(NOISE)) == NOISE


def test_two_boards_that_wait_are_a_question(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    both = [Uf2Peer(tmp_path / "a", RP2040).drive, Uf2Peer(tmp_path / "b", RP2040).drive]
    with pytest.raises(ConfigurationError, match=r"Several boards wait"):
        run(flasher(both), None, Image("f.bin", b"x" * 300))


def test_the_bytes_are_those_of_esptools_writer(tmp_path: Path) -> None:
    """An independent implementation: with its options for size and family it writes the same file.

    esptool adds an MD5 of each page unless it is told not to.
    """
    pytest.importorskip("serial", reason="the extra `flash` is not installed")
    image = tmp_path / "image.bin"
    image.write_bytes(NOISE[:2560])  # whole pages: esptool does not fill up the last one
    made = tmp_path / "image.uf2"
    command = [
        sys.executable, "-m", "esptool", "--chip", "esp32s3", "merge-bin", "--format", "uf2", "--chunk-size", "256",
        "--md5-disable", "-o", str(made), "0x10000", str(image),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    blocks = decode(made.read_bytes())
    assert b"".join(block.data for block in blocks) == NOISE[:2560]
    assert blocks[0].family == 0xC47E5767  # ESP32-S3, uf2families.json
    plain = [Block(b.address, b.data, b.number, b.count, b.family).to_bytes() for b in blocks]
    assert b"".join(plain) == encode([(0x10000, NOISE[:2560])], 0xC47E5767)


def test_checksums_that_esptool_writes_are_checked(tmp_path: Path) -> None:
    image, made = tmp_path / "image.bin", tmp_path / "image.uf2"
    image.write_bytes(NOISE[:2560])
    command = [sys.executable, "-m", "esptool", "--chip", "esp32s3", "merge-bin", "--format", "uf2", "-o", made]
    done = subprocess.run([*map(str, command), "0x10000", str(image)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    data = bytearray(made.read_bytes())
    assert all(block.flags & Flag.MD5 for block in decode(bytes(data)))
    data[512 + 40] ^= 1
    with pytest.raises(ImageError, match=r"the MD5 that it says for 0x00010"):
        decode(bytes(data))


def test_a_truncated_or_damaged_file_is_refused() -> None:
    good = encode([(FIRMWARE_AT, NOISE)], RP2040)
    for damaged, message in [
        (good[:-512], "truncated"),
        (good[:-1], "whole blocks"),
        (b"", "whole blocks"),
        (good[:512] * 2, "274 blocks; 1 different"),
        (good[:508] + b"\0\0\0\0" + good[512:], "ends with 0x00000000"),
        (good[:16] + struct.pack("<I", 477) + good[20:], "477 bytes"),
    ]:
        with pytest.raises(ImageError, match=message):
            decode(damaged)


addresses = st.integers(0, 2**32 - 2**20)


@settings(deadline=None)
@given(
    st.lists(st.tuples(addresses, st.binary(min_size=1, max_size=2000)), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_what_is_encoded_is_decoded(parts: list[tuple[int, bytes]], family: int) -> None:
    blocks = decode(encode(parts, family))
    assert {block.family for block in blocks} == {family}
    assert all(len(block.data) == 256 and block.address % 256 == 0 for block in blocks)
    held, expected = {}, {}
    for block in blocks:
        held |= dict(enumerate(block.data, block.address))
    for address, data in parts:
        expected |= dict(enumerate(data, address))
    assert {address: held.pop(address) for address in expected} == expected
    assert set(held.values()) <= {0xFF}
    assert b"".join(block.to_bytes() for block in blocks) == encode(parts, family)


@settings(deadline=None)
@given(
    st.binary(max_size=600)
    | st.builds(lambda h, b: (h + b)[:512].ljust(512, b"\0"), st.just(b"UF2\nWQ]\x9e"), st.binary(max_size=504))
)
def test_noise_is_refused_by_our_own_error(noise: bytes) -> None:
    with pytest.raises(ImageError):
        decode(noise)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_flipped_byte_is_harmless_or_refused(flips: list[tuple[int, int]]) -> None:
    data = bytearray(encode([(FIRMWARE_AT, NOISE[:256])], RP2040))
    for at, value in flips:
        data[at] = value
    with suppress(ImageError, DoesNotFitError):
        flasher().check(Image("f.uf2", bytes(data)), None)


def test_flags_are_read_by_their_names() -> None:
    block = decode(Block(0, b"x", 0, 1, 7, Flag.NOT_MAIN_FLASH).to_bytes())[0]
    assert block.flags is Flag.NOT_MAIN_FLASH and block.family == 7


def with_sums(pages: int, region: Callable[[int], tuple[int, int]]) -> bytes:
    """A UF2 file whose block number n has the MD5 of `region(n)`, a page's number and how many."""
    content = random.Random(5).randbytes(256 * pages)
    blocks = []
    for number in range(pages):
        first, count = region(number)
        digest = hashlib.md5(content[first * 256 : (first + count) * 256]).digest()
        rest = struct.pack("<2I16s", FIRMWARE_AT + first * 256, count * 256, digest)
        page, rest = content[number * 256 : (number + 1) * 256], bytes(476 - 256 - 24) + rest
        blocks.append(Block(FIRMWARE_AT + number * 256, page, number, pages, RP2040, Flag.MD5, rest).to_bytes())
    return b"".join(blocks)


@pytest.mark.parametrize("pages", [300, 600])
def test_each_byte_is_hashed_once_however_many_blocks_have_the_sum(pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data, hashed = with_sums(pages, lambda n: (0, pages)), []
    md5 = hashlib.md5

    def counted(region: bytes, **options: bool) -> Any:
        hashed.append(len(region))
        return md5(region, **options)

    monkeypatch.setattr(hashlib, "md5", counted)
    assert len(decode(data)) == pages
    assert hashed == [256 * pages]


def test_checksums_of_regions_that_overlap_again_and_again_are_refused() -> None:
    with pytest.raises(ImageError, match="300 checksums of regions that overlap; expected one for each region"):
        decode(with_sums(300, lambda n: (0, n + 1)))
    assert decode(with_sums(30, lambda n: (n // 10 * 10, 10)))


def test_gaps_of_a_hex_file_are_not_written(tmp_path: Path) -> None:
    """Far apart they take no memory either."""
    content = IntelHex()
    content.puts(FIRMWARE_AT, b"a" * 256)
    content.puts(FIRMWARE_AT + 0x2000, b"b" * 100)
    content.tofile(str(tmp_path / "app.hex"), format="hex")
    image = read_firmware(tmp_path / "app.hex")
    parts = flasher().check(image, None)
    assert [(part.address, part.image.data) for part in parts] == [
        (FIRMWARE_AT, b"a" * 256), (FIRMWARE_AT + 0x2000, b"b" * 100),
    ]  # fmt: skip
    content.puts(0xF0000000, b"c")
    content.tofile(str(tmp_path / "app.hex"), format="hex")
    far = read_firmware(tmp_path / "app.hex")
    assert [run.address for run in far.runs] == [FIRMWARE_AT, FIRMWARE_AT + 0x2000, 0xF0000000]
    with pytest.raises(ImageError, match="spreads from 0x10000000 to 0xf0000000; expected one image of at most"):
        far.joined()
    assert image.joined().data == b"a" * 256 + b"\xff" * (0x2000 - 256) + b"b" * 100
