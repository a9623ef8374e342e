"""`stonechat flash` as a user types it: files, ports, what is printed, and Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from flash_boards import board, board_file
from hypothesis import given, settings
from hypothesis import strategies as st

from boards import board_ids, load_board
from device_runtime.bundle.archive import pack
from device_runtime.bundle.folder import Bundle
from device_runtime.errors import ConfigurationError, StonechatError, UnreachableError
from tests.toolkit.flash.peers.esp import EspPeer, Faults
from tests.toolkit.flash.peers.serial_line import PtyPeer
from tests.toolkit.flash.peers.stm32 import Stm32Peer
from tests.toolkit.flash.peers.uf2 import Uf2Peer
from toolkit.cli import main
from toolkit.flash import ports
from toolkit.flash.flasher import flasher_for
from toolkit.flash.images import Image, read_firmware
from toolkit.flash.stm32 import CHIPS

F405 = CHIPS["stm32f405"]
PROGRAM = struct.pack("<2I", 0x20020000, 0x08000101) + b"code" * 500
UF2 = ["uf2_family: 0xe48bff56", "uf2_board_id: RPI-RP2", "firmware_address: 0x10000000", "model_address: 0x10100000"]
STM32 = ["chip: stm32f405", "model_address: 0x08080000", "firmware_kib: 512"]


@pytest.fixture
def micro_bundle(converted: Callable[..., Path]) -> Path:
    return converted("gqa-tied", "micro")


@pytest.fixture
def firmware(tmp_path: Path) -> Path:
    path = tmp_path / "firmware.bin"
    path.write_bytes(PROGRAM)
    return path


def flash(*arguments: object) -> int:
    return main(["flash", *map(str, arguments)])


def test_firmware_reaches_the_board_and_the_report_says_how_it_is_known(
    tmp_path: Path, firmware: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # with its long path the line would be wrapped
    with Stm32Peer(F405.sectors_kib, F405.product_id) as peer:
        assert flash(firmware.name, "--board", board_file(tmp_path, "stm32", *STM32), "--port", peer.port) == 0
    assert peer.flash[: len(PROGRAM)] == PROGRAM
    assert capsys.readouterr().out == (
        f"firmware  firmware.bin, {len(PROGRAM)} bytes at 0x08000000\n"
        f"board     test-stm32 on {peer.port}\n"
        "verified  read back, every byte is the same\n"
    )


def test_a_hex_file_brings_its_own_address_and_json_reports_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from intelhex import IntelHex

    content = IntelHex()
    content.frombytes(struct.pack("<2I", 0x20020000, 0x08004101) + b"code" * 500, offset=0x08004000)
    content.write_hex_file(str(tmp_path / "app.hex"))
    with Stm32Peer(F405.sectors_kib, F405.product_id) as peer:
        file = board_file(tmp_path, "stm32", *STM32)
        assert flash(tmp_path / "app.hex", "--board", file, "--port", peer.port, "--json") == 0
    assert peer.log.went_to == 0x08004000 and peer.log.erased == [1]
    assert json.loads(capsys.readouterr().out) == {
        "board": "test-stm32",
        "port": peer.port,
        "written": [
            {"what": "firmware", "file": str(tmp_path / "app.hex"), "address": 0x08004000, "bytes": 2008},
        ],
        "verified": "read back, every byte is the same",
    }


def test_a_bundle_is_packed_and_its_zip_is_what_the_board_holds(tmp_path: Path, micro_bundle: Path) -> None:
    file = board_file(tmp_path, "uf2", *UF2)
    for model in (micro_bundle, tmp_path / "bundle.zip"):
        with Uf2Peer(tmp_path, 0xE48BFF56) as peer:
            assert flash("--model", model, "--board", file, "--port", peer.drive) == 0
        start = min(peer.flash)
        assert start == 0x10100000
        (tmp_path / "bundle.zip").write_bytes(held := peer.memory(start, len(peer.flash) * 256))
        with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
            assert archive.read("model.tflite") == (micro_bundle / "model.tflite").read_bytes()
            assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        end = held.rindex(b"PK\x05\x06") + 22  # the flash's last page is filled up
        (tmp_path / "bundle.zip").write_bytes(held[:end])


@pytest.mark.parametrize(("damage", "message"), [("altered", "the zip is damaged"), ("a graph", "not a packed bundle")])
def test_a_packed_bundle_that_is_not_whole_is_refused(
    tmp_path: Path, micro_bundle: Path, damage: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, packed = Bundle.open(micro_bundle), tmp_path / "bundle.zip"
    pack(bundle, packed, manifest=(micro_bundle / "manifest.json").read_bytes(), signature=None)
    if damage == "altered":
        data = bytearray(packed.read_bytes())
        data[len(data) // 2] ^= 1
        packed.write_bytes(data)
    else:
        shutil.copy(micro_bundle / "model.tflite", packed)
    assert flash("--model", packed, "--board", board_file(tmp_path, "uf2", *UF2), "--port", tmp_path) == 1
    assert message in capsys.readouterr().err


def test_a_bundle_for_named_boards_goes_to_no_other(
    tmp_path: Path, micro_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named, packed = replace(Bundle.open(micro_bundle).manifest, boards=("esp32-s3",)), tmp_path / "bundle.zip"
    pack(Bundle.open(micro_bundle), packed, manifest=named.to_json().encode(), signature=None)
    assert flash("--model", packed, "--board", board_file(tmp_path, "uf2", *UF2), "--port", tmp_path) == 5
    assert "is meant for esp32-s3, and this is test-uf2" in capsys.readouterr().err


def test_a_bundle_for_linux_boards_does_not_fit_a_microcontroller(
    tmp_path: Path, pi_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flash("--model", pi_bundle, "--board", board_file(tmp_path, "uf2", *UF2), "--port", tmp_path) == 5
    assert "has the profile 'pi'" in capsys.readouterr().err


def test_too_large_is_exit_5_and_touches_no_port(
    tmp_path: Path, firmware: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = board_file(tmp_path, "stm32", "chip: stm32f405", "model_address: 0x08080000", "firmware_kib: 1")
    assert flash(firmware, "--board", file, "--port", "/dev/nowhere") == 5
    assert "the board's place for the firmware has 1024" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["FIRMWARE"], 3, "No port of Test board"),
        (["FIRMWARE", "--port", "/dev/ttyNONE9"], 2, "There is no port /dev/ttyNONE9"),
        (["FIRMWARE", "--port", "FIRMWARE"], 2, "is not a serial port"),
        (["/no/such.bin"], 2, "/no/such.bin cannot be read: No such file"),
        (["FOLDER"], 2, "Is a directory"),
        ([], 2, "There is nothing to flash"),
        (["EMPTY"], 1, "is empty"),
        (["BROKEN.hex"], 1, "is not Intel HEX"),
        (["--model", "FOLDER"], 2, "is not a bundle"),
    ],
)
def test_what_a_user_gets_wrong(
    tmp_path: Path,
    firmware: Path,
    arguments: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from serial.tools import list_ports

    monkeypatch.setattr(list_ports, "comports", list)
    (tmp_path / "empty").touch()
    (tmp_path / "broken.hex").write_text(":10nonsense\n")
    places = {
        "FIRMWARE": firmware,
        "FOLDER": tmp_path,
        "EMPTY": tmp_path / "empty",
        "BROKEN.hex": tmp_path / "broken.hex",
    }
    given_ = [places.get(argument, argument) for argument in arguments]
    assert flash(*given_, "--board", board_file(tmp_path, "stm32", *STM32)) == code
    assert message in capsys.readouterr().err


def test_linux_boards_are_sent_to_deploy(firmware: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert flash(firmware, "--board", "raspberry-pi-5-4gb") == 2
    assert "stonechat deploy" in capsys.readouterr().err


def test_a_machine_without_esptool_is_told_what_to_install(
    tmp_path: Path, micro_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    file = board_file(tmp_path, "esptool", "chip: esp32s3", "model_address: 0x400000")
    assert flash("--model", micro_bundle, "--board", file, "--port", "socket://127.0.0.1:1") == 2
    assert "run `pip install '.[flash]'`" in capsys.readouterr().err


@pytest.mark.parametrize("board_id", [name for name in board_ids() if load_board(name).kind == "mcu"])
def test_every_microcontroller_has_a_place_for_its_model_or_says_why_not(board_id: str) -> None:
    mcu = load_board(board_id)
    if mcu.refused:
        with pytest.raises(ConfigurationError, match="stonechat does not run on"):
            flasher_for(mcu)
    elif mcu.flash.method == "smp" and mcu.firmware is None:
        with pytest.raises(ConfigurationError, match="Build the model into the firmware's image"):
            flasher_for(mcu).check(None, Image("bundle", b"x"))
    elif mcu.flash.method == "smp":  # stonechat's own firmware: a slot, which the board places
        (part,) = flasher_for(mcu).check(None, Image("bundle", b"x"))
        assert (part.address, part.room_bytes) == (0, mcu.storage.model_kib * 1024)
    else:
        (part,) = flasher_for(mcu).check(None, Image("bundle", b"x"))
        assert part.address == mcu.flash.model_address


@dataclass
class Port:
    device: str
    vid: int | None
    pid: int | None
    description: str = "a board"


def test_the_port_is_found_by_its_usb_id() -> None:
    there = [Port("/dev/ttyS0", None, None), Port("/dev/ttyACM1", 0x1209, 1), Port("/dev/ttyACM0", 0x2341, 0x43)]
    assert ports.find_port(board("stm32"), there) == "/dev/ttyACM1"


def test_none_or_several_boards_are_listed() -> None:
    with pytest.raises(UnreachableError, match=r"expected the USB id 1209:0001; found:\n  /dev/ttyACM0  2341:0043"):
        ports.find_port(board("stm32"), [Port("/dev/ttyACM0", 0x2341, 0x43)])
    with pytest.raises(UnreachableError, match=r"found no USB serial port at all.\nPlug the board in.*hold BOOT"):
        ports.find_port(board("stm32"), [Port("/dev/ttyS0", None, None)])
    with pytest.raises(
        ConfigurationError, match=r"Several ports could be that of Test board.*\n  /dev/ttyACM0.*\n  /dev/ttyACM1"
    ):
        ports.find_port(board("stm32"), [Port("/dev/ttyACM0", 0x1209, 1), Port("/dev/ttyACM1", 0x1209, 1)])


def test_a_port_that_another_program_holds_is_not_fought_for() -> None:
    import serial

    peer = PtyPeer()
    with (
        serial.Serial(peer.port, exclusive=True),
        pytest.raises(UnreachableError, match=r"in use by another program"),
    ):
        ports.claim(peer.port)


@pytest.mark.parametrize("port", ["socket://", "socket://127.0.0.1", "socket://:7333", "rfc2217://here:x"])
def test_an_address_that_lacks_its_host_or_port_is_refused(port: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{port} is no address; expected one such as {port[:6]}"):
        ports.claim(port)


def test_a_silent_address_is_not_blamed_on_a_cable() -> None:
    board = load_board("mps2-an386")
    assert "Check that something serves socket://127.0.0.1:1, and that no other program" in str(
        ports.silent(board, "socket://127.0.0.1:1", "x")
    )
    assert "Check the cable" in str(ports.silent(board, "/dev/ttyACM0", "x"))


def test_a_port_without_permission_says_which_group_to_join() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    peer = PtyPeer()
    os.chmod(peer.port, 0o600)
    code = (
        "import os\n"
        "from toolkit.flash.ports import claim\n"
        "os.setgid(65534); os.setuid(65534)\n"
        f"try: claim({peer.port!r})\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"You may not open {peer.port}; run `sudo usermod -aG dialout" in done.stdout, done.stderr


def test_ctrl_c_says_what_state_the_board_is_in_and_ends_esptool(tmp_path: Path, micro_bundle: Path) -> None:
    file = board_file(tmp_path, "esptool", "chip: esp32s3", "model_address: 0x400000")
    with EspPeer(faults=Faults(stall_after_blocks=1)) as peer:
        command = [sys.executable, "-m", "toolkit", "flash", "--model", str(micro_bundle), "--board", str(file)]
        process = subprocess.Popen(
            [*command, "--port", peer.port], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None and peer.blocks == 0:
            time.sleep(0.01)  # until it writes
        esptool = [int(pid) for pid in children.read_text().split()]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out == ""
    assert "The flash is only partly written. The chip's boot loader is in ROM" in err
    assert err.endswith("stonechat: interrupted\n")
    assert esptool and not any(Path(f"/proc/{pid}").exists() for pid in esptool)


@settings(deadline=None)
@given(st.text(st.sampled_from(":0123456789ABCDEF\n"), max_size=60))
def test_noise_as_intel_hex_is_refused_by_our_own_errors(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.hex"
    path.write_text(text)
    with suppress(StonechatError):
        read_firmware(path)
