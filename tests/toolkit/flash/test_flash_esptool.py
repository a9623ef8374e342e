"""ESP chips: the real esptool, run by our flasher, against a chip that speaks the boot loader's protocol."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from flash_boards import board
from hypothesis import given, settings
from hypothesis import strategies as st
from intelhex import IntelHex
from make_images import esp_image, esp_whole_flash

from device_runtime.errors import DoesNotFitError, FlashError, ImageError, StonechatError, UnreachableError
from tests.toolkit.flash.peers.esp import EspPeer, Faults
from toolkit.flash import esptool
from toolkit.flash.esp_image import boot_loader_offset
from toolkit.flash.esptool import Flasher
from toolkit.flash.images import Image, read_firmware

MODEL_AT = 0x400000
S3, C3 = 9, 5
NOISE = random.Random(5).randbytes(40_000)


def flasher(**flash: object) -> Flasher:
    return Flasher(board("esptool", **{"chip": "esp32s3", "model_address": MODEL_AT} | flash))


def run(peer: EspPeer, firmware: bytes | None, model: bytes | None = None):
    using = flasher()
    parts = using.check(Image("app.bin", firmware) if firmware else None, Image("bundle", model) if model else None)
    steps: list[tuple[str, float]] = []
    result = using.flash(parts, peer.port, lambda step, share: steps.append((step, share)))
    return result, steps


def test_firmware_and_model_reach_the_flash_and_are_verified_by_the_chip() -> None:
    app = esp_image(S3)
    with EspPeer() as peer:
        result, steps = run(peer, app, NOISE)
    assert peer.stub and peer.ended
    assert peer.flash[0x10000 : 0x10000 + len(app)] == app
    assert peer.flash[MODEL_AT : MODEL_AT + len(NOISE)] == NOISE
    assert "MD5" in result.verified
    assert {step for step, share in steps if share == 1.0} == {"write firmware", "write model"}
    assert [step for step, _ in steps] == sorted(
        (step for step, _ in steps), key=["write firmware", "write model"].index
    )


def test_a_model_alone_leaves_the_rest_of_the_flash() -> None:
    with EspPeer() as peer:
        run(peer, None, NOISE)
    assert peer.flash[:MODEL_AT] == b"\xff" * MODEL_AT


def test_a_block_that_the_chip_refuses_is_sent_again() -> None:
    with EspPeer(faults=Faults(refuse_blocks=1)) as peer:
        run(peer, None, NOISE)
    assert peer.flash[MODEL_AT : MODEL_AT + len(NOISE)] == NOISE


def test_a_block_that_is_written_twice_because_its_answer_was_cut_on_the_line_is_found() -> None:
    with (
        EspPeer(faults=Faults(drop_byte_in_block=1)) as peer,  # the loader writes on, whatever the number of a block
        pytest.raises(FlashError, match=r"MD5 of file does not match"),
    ):
        run(peer, None, NOISE)


def test_a_byte_that_does_not_take_is_found_by_its_md5() -> None:
    with (
        EspPeer(faults=Faults(corrupt_at=MODEL_AT + 5000)) as peer,
        pytest.raises(FlashError, match=r"MD5 of file does not match.*only partly written"),
    ):
        run(peer, None, NOISE)


def test_another_chip_is_named() -> None:
    with EspPeer(chip_id=C3) as peer:
        with pytest.raises(DoesNotFitError, match=r"This chip is ESP32-C3, not ESP32-S3. The board file says esp32s3"):
            run(peer, None, NOISE)
        assert peer.blocks == 0


def test_a_board_that_does_not_answer_names_its_button(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(esptool, "_CONNECT_ATTEMPTS", 1)
    with (
        EspPeer(faults=Faults(deaf=True)) as peer,
        pytest.raises(UnreachableError, match=r"does not answer.*hold BOOT and press RESET"),
    ):
        run(peer, None, NOISE)


def test_a_serial_server_that_is_not_there_is_unreachable() -> None:
    peer = EspPeer()
    peer._listener.close()
    with pytest.raises(UnreachableError, match=r"Could not open .*Nothing was written"):
        run(peer, None, NOISE)


def test_a_board_that_is_unplugged_half_way_is_described() -> None:
    with (
        EspPeer(faults=Faults(unplug_after_blocks=2)) as peer,
        pytest.raises(FlashError, match=r"esptool: .*only partly written.*ROM and cannot be lost"),
    ):
        run(peer, None, NOISE)


def test_our_images_are_images_to_esptool(tmp_path: Path) -> None:
    file = tmp_path / "app.bin"
    file.write_bytes(esp_image(S3))
    done = subprocess.run([sys.executable, "-m", "esptool", "image-info", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "ESP32-S3" in done.stdout and "(valid)" in done.stdout and "(invalid" not in done.stdout


def test_a_program_goes_to_its_partition_and_a_whole_flash_to_its_beginning() -> None:
    assert flasher().check(Image("app.bin", esp_image(S3)), None)[0].address == 0x10000
    assert flasher(firmware_address=0x20000).check(Image("app.bin", esp_image(S3)), None)[0].address == 0x20000
    assert flasher().check(Image("merged.bin", esp_whole_flash(S3)), None)[0].address == 0


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (esp_image(C3), DoesNotFitError, "for the chip esp32c3; the board has esp32s3"),
        (esp_whole_flash(C3), DoesNotFitError, "The boot loader in app.bin is for the chip esp32c3"),
        (esp_image(77), DoesNotFitError, r"unknown \(77\)"),
        (esp_image(S3)[:-33], ImageError, "damaged"),
        (esp_image(S3)[:9000], ImageError, "truncated"),
        (esp_image(S3)[:-1] + b"\0", ImageError, "SHA-256"),
        (b"UF2\n" + bytes(508), DoesNotFitError, "a UF2 file; .* needs an image for an ESP chip"),
        (bytes(64), DoesNotFitError, "a plain binary"),
        (b"\xe9", ImageError, "header"),
    ],
)  # fmt: skip
def test_what_is_not_for_this_chip_or_damaged_is_refused_without_a_board(
    data: bytes, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        flasher().check(Image("app.bin", data), None)


def test_firmware_that_is_too_large_or_reaches_into_the_models_place_is_refused() -> None:
    app = Image("app.bin", esp_image(S3))
    with pytest.raises(DoesNotFitError, match=r"the board's place for the firmware has 16384"):
        flasher(firmware_kib=16).check(app, None)
    with pytest.raises(DoesNotFitError, match=r"reaches into the place for models, 0x00011000"):
        flasher(model_address=0x11000).check(app, None)


@settings(deadline=None)
@given(st.binary(max_size=80).map(lambda tail: b"\xe9" + tail) | st.binary(max_size=80))
def test_noise_is_refused_by_our_own_errors(noise: bytes) -> None:
    with pytest.raises(StonechatError):
        flasher().check(Image("noise", noise), None)


@settings(deadline=None)
@given(st.integers(0, 1999), st.integers(1, 255))
def test_no_flipped_byte_of_an_image_goes_unseen(at: int, flip: int) -> None:
    image = bytearray(esp_image(S3, 1_900))
    image[at % len(image)] ^= flip
    with pytest.raises(StonechatError):
        flasher().check(Image("app.bin", bytes(image)), None)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
def test_segments_that_lie_about_their_size_are_refused(words: list[int]) -> None:
    header = struct.pack("<BBBBI4xH9xB", 0xE9, 16, 2, 0x4F, 0, S3, 0)
    with pytest.raises(ImageError):
        flasher().check(Image("app.bin", header + struct.pack(f"<{len(words)}I", *words)), None)


@pytest.mark.parametrize("table", [0x8000, 0x9000, 0xC000, 0xF000])
def test_a_whole_flash_is_known_by_its_structure_wherever_its_partition_table_is(table: int) -> None:
    flash = bytearray(esp_whole_flash(S3))
    flash[0x8000:0x8002] = b"\xff\xff"
    flash[table : table + 32] = struct.pack("<2sBBII16sI", b"\xaa\x50", 0, 0, 0x10000, 0x100000, b"factory", 0)
    assert flasher().check(Image("merged.bin", bytes(flash)), None)[0].address == 0


def test_a_boot_loader_behind_erased_flash_is_a_whole_flash() -> None:
    flash = b"\xff" * 0x1000 + esp_image(S3, 8_000)
    assert flasher().check(Image("merged.bin", flash), None)[0].address == 0


def test_a_program_that_holds_the_bytes_of_a_partition_table_is_a_program() -> None:
    """A segment of it may have them at any place, 0x8000 too."""
    program = bytearray(esp_image(S3, 60_000))
    program[0x8000:0x8002] = b"\xaa\x50"
    assert boot_loader_offset(bytes(program)) is None
    assert boot_loader_offset(bytes(program[:3])) is None


def test_stretches_of_a_hex_file_go_to_their_places_and_gaps_stay(tmp_path: Path) -> None:
    boot_loader, program = esp_image(S3, 8_000, seed=1), esp_image(S3)
    content = IntelHex()
    content.puts(0x0, boot_loader)
    content.puts(0x10000, program)
    content.tofile(str(tmp_path / "app.hex"), format="hex")
    parts = flasher().check(read_firmware(tmp_path / "app.hex"), None)
    assert [(part.address, part.image.data) for part in parts] == [(0, boot_loader), (0x10000, program)]
    content.puts(0x10000, program[:-40])
    content[0x10100] ^= 1
    content.tofile(str(tmp_path / "app.hex"), format="hex")
    with pytest.raises(ImageError, match=r"What .*app\.hex has at 0x10000 has a wrong checksum"):
        flasher().check(read_firmware(tmp_path / "app.hex"), None)
