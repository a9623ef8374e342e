"""Board files are checked as they are read; every fault has its place."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import boards
from boards import Board, board_ids, load_board
from boards.board import Detect, Flash, Graph, Measurement, Memory, Soc, Storage
from boards.detect import detect
from boards.schema import BOARD, check
from device_runtime.errors import ConfigurationError
from device_runtime.fleet import yaml_schema
from device_runtime.machine.machine import program_arch_of

EXAMPLE = Path(boards.__file__).parent / "raspberry-pi-zero-2-w.yaml"


@pytest.fixture
def board_file(tmp_path: Path) -> Callable[..., str]:
    """Write a copy of the Zero 2 W's file with parts of its text replaced."""

    def write(*replacements: tuple[str, str], name: str = "raspberry-pi-zero-2-w.yaml") -> str:
        text = EXAMPLE.read_text(encoding="utf-8")
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def faults(path: str) -> list[str]:
    """The faults of a file, each as line:column: text."""
    with pytest.raises(ConfigurationError) as caught:
        load_board(path)
    head, *lines = str(caught.value).splitlines()
    assert head.startswith(path)
    return [line.removeprefix(f"{path}:") for line in lines]


def test_the_boards_of_this_release() -> None:
    assert board_ids() == [
        "beaglebone-black", "esp32-c3", "esp32-p4", "esp32-s3", "generic-x86-64", "jetson-nano", "mps2-an386",
        "mps2-an500", "mps3-an547", "nrf52840", "nrf5340", "orange-pi-zero-2w", "qemu-riscv32", "radxa-zero-3",
        "raspberry-pi-1", "raspberry-pi-3b-plus", "raspberry-pi-3b-plus-32bit", "raspberry-pi-4-2gb",
        "raspberry-pi-4-2gb-32bit", "raspberry-pi-4-4gb", "raspberry-pi-4-8gb", "raspberry-pi-5-16gb",
        "raspberry-pi-5-4gb", "raspberry-pi-5-8gb", "raspberry-pi-zero", "raspberry-pi-zero-2-w",
        "raspberry-pi-zero-2-w-32bit", "rp2040", "rp2350", "rp2350-psram", "stm32f405", "stm32h743", "stm32u5",
        "teensy-4-1",
    ]  # fmt: skip


@pytest.mark.parametrize("board_id", board_ids())
def test_every_board_that_comes_with_stonechat_is_sound(board_id: str) -> None:
    board = load_board(board_id)
    assert board.id == board_id
    assert board.profile == ("pi" if board.arch in ("aarch64", "x86_64") else "micro")
    assert (board.refused is not None) == (board.arch == "armv6l")
    assert (board.flash.method == "ssh") == (board.kind == "linux")
    assert board.model_budget_kib < board.ram_kib + board.memory.psram_kib  # the system needs something too


@pytest.mark.parametrize("board_id", board_ids())
def test_every_figure_has_a_source(board_id: str) -> None:
    """A public file that whoever doubts a figure can open, or the words "not verified"."""
    board = load_board(board_id)
    source = board.source
    assert "Bandwidth: " in source and "our own choices" in source.lower()
    if board_id != "generic-x86-64":  # no one machine
        assert "SoC" in source
        assert re.search(r"[\w-]+/[\w-]+, [\w./-]+\.(dts|dtsi|rst|adoc|md|h|c|json|ld)\b", source)
    assert ("Device tree: " in source) == (board.detect.device_tree is not None)
    assert ("USB: " in source) == bool(board.detect.usb)
    assert ("UF2: " in source) == (board.flash.method == "uf2")
    assert all(measurement.tokens_per_s > 0 for measurement in board.measured)


def test_a_board_has_its_figures() -> None:
    board = load_board("raspberry-pi-zero-2-w")
    assert (board.name, board.arch, board.profile, board.max_context) == (
        "Raspberry Pi Zero 2 W",
        "aarch64",
        "pi",
        1024,
    )
    assert (board.ram_kib, board.model_budget_kib) == (524288, 262144)
    assert board.detect.device_tree == "raspberrypi,model-zero-2-w"
    assert board.soc.features == ("neon", "crc32")
    assert (board.soc.pointer_bytes, load_board("stm32h743").soc.pointer_bytes) == (8, 4)


def test_a_board_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        load_board("stm32h743").name = "x"  # type: ignore[misc]


def test_a_file_of_your_own_is_read_by_its_path(board_file: Callable[..., str]) -> None:
    path = board_file(("id: raspberry-pi-zero-2-w", "id: mine"), name="mine.yaml")
    assert load_board(path).id == "mine"


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("rasberry-pi-5", "'raspberry-pi-5-4gb' or 'raspberry-pi-5-8gb' or 'raspberry-pi-5-16gb'"),
        ("rasberry-pi-zero2w", "'raspberry-pi-zero-2-w' or 'raspberry-pi-zero-2-w-32bit'"),
        ("esp32", "'esp32-c3' or 'esp32-p4' or 'esp32-s3'"),
        ("stm32h7", "'stm32h743'"),
        ("nrf5240", "'nrf52840'"),
        ("orangepi-zero-2w", "'orange-pi-zero-2w'"),
    ],
)
def test_an_unknown_id_gets_those_that_begin_like_it_and_all_that_are_known(word: str, nearest: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_board(word)
    message = str(caught.value)
    assert message.startswith(f"There is no board {word!r}; did you mean {nearest}? The boards are ")
    assert all(board_id in message for board_id in board_ids())


def test_an_id_like_no_other_gets_all_that_are_known() -> None:
    with pytest.raises(ConfigurationError, match=r"path of a \.yaml file.*stm32h743"):
        load_board("toaster")


@pytest.mark.parametrize("name", ["../boards/stm32h743", "", "STM32H743", "board"])
def test_an_id_is_no_path(name: str) -> None:
    with pytest.raises(ConfigurationError, match="There is no board"):
        load_board(name)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read nowhere\.yaml: No such file"):
        load_board("nowhere.yaml")


def test_every_fault_is_reported_with_its_place_and_the_nearest_spelling(board_file: Callable[..., str]) -> None:
    path = board_file(
        ("class: linux", "class: linus"),
        ("arch: aarch64", "arch: arch64"),
        ("cores: 4", "coers: 4"),
        ("ram_kib: 524288", "ram_kib: 512MB"),
        ("slots: 2", "slots: 0"),
        ("method: ssh", "method: telnet"),
        ("usb: []", "usb: [0483-374b]"),
    )
    assert faults(path) == [
        "4:8: class: found 'linus'; did you mean 'linux'?",
        "5:6: soc: 'cores' is missing",
        "5:13: soc.arch: found 'arch64'; did you mean 'aarch64'?",
        "5:39: soc: unknown field 'coers'; did you mean 'cores'?",
        "6:19: memory.ram_kib: found '512MB'; expected a whole number from 1 to 1099511627776 KiB",
        "7:38: storage.slots: found '0'; expected a whole number from 1 to 16",
        "9:17: flash.method: found 'telnet'; expected one of: ssh, esptool, uf2, smp, stm32",
        "10:59: detect.usb[0]: found '0483-374b'; expected vendor:product in hexadecimal, such as 303a:1001",
    ]


def test_the_id_equals_the_files_name(board_file: Callable[..., str]) -> None:
    (fault,) = faults(board_file(name="mine.yaml"))
    assert fault == "2:5: id: found 'raspberry-pi-zero-2-w'; expected the file's name, 'mine'"


def test_a_model_cannot_have_more_memory_than_there_is(board_file: Callable[..., str]) -> None:
    (fault,) = faults(board_file(("model_budget_kib: 262144", "model_budget_kib: 524289")))
    assert fault.endswith("found 524289 KiB; expected at most ram_kib + psram_kib, 524288 KiB")


def test_the_pi_profile_needs_64_bit_linux(board_file: Callable[..., str]) -> None:
    (fault,) = faults(board_file(("arch: aarch64", "arch: armv7l"), (", crc32", "")))
    assert "needs Linux on aarch64 or x86_64; expected 'micro'" in fault


def test_a_microcontroller_has_no_ssh(board_file: Callable[..., str]) -> None:
    found = faults(
        board_file(
            ("class: linux", "class: mcu"),
            ("profile: pi", "profile: micro"),
            ("arch: aarch64", "arch: armv7e-m"),
            ("[neon, crc32]", "[dsp]"),
        )
    )
    assert found == ["9:17: flash.method: found 'ssh', which needs Linux; expected esptool, uf2, smp or stm32"]


def test_the_class_and_the_processor_belong_together(board_file: Callable[..., str]) -> None:
    (fault, *_) = faults(board_file(("arch: aarch64", "arch: armv6-m")))
    assert fault.startswith(
        "5:13: soc.arch: found 'armv6-m', which no board of class linux has; expected one of aarch64"
    )


def test_a_feature_that_the_processor_cannot_have_is_a_fault(board_file: Callable[..., str]) -> None:
    found = faults(board_file(("[neon, crc32]", "[neon, helium]")))
    assert found[0].startswith("5:78: soc.features[1]: found 'helium', which aarch64 does not have; expected one of")


@pytest.mark.parametrize(("method", "field"), [("esptool", "chip"), ("uf2", "uf2_family"), ("stm32", "chip")])
def test_each_way_to_flash_has_what_it_needs(method: str, field: str, tmp_path: Path) -> None:
    text = (EXAMPLE.parent / "nrf52840.yaml").read_text(encoding="utf-8").replace("method: smp", f"method: {method}")
    (tmp_path / "nrf52840.yaml").write_text(text, encoding="utf-8")
    (fault,) = faults(str(tmp_path / "nrf52840.yaml"))
    assert fault.endswith(f"flash: method {method} needs {field!r}, which is missing")


def test_a_slot_of_flash_ends_inside_the_part() -> None:
    """model_address and the slots behind it, for the parts whose memory map is one range."""
    ends = {"rp2040": 0x10200000, "rp2350": 0x10400000, "rp2350-psram": 0x11000000, "stm32f405": 0x08100000,
            "stm32h743": 0x08200000, "stm32u5": 0x08200000, "esp32-s3": 0x1000000, "esp32-p4": 0x1000000,
            "esp32-c3": 0x400000, "teensy-4-1": 0x607C0000}  # fmt: skip
    for board_id, end in ends.items():
        board = load_board(board_id)
        assert board.flash.model_address is not None
        assert board.flash.model_address + board.storage.slots * board.storage.model_kib * 1024 <= end, board_id


@given(st.text(max_size=300) | st.binary(max_size=300))
def test_whatever_a_file_holds_the_error_is_one_of_ours(content: str | bytes) -> None:
    with suppress(ConfigurationError):
        yaml_schema.loads(content, BOARD, file="x.yaml")


SOUND = (EXAMPLE.read_text(encoding="utf-8"), (EXAMPLE.parent / "esp32-s3.yaml").read_text(encoding="utf-8"))


@given(st.data())
def test_a_damaged_file_gets_an_error_of_ours(data: st.DataObject) -> None:
    """Some characters of a sound file are replaced, left out, or said twice."""
    text = data.draw(st.sampled_from(SOUND))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = min(len(text), start + data.draw(st.integers(0, 12)))
        text = text[:start] + data.draw(st.text("ab:{}[],-0x19\n #&*!|>'\"é\x00", max_size=6)) + text[stop:]
    with suppress(ConfigurationError):
        yaml_schema.loads(text, BOARD, lambda board, report: check(board, report, Path("x.yaml")), file="x.yaml")


def test_measurements_are_whole(board_file: Callable[..., str]) -> None:
    good = "measured: [{model: m, tokens_per_s: 9.5, ttft_ms: 800, date: 2026-11-22}]"
    board = load_board(board_file(("measured: []", good)))
    assert board.measured[0].tokens_per_s == 9.5
    line = EXAMPLE.read_text(encoding="utf-8").splitlines().index("measured: []") + 1
    assert faults(board_file(("measured: []", good.replace("ttft_ms: 800, date: 2026-11-22", "date: today")))) == [
        f"{line}:12: measured[0]: 'ttft_ms' is missing",
        f"{line}:48: measured[0].date: found 'today'; expected a date such as 2026-11-22",
    ]


def test_the_files_are_plain_yaml_that_other_tools_read() -> None:
    for board_id in board_ids():
        data = yaml.safe_load((EXAMPLE.parent / f"{board_id}.yaml").read_text(encoding="utf-8"))
        assert isinstance(load_board(board_id), Board) and data["id"] == board_id


def test_a_32_bit_system_under_a_64_bit_kernel_is_the_32_bit_board() -> None:
    """As Raspberry Pi OS has it: the kernel says aarch64, and pip must find packages for armv7l."""
    name, ram_kib = ("raspberrypi,4-model-b",), 1_900_000
    found = detect(name, program_arch_of("aarch64", 32), ram_kib)
    assert found is not None and found.id == "raspberry-pi-4-2gb-32bit"
    assert program_arch_of("armv8l", 32) == program_arch_of("armv7l", 32) == "armv7l"
    found = detect(name, program_arch_of("aarch64", 64), ram_kib)
    assert found is not None and found.id == "raspberry-pi-4-2gb"


def test_every_field_of_a_board_file_is_documented() -> None:
    page = (Path(boards.__file__).parents[1] / "docs" / "guides" / "boards.md").read_text(encoding="utf-8")
    for part in (Soc, Memory, Storage, Graph, Flash, Detect, Measurement):
        for field in fields(part):
            assert re.search(rf"\b{field.name}\b", page), f"{part.__name__}.{field.name}"


@pytest.mark.parametrize(("name", "expected"), [("pico2", "rp2350"), ("nucleo-u575", "stm32u5")])
def test_an_unknown_id_is_matched_with_the_names_of_boards(name, expected):
    with pytest.raises(ConfigurationError, match=f"did you mean '{expected}'"):
        boards.load_board(name)
