"""`stonechat flash` and stonechat's own firmware: a process of this machine on a pseudo-terminal."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import serial

from boards import Board
from converters.emit.c.bundle import write_bundle_image
from device_runtime.bridge.link import Link
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import IMAGE, MANIFEST, FileEntry
from device_runtime.errors import DoesNotFitError, FlashError, RolledBackError
from tests.support.host_boards import HostBoard, build_host_board, host_board_file, write_host_flash
from toolkit.firmware.container import wrap
from toolkit.firmware.layout import layout_of
from toolkit.firmware.slots import bundled_model_image, model_image
from toolkit.flash.images import Image, read_firmware
from toolkit.flash.own_slots import OwnSlots
from toolkit.flash.smp import Flasher
from toolkit.signing.bundles import sign_bundle
from toolkit.signing.keys import SigningKey, new_key

EXAMPLES = Path(__file__).parents[3] / "examples"
BOILER, FALL = (Bundle.open(EXAMPLES / name / "bundle") for name in ("boiler-advisor", "fall-alert"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="module")
def key(folder: Path) -> SigningKey:
    return new_key("maker", folder / "keys", None)


@pytest.fixture(scope="module")
def images(folder: Path) -> dict[str, bytes]:
    found = {}
    for bundle in (BOILER, FALL):
        path = folder / f"{bundle.manifest.name}.image"
        write_bundle_image(bundle, path=path)
        found[bundle.manifest.name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def file() -> Board:
    return host_board_file()


@pytest.fixture(scope="module")
def program(folder: Path, images: dict[str, bytes], file: Board, key: SigningKey) -> Path:
    largest = max(images, key=lambda name: len(images[name]))
    return build_host_board(folder / "board", folder / f"{largest}.image", file, key=key.public)


@pytest.fixture
def flash(tmp_path: Path, images: dict[str, bytes], file: Board, key: SigningKey) -> Path:
    model = model_image(images["boiler-advisor"], BOILER.manifest, file, key)
    return write_host_flash(tmp_path / "flash.bin", file, firmware("1.0.0", key), model)


def firmware(version: str, key: SigningKey | None, counter: int = 0) -> bytes:
    return wrap(version.encode() * 900, "firmware", version=version, security_counter=counter, board="host", key=key)


def update(board: HostBoard, file: Board, *, new: bytes | None = None, model: bytes | None = None) -> str:
    flasher = Flasher(file)
    firmware_image = None
    if new is not None:
        path = board.flash.with_name("new.bin")
        path.write_bytes(new)
        firmware_image = read_firmware(path)
    parts = flasher.check(firmware_image, Image("model", model) if model is not None else None)
    return flasher.flash(parts, board.port, lambda step, share: None).verified


def name_of(board: HostBoard) -> tuple[str, int]:
    with Link(board.port) as link:
        hello = link.open()
        return hello.name, hello.boots


def test_a_model_and_then_a_firmware_are_updated_and_kept(
    program: Path, flash: Path, file: Board, key: SigningKey, images: dict[str, bytes]
) -> None:
    new = model_image(images["fall-alert"], FALL.manifest, file, key)
    with HostBoard(program, flash) as board:
        assert name_of(board) == ("boiler-advisor", 1)
        assert "the model 1.0.0+0" in update(board, file, model=new)
        assert name_of(board) == ("fall-alert", 2)
        assert "the firmware 1.1.0+0" in update(board, file, new=firmware("1.1.0", key))
        assert name_of(board) == ("fall-alert", 3)
    with HostBoard(program, flash) as board:  # and without power in between
        assert name_of(board)[0] == "fall-alert"


def test_a_board_that_calls_itself_something_else_gets_nothing(
    program: Path, flash: Path, file: Board, key: SigningKey, images: dict[str, bytes]
) -> None:
    """A model names no board, and would run: in a fleet file this is another device."""
    new = model_image(images["fall-alert"], FALL.manifest, file, key)
    with HostBoard(program, flash) as board:
        before = flash.read_bytes()
        with pytest.raises(DoesNotFitError, match=r"is host, not mps3-an547\. Nothing was written\. Give --board host"):
            update(board, replace(file, id="mps3-an547"), model=new)
        assert flash.read_bytes() == before
        assert "the model 1.0.0+0" in update(board, file, model=new)


def test_what_another_tool_left_on_the_line_does_not_make_the_board_deaf(
    program: Path, flash: Path, file: Board, key: SigningKey, images: dict[str, bytes]
) -> None:
    """esptool's first packet (a wrong --board) has zeros in it: what follows looks like a frame that does not end."""
    with HostBoard(program, flash) as board:
        with serial.Serial(board.port, timeout=10) as line:
            line.write(b"\xc0\0\x08\x24\0\0\0\0\0\x07\x07\x12\x20" + b"U" * 32 + b"\xc0")
        assert "the firmware 1.1.0+0" in update(board, file, new=firmware("1.1.0", key))


def test_a_model_that_fails_its_self_test_gives_way_to_the_old_one(
    program: Path, flash: Path, file: Board, key: SigningKey, images: dict[str, bytes]
) -> None:
    spoiled = bytearray(images["fall-alert"])
    spoiled[len(spoiled) // 2] ^= 1  # signed, and yet not what its own hash says
    with HostBoard(program, flash) as board:
        with pytest.raises(RolledBackError, match=r"did not keep version 1\.0\.0"):
            update(board, file, model=model_image(bytes(spoiled), FALL.manifest, file, key))
        assert name_of(board)[0] == "boiler-advisor"


def test_what_is_not_signed_or_older_is_refused(program: Path, flash: Path, file: Board, key: SigningKey) -> None:
    with HostBoard(program, flash) as board:
        with pytest.raises(FlashError, match="images that its key has signed"):
            update(board, file, new=firmware("1.1.0", None))
        update(board, file, new=firmware("1.2.0", key, counter=5))
        with pytest.raises(FlashError, match="security counter is no lower"):
            update(board, file, new=firmware("1.3.0", key, counter=4))
        assert name_of(board)[0] == "boiler-advisor"


def test_firmware_for_another_board_is_refused_before_and_by_the_board(
    program: Path, flash: Path, file: Board, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = wrap(b"program" * 900, "firmware", version="1.1.0", security_counter=0, board="mps3-an547", key=key)
    with HostBoard(program, flash) as board:
        with pytest.raises(DoesNotFitError, match="is firmware for mps3-an547, not for host"):
            update(board, file, new=other)
        monkeypatch.setattr(OwnSlots, "_check_name", lambda self, port: None)  # as a board that has not said its name
        with pytest.raises(FlashError, match="check that mps3-an547 is the board on this port"):
            update(board, replace(file, id="mps3-an547"), new=other)
        assert name_of(board)[0] == "boiler-advisor"


def test_two_bad_slots_are_said_on_the_console_and_take_a_new_firmware(
    program: Path, flash: Path, file: Board, key: SigningKey
) -> None:
    data = bytearray(flash.read_bytes())
    data[64 * 1024 : 64 * 1024 + 200] = bytes(200)
    flash.write_bytes(data)
    with HostBoard(program, flash) as board:
        with serial.Serial(board.port, timeout=10) as line:
            line.write(b"hello\n")  # what it said at its start went before the line was opened
            assert b"neither firmware slot has an image that may start" in line.read_until(b"> ")
        assert "the firmware 2.0.0+0" in update(board, file, new=firmware("2.0.0", key))
        assert name_of(board)[0] == "boiler-advisor"


def test_the_image_of_imgtool_is_one_for_a_slot(
    program: Path, flash: Path, file: Board, folder: Path, tmp_path: Path
) -> None:
    """What MCUboot's own tool signs with the same key is taken as well."""
    (tmp_path / "program.bin").write_bytes(b"program" * 1000)
    signed = tmp_path / "signed.bin"
    command = [
        sys.executable,
        "-m",
        "imgtool.main",
        "sign",
        "--key",
        folder / "keys" / "maker.key",
        "--version",
        "1.4.0",
    ]
    command += ["--header-size", "0x20", "--pad-header", "--align", "4", "--slot-size", "0x10000"]
    subprocess.run([*command, tmp_path / "program.bin", signed], check=True, capture_output=True)
    with HostBoard(program, flash) as board:
        assert "the firmware 1.4.0+0" in update(board, file, new=signed.read_bytes())


def test_firmware_and_model_start_together_and_go_back_together(
    program: Path, flash: Path, file: Board, key: SigningKey, images: dict[str, bytes]
) -> None:
    """What runs and does not prove itself is not kept, neither of the two; the second time it does, and both are."""
    layout = layout_of(file)
    assert layout is not None
    slots = OwnSlots(file, layout)
    new = model_image(images["fall-alert"], FALL.manifest, file, key)
    parts = slots.check(Image("firmware", firmware("1.1.0", key)), Image("model", new))
    steps: list[str] = []
    with HostBoard(program, flash) as board:

        def refuse() -> None:
            assert name_of(board)[0] == "fall-alert"  # it runs
            raise FlashError("its answer is wrong.")

        with pytest.raises(RolledBackError, match=r"its answer is wrong\. The board runs what it ran before"):
            slots.flash(parts, board.port, lambda step, share: steps.append(step), refuse)
        assert name_of(board)[0] == "boiler-advisor"
        assert set(steps) == {"upload firmware", "upload model", "restart"}
        steps.clear()
        verified = slots.flash(parts, board.port, lambda step, share: steps.append(step)).verified
        assert "firmware 1.1.0+0" in verified and "model 1.0.0+0" in verified
        assert set(steps) == {"restart"}  # all of it is there from the first time
    with HostBoard(program, flash) as board:
        assert name_of(board)[0] == "fall-alert"


def test_a_signed_bundle_brings_what_a_board_with_a_key_wants(
    program: Path, flash: Path, file: Board, key: SigningKey, images: dict[str, bytes], tmp_path: Path
) -> None:
    """`bundle sign` signs the image in its container too, and whoever brings the bundle needs no private key."""
    folder = tmp_path / "bundle"
    shutil.copytree(FALL.path, folder)
    (folder / IMAGE).write_bytes(images["fall-alert"])
    files = FALL.manifest.files | {
        IMAGE: FileEntry(hashlib.sha256(images["fall-alert"]).hexdigest(), len(images["fall-alert"]))
    }
    (folder / MANIFEST).write_text(replace(FALL.manifest, files=files).to_json())
    other = new_key("other", tmp_path / "keys", None)
    sign_bundle(folder, {}, [other])
    with HostBoard(program, flash) as board:
        foreign = bundled_model_image(images["fall-alert"], Bundle.open(folder), {}, file)
        with pytest.raises(FlashError, match="images that its key has signed"):
            update(board, file, model=foreign)
        sign_bundle(folder, {}, [key])  # beside the other's, which stays
        known = {other.public.key_id: other.public}
        both = bundled_model_image(images["fall-alert"], Bundle.open(folder), known, file)
        assert "the model 1.0.0+0" in update(board, file, model=both)
