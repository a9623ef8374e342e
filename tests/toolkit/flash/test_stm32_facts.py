"""What STMicroelectronics' documents say of the boot loaders, copied from them by hand.

The peer of the other tests takes its sectors from our own table, so it cannot know better. Here are the figures as the
documents print them; independent tables that agree: stm32flash (dev_table.c), stm32loader (devices.py), OpenOCD
(stm32f2x.c, stm32h7x.c, stm32l4x.c).

    AN2606  STM32 microcontroller system memory boot mode: device-dependent parameters (PID), alignment constraints
    AN3155  USART protocol used in the STM32 bootloader, sections 3.1 to 3.8
    RM0090  STM32F405, F407 …: flash module organization (STM32F40x and STM32F41x)
    RM0433  STM32H742, H743, H753, H750: embedded flash memory, organization of 2 Mbyte devices
    RM0456  STM32U5: embedded flash memory, organization of 2-Mbyte devices
"""

from __future__ import annotations

from itertools import accumulate

import pytest

from boards import board_ids, load_board
from device_runtime.errors import FlashError, UnreachableError
from toolkit.flash import ports, stm32
from toolkit.flash.an3155 import BootLoader
from toolkit.flash.stm32 import CHIPS

PRODUCT_IDS = {"stm32f405": 0x413, "stm32h743": 0x450, "stm32u575": 0x482, "stm32u585": 0x482}  # AN2606

RM0090 = [
    0x0800_0000, 0x0800_4000, 0x0800_8000, 0x0800_C000,  # sectors 0 to 3, 16 Kbytes
    0x0801_0000,  # sector 4, 64 Kbytes
    0x0802_0000, 0x0804_0000, 0x0806_0000, 0x0808_0000, 0x080A_0000, 0x080C_0000, 0x080E_0000,  # 5 to 11, 128 Kbytes
]  # fmt: skip
RM0433 = {
    0: 0x0800_0000, 1: 0x0802_0000, 7: 0x080E_0000,  # bank 1
    8: 0x0810_0000, 9: 0x0812_0000, 15: 0x081E_0000,  # bank 2
}  # fmt: skip
RM0456 = {
    0: 0x0800_0000, 1: 0x0800_2000, 127: 0x080F_E000,  # bank 1
    128: 0x0810_0000, 129: 0x0810_2000, 255: 0x081F_E000,  # bank 2
}  # fmt: skip
ENDS = {"stm32f405": 0x0810_0000, "stm32h743": 0x0820_0000, "stm32u575": 0x0820_0000, "stm32u585": 0x0820_0000}
ALIGNMENT_BYTES = {"F4": 4, "H7": 8, "H7, a flash word": 32, "U5": 16}  # AN2606; RM0433
NOT_SERIAL = {"0483:df11": "STMicroelectronics' DFU", "16c0:0478": "PJRC's HalfKay"}


def starts(chip: str) -> list[int]:
    """Where each sector begins, and the end."""
    return list(accumulate((kib * 1024 for kib in CHIPS[chip].sectors_kib), initial=0x0800_0000))


def test_product_ids_are_those_of_an2606() -> None:
    assert {name: chip.product_id for name, chip in CHIPS.items()} == PRODUCT_IDS


def test_sectors_are_where_the_reference_manuals_have_them() -> None:
    assert starts("stm32f405")[:-1] == RM0090
    for chip, addresses in (("stm32h743", RM0433), ("stm32u575", RM0456), ("stm32u585", RM0456)):
        assert {number: starts(chip)[number] for number in addresses} == addresses
        assert len(CHIPS[chip].sectors_kib) == max(addresses) + 1
    assert {chip: starts(chip)[-1] for chip in CHIPS} == ENDS


def test_bank_2_of_the_h743_is_erased_with_patience() -> None:
    """AN2606: STM32H74xxx/75xxx boot loader 9.1, known limitations. DS12110: up to 4 s for a sector of 128 Kbytes."""
    assert starts("stm32h743")[CHIPS["stm32h743"].early_ack_from] == RM0433[8]
    assert stm32._ERASE_S >= 4


def test_what_is_written_at_once_keeps_every_alignment() -> None:
    assert all(stm32._FLASH_WORD_BYTES % size == 0 for size in ALIGNMENT_BYTES.values())


class Script:
    """A line whose other end says what a document says it does."""

    def __init__(self, answers: str) -> None:
        self._answers, self.sent = bytearray.fromhex(answers), bytearray()

    def read(self, size: int = 1) -> bytes:
        data = bytes(self._answers[:size])
        del self._answers[:size]
        return data

    def write(self, data: bytes) -> int:
        self.sent += data
        return len(data)

    def reset_input_buffer(self) -> None:
        pass


# GET: the number of bytes to follow less one, the version, the commands. GET ID: that number, the PID.
CONNECT = "79  79 0b 31 00 01 02 11 21 31 44 63 73 82 92 79  79 01 04 13 79"


def connected(answers: str = "", connect: str = CONNECT) -> tuple[BootLoader, Script]:
    line = Script(connect + answers)
    loader = BootLoader(line)
    assert loader.connect() == 0x413
    assert line.sent.hex(" ") == "7f 00 ff 02 fd"
    line.sent.clear()
    return loader, line


WRITE = "31 ce  08 00 01 00 09  03 aa bb cc dd 03"  # the last byte: XOR of the number and the data


@pytest.mark.parametrize(
    ("act", "answers", "sent"),
    [
        (lambda b: b.read(0x0800_0100, 4), "79 79 79 aa bb cc dd", "11 ee  08 00 01 00 09  03 fc"),
        (lambda b: b.write(0x0800_0100, bytes.fromhex("aabbccdd")), "79 79 79", WRITE),
        (lambda b: b.erase([3, 260], lambda share: None), "79 79", "44 bb  00 01 00 03 01 04 07"),
        (lambda b: b.go(0x0800_0000), "79 79", "21 de  08 00 00 00 08"),
    ],
    ids=["read", "write", "extended erase", "go"],
)  # fmt: skip
def test_commands_are_the_bytes_of_an3155(act, answers, sent) -> None:
    loader, line = connected(answers)
    act(loader)
    assert line.sent == bytes.fromhex(sent)


def test_a_boot_loader_before_version_3_has_the_shorter_erase() -> None:
    loader, line = connected("79 79", "79  79 0b 22 00 01 02 11 21 31 43 63 73 82 92 79  79 01 04 13 79")
    loader.erase([3, 4], lambda share: None)
    assert line.sent == bytes.fromhex("43 bc  01 03 04 06")


@pytest.mark.parametrize(
    "act",
    [
        lambda b: b.read(0x0800_0000, 4),
        lambda b: b.write(0x0800_0000, bytes(4)),
        lambda b: b.erase([0], lambda share: None),
        lambda b: b.go(0x0800_0000),
    ],
    ids=["read", "write", "extended erase", "go"],
)
def test_a_read_protected_chip_says_nack_to_the_command_itself(act) -> None:
    loader, _ = connected("1f")
    with pytest.raises(FlashError, match=r"with NACK.*read-protected.*STM32CubeProgrammer"):
        act(loader)


@pytest.mark.parametrize("board", [load_board(name) for name in board_ids()], ids=lambda board: board.id)
def test_no_board_file_promises_a_serial_port_where_there_is_none(board) -> None:
    if board.flash.method in ("esptool", "smp", "stm32"):
        assert not NOT_SERIAL.keys() & {*board.detect.usb, *board.detect.boot_usb}
    if board.flash.method == "stm32":
        assert "BOOT0" in board.flash.boot_loader and board.flash.chip in CHIPS
    elif board.flash.method == "smp":
        assert "BOOT0 high" not in (board.flash.boot_loader or "")  # the chip's own loader speaks no SMP


def test_a_board_that_is_flashed_through_an_adapter_asks_for_its_port() -> None:
    with pytest.raises(UnreachableError, match=r"serial adapter of your own.*\n.*name its port with --port"):
        ports.find_port(load_board("stm32f405"), [])
