"""STM32: the real flasher against a boot loader that speaks AN3155 on a pty."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from flash_boards import board
from intelhex import IntelHex

from device_runtime.errors import DoesNotFitError, FlashError, ImageError, UnreachableError
from tests.support.serial_server import rfc2217_server
from tests.toolkit.flash.peers.serial_line import SocketPeer
from tests.toolkit.flash.peers.stm32 import Faults, Stm32Peer
from toolkit.flash import an3155, stm32
from toolkit.flash.images import Image, read_firmware
from toolkit.flash.stm32 import CHIPS, Flasher

START = 0x08000000
F405 = CHIPS["stm32f405"]


def program(size: int, address: int = START) -> bytes:
    """A vector table and noise."""
    return struct.pack("<2I", 0x20020000, address + 0x101) + random.Random(size).randbytes(size - 8)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board that never answers costs two seconds each time otherwise."""
    monkeypatch.setattr(stm32, "_TIMEOUT_S", 0.1)


def flasher(chip: str = "stm32f405", **flash: object) -> Flasher:
    return Flasher(board("stm32", chip=chip, **{"model_address": 0x08020000} | flash))


def run(peer: Stm32Peer, firmware: bytes | None, model: bytes | None = None, using: Flasher | None = None):
    using = using or flasher()
    parts = using.check(
        Image("firmware.bin", firmware) if firmware else None, Image("bundle", model) if model else None
    )
    steps: list[tuple[str, float]] = []
    result = using.flash(parts, peer.port, lambda step, share: steps.append((step, share)))
    return result, steps


def test_firmware_is_written_read_back_and_started() -> None:
    image = program(20_001)  # two sectors of 16 KiB, and an odd end
    with Stm32Peer(F405.sectors_kib, F405.product_id) as peer:
        result, steps = run(peer, image)
    assert result.port == peer.port and "read back" in result.verified
    assert peer.flash[: len(image)] == image
    assert peer.log.erased == [0, 1]
    assert peer.flash[32 * 1024 :] == b"\x5a" * (len(peer.flash) - 32 * 1024)  # the rest is as it was
    assert peer.log.went_to == START
    assert [step for step, share in steps if share == 1.0] == ["erase", "write firmware", "verify firmware"]


def test_a_model_alone_leaves_the_firmware_as_it_is() -> None:
    model = random.Random(1).randbytes(150_000)
    with Stm32Peer(F405.sectors_kib, F405.product_id) as peer:
        run(peer, None, model)
    assert peer.flash[0x20000 : 0x20000 + len(model)] == model
    assert peer.log.erased == [5, 6]
    assert peer.flash[:0x20000] == b"\x5a" * 0x20000


def test_both_at_once_and_a_boot_loader_with_the_older_erase() -> None:
    image, model = program(9_000), bytes(range(256)) * 20
    with Stm32Peer(F405.sectors_kib, F405.product_id, extended=False) as peer:
        run(peer, image, model)
    assert peer.flash[:9_000] == image and peer.flash[0x20000 : 0x20000 + 5120] == model


def test_more_sectors_than_one_command_erases() -> None:
    chip = CHIPS["stm32u585"]
    image = program(100_000)
    with Stm32Peer(chip.sectors_kib, chip.product_id) as peer:
        run(peer, image, using=flasher("stm32u585"))
    assert peer.log.erased == list(range(13))
    assert peer.flash[: len(image)] == image


def test_a_boot_loader_that_says_ack_before_it_has_erased_is_given_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stm32, "_ERASE_S", 0.2)  # of a peer that takes half of it
    chip = CHIPS["stm32h743"]
    image, model = program(130_000), bytes(range(256)) * 1000
    with Stm32Peer(chip.sectors_kib, chip.product_id, faults=Faults(early_ack_from=8)) as peer:
        _, steps = run(peer, image, model, flasher("stm32h743", model_address=0x08100000))
    assert peer.log.erased == [0, 8, 9]
    assert peer.flash[0x100000 : 0x100000 + len(model)] == model
    assert [share for step, share in steps if step == "erase"] == [0.0, 1.0, 0.5, 1.0]


class OnASocket(Stm32Peer, SocketPeer):
    """The same on a bare TCP port."""


def test_through_a_serial_server() -> None:
    image = program(2_000)
    with Stm32Peer(F405.sectors_kib, F405.product_id) as peer, rfc2217_server(peer.port) as url:
        parts = flasher().check(Image("firmware.bin", image), None)
        assert flasher().flash(parts, url, lambda step, share: None).port == url
    assert peer.flash[: len(image)] == image


def test_through_a_tcp_port() -> None:
    with OnASocket(F405.sectors_kib, F405.product_id) as peer:
        run(peer, program(2_000))
    assert peer.flash[:2_000] == program(2_000)


def test_a_line_that_does_not_open_changes_nothing() -> None:
    peer = OnASocket(F405.sectors_kib, F405.product_id)
    peer._listener.close()
    with pytest.raises(UnreachableError, match=r"does not work: .*Nothing was changed"):
        run(peer, program(2_000))


def test_a_boot_loader_that_was_woken_before_answers_too() -> None:
    with Stm32Peer(F405.sectors_kib, F405.product_id, faults=Faults(awake=True)) as peer:
        run(peer, program(600))
    assert peer.log.went_to == START


def test_a_refused_block_is_sent_again() -> None:
    image = program(2_000)
    with Stm32Peer(F405.sectors_kib, F405.product_id, faults=Faults(nack_writes=2)) as peer:
        run(peer, image)
    assert peer.flash[:2_000] == image


def test_a_block_that_is_refused_for_good_is_an_error() -> None:
    with Stm32Peer(F405.sectors_kib, F405.product_id, faults=Faults(nack_writes=99)) as peer:
        with pytest.raises(FlashError, match=r"NACK; expected ACK.*partly written"):
            run(peer, program(2_000))
        assert peer.log.went_to is None


def test_a_write_protected_sector_is_an_error() -> None:
    with Stm32Peer(F405.sectors_kib, F405.product_id, faults=Faults(nack_erase=True)) as peer:
        with pytest.raises(FlashError, match=r"erasing of sectors 0 to 0 with NACK"):
            run(peer, program(2_000))
        assert peer.flash[:16] == b"\x5a" * 16


def test_a_byte_that_does_not_take_is_found_by_reading_back() -> None:
    with Stm32Peer(F405.sectors_kib, F405.product_id, faults=Faults(corrupt_byte_at=700)) as peer:
        with pytest.raises(FlashError, match=r"0x080002bc holds"):
            run(peer, program(2_000))
        assert peer.log.went_to is None


def test_a_write_protected_sector_which_the_boot_loader_hides_is_found_by_reading_back() -> None:
    faults = Faults(protected=(1,))
    with Stm32Peer(F405.sectors_kib, F405.product_id, faults=faults) as peer:
        with pytest.raises(FlashError, match=r"0x08004000 holds 0x5a.*write-protected \(option bytes"):
            run(peer, program(20_000))
        assert peer.log.went_to is None


@pytest.mark.parametrize("fault", [{"unplug_after_writes": 3}, {"silent_after_writes": 3}])
def test_a_board_that_is_lost_half_way_is_described(fault: dict[str, int]) -> None:
    with (
        Stm32Peer(F405.sectors_kib, F405.product_id, faults=Faults(**fault)) as peer,
        pytest.raises(FlashError, match=r"only partly written.*boot loader is in ROM"),
    ):
        run(peer, program(4_000))


@pytest.mark.usefixtures("impatient")
def test_a_board_that_does_not_answer_names_its_button() -> None:
    with (
        Stm32Peer(F405.sectors_kib, F405.product_id, faults=Faults(deaf=True)) as peer,
        pytest.raises(UnreachableError, match=r"does not answer.*hold BOOT and press RESET"),
    ):
        run(peer, program(4_000))


def test_a_board_that_runs_its_program_is_told_from_a_boot_loader() -> None:
    with (
        Stm32Peer(F405.sectors_kib, F405.product_id, faults=Faults(chatty=b"hello\r\n")) as peer,
        pytest.raises(FlashError, match=r"no STM32 boot loader"),
    ):
        run(peer, program(4_000))


def test_another_chip_is_left_alone() -> None:
    with (
        Stm32Peer(CHIPS["stm32h743"].sectors_kib, 0x450) as peer,
        pytest.raises(DoesNotFitError, match=r"product id 0x450; stm32f405 has 0x413. Nothing was changed"),
    ):
        run(peer, program(4_000))
    assert peer.log.erased == []


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (b"\xe9" + bytes(100), DoesNotFitError, "an image for an ESP chip"),
        (b"\x7fELF" + bytes(100), DoesNotFitError, "objcopy"),
        (bytes(100), DoesNotFitError, "stack pointer, is 0x00000000"),
        (program(4_000, 0x10000000), DoesNotFitError, "linked for another place"),
        (b"\0\0\0\x20", ImageError, "4 bytes"),
        (program(1_100_000), DoesNotFitError, "the chip's flash is"),
    ],
)
def test_what_cannot_be_a_program_for_it_is_refused_without_a_board(
    image: bytes, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        flasher().check(Image("firmware.bin", image), None)


@pytest.mark.parametrize("model", [None, Image("bundle", b"x")])
def test_firmware_that_reaches_into_the_models_place_is_refused(model: Image | None) -> None:
    with pytest.raises(DoesNotFitError, match=r"reaches into the place for models, 0x08020000"):
        flasher().check(Image("firmware.bin", program(0x20001)), model)
    flasher().check(Image("firmware.bin", program(0x20000)), model)


def test_a_model_inside_a_sector_or_too_large_for_its_slot_is_refused() -> None:
    with pytest.raises(DoesNotFitError, match=r"inside a sector"):
        flasher(model_address=0x08020100).check(None, Image("bundle", b"x"))
    with pytest.raises(DoesNotFitError, match=r"has 1048577 bytes; the board's place for the model has 1048576"):
        flasher().check(None, Image("bundle", bytes(1024 * 1024 + 1)))


def test_the_transfer_size_is_the_protocols() -> None:
    assert an3155.MAX_TRANSFER_BYTES == 256  # one byte says how many, less one


def test_sectors_in_a_gap_of_a_hex_file_keep_what_they_hold(tmp_path: Path) -> None:
    """Sectors of an STM32F405 are 16 KiB: the second is between the program's parts, the third begins in a gap."""
    start = program(2_000)
    content = IntelHex()
    content.puts(0x08000000, start)
    content.puts(0x08001000, b"in the same sector")
    content.puts(0x08008010, b"behind a sector")
    content.tofile(str(tmp_path / "app.hex"), format="hex")
    parts = flasher().check(read_firmware(tmp_path / "app.hex"), None)
    assert [part.address for part in parts] == [0x08000000, 0x08008000]
    assert parts[0].image.data == start.ljust(0x1000, b"\xff") + b"in the same sector"
    assert parts[1].image.data == b"\xff" * 16 + b"behind a sector"
