"""The form of a board file, as a table, and the rules that concern several of its fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from boards.board import Board, Detect, Firmware, Flash, Graph, Measurement, Memory, Soc, Storage, UpdateSlots
from device_runtime.fleet.yaml_schema import Choice, Field, Integer, ListOf, Number, Path_, Record, Report, Text
from device_runtime.machine.power import Power

__all__ = ["ARCHITECTURES", "BOARD", "FEATURES", "check"]

RUNS_PI = ("aarch64", "x86_64")  # LiteRT 2 has packages for these
LINUX = (*RUNS_PI, "armv7l", "armv6l")
ARCHITECTURES = (*LINUX, "armv6-m", "armv7e-m", "armv8-m", "armv8.1-m", "riscv32", "xtensa")
# What a core may have beyond its architecture's least, by architecture.
FEATURES = {
    "aarch64": ("neon", "crc32", "aes", "fp16", "dotprod", "lse"),
    "armv7l": ("vfpv3", "vfpv4", "neon"),
    "armv6l": ("vfpv2",),
    "x86_64": ("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "f16c", "avx512f"),
    "armv6-m": (),
    "armv7e-m": ("dsp", "fpu-single", "fpu-double"),
    "armv8-m": ("dsp", "fpu-single", "trustzone"),
    "armv8.1-m": ("dsp", "fpu-single", "fpu-double", "trustzone", "helium"),
    "riscv32": ("fpu-single", "simd128"),
    "xtensa": ("fpu-single", "simd128"),
}


@dataclass(frozen=True)
class Hexadecimal:
    """A whole number up to 32 bits, written 0x10000000."""

    expected: str

    def read(self, node: yaml.Node, path: Path_, report: Report) -> int:
        """The number."""
        return int(Text(self.expected, r"0x[0-9a-fA-F]{1,8}").read(node, path, report), 16)


def check(board: Board, report: Report, path: Path) -> None:
    """Add the faults that concern several fields."""
    if board.id != path.stem:
        report.add_at(("id",), f"found {board.id!r}; expected the file's name, {path.stem!r}")
    _check_processor(board, report)
    memory = board.memory
    if memory.model_budget_kib > memory.ram_kib + memory.psram_kib:
        found = f"found {memory.model_budget_kib} KiB; expected at most ram_kib + psram_kib"
        report.add_at(("memory", "model_budget_kib"), f"{found}, {memory.ram_kib + memory.psram_kib} KiB")
    if memory.weights == "flash" and board.kind == "linux":
        report.add_at(("memory", "weights"), "found 'flash'; a Linux board reads its weights through RAM: expected ram")
    if board.profile == "pi" and (board.kind != "linux" or board.arch not in RUNS_PI):
        report.add_at(
            ("graph", "profile"), f"found 'pi', which needs Linux on {' or '.join(RUNS_PI)}; expected 'micro'"
        )
    _check_flash(board, report)


def _check_processor(board: Board, report: Report) -> None:
    linux = board.arch in LINUX
    if linux != (board.kind == "linux"):
        expected = LINUX if board.kind == "linux" else tuple(a for a in ARCHITECTURES if a not in LINUX)
        what = f"which no board of class {board.kind} has; expected one of {', '.join(expected)}"
        report.add_at(("soc", "arch"), f"found {board.arch!r}, {what}")
        return
    known = FEATURES[board.arch]
    for i, feature in enumerate(board.soc.features):
        if feature not in known:
            expected_text = f"expected one of {', '.join(known)}" if known else "no feature is known of it"
            report.add_at(
                ("soc", "features", i), f"found {feature!r}, which {board.arch} does not have; {expected_text}"
            )


def _check_flash(board: Board, report: Report) -> None:
    flash = board.flash
    if flash.method == "ssh" and board.kind != "linux":
        report.add_at(("flash", "method"), "found 'ssh', which needs Linux; expected esptool, uf2, smp or stm32")
    if flash.method != "ssh" and board.kind == "linux":
        report.add_at(("flash", "method"), f"found {flash.method!r}, which is for microcontrollers; expected ssh")
    needs = {"esptool": "chip", "uf2": "uf2_family", "stm32": "chip"}.get(flash.method)
    if needs and getattr(flash, needs) is None:
        report.add_at(("flash",), f"method {flash.method} needs {needs!r}, which is missing")


_KIB = Integer(0, 2**40, "KiB")
_POSITIVE_KIB = Integer(1, 2**40, "KiB")
_ALL_FEATURES = tuple(dict.fromkeys(word for words in FEATURES.values() for word in words))
_USB = ListOf(Text("vendor:product in hexadecimal, such as 303a:1001", r"[0-9a-f]{4}:[0-9a-f]{4}"))

_SOC = Record(
    Soc,
    {
        "arch": Field(Choice(ARCHITECTURES)),
        "core": Field(Text("the core's name, such as cortex-a53")),
        "cores": Field(Integer(1, 1024)),
        "mhz": Field(Integer(1, 100_000, "MHz")),
        "features": Field(ListOf(Choice(_ALL_FEATURES)), ()),
    },
)
_MEMORY = Record(
    Memory,
    {
        "ram_kib": Field(_POSITIVE_KIB),
        "psram_kib": Field(_KIB, 0),
        "model_budget_kib": Field(_POSITIVE_KIB),
        "bandwidth_mb_s": Field(Integer(1, 10**7, "MB/s")),
        "weights": Field(Choice(("ram", "flash")), "ram"),
        "prompt_states_kib": Field(_KIB, None),
    },
)
_FLASH = Record(
    Flash,
    {
        "method": Field(Choice(("ssh", "esptool", "uf2", "smp", "stm32"))),
        "chip": Field(Text("a chip such as esp32s3 (as esptool names it) or stm32f405", r"(esp|stm32)[0-9a-z]+"), None),
        "baud": Field(Integer(1200, 10_000_000, "baud"), None),
        "uf2_family": Field(Hexadecimal("a UF2 family id such as 0xe48bff56"), None),
        "uf2_board_id": Field(Text("the Board-ID in the drive's INFO_UF2.TXT, such as RPI-RP2"), None),
        "firmware_address": Field(Hexadecimal("an address such as 0x10000000"), None),
        "firmware_kib": Field(_POSITIVE_KIB, None),
        "model_address": Field(Hexadecimal("an address such as 0x10100000"), None),
        "boot_loader": Field(Text("what to press so that the board waits for an image"), None),
    },
)
_ADDRESS = Hexadecimal("an address such as 0x20000000")
_UPDATE = Record(
    UpdateSlots,
    {
        "flash_address": Field(_ADDRESS),
        "firmware_kib": Field(_POSITIVE_KIB),
        "boot_kib": Field(_POSITIVE_KIB, 64),
        "sector_kib": Field(_POSITIVE_KIB, 4),
        "machine_ram_address": Field(_ADDRESS, None),
        "machine_ram_kib": Field(_POSITIVE_KIB, None),
    },
)
_FIRMWARE = Record(
    Firmware,
    {
        "uart": Field(Choice(("cmsdk", "stm32", "ns16550"))),
        "uart_address": Field(_ADDRESS),
        "code_address": Field(_ADDRESS),
        "code_kib": Field(_POSITIVE_KIB),
        "ram_address": Field(_ADDRESS),
        "ram_kib": Field(_POSITIVE_KIB),
        "uart_irq": Field(Integer(0, 63, "interrupt")),
        "machine": Field(Text("one of QEMU's machines, such as mps2-an386"), None),
        "watchdog_address": Field(_ADDRESS, None),
        "watchdog_hz": Field(Integer(1000, 1_000_000_000, "Hz"), None),
        "network": Field(Choice(("lan9118",)), None),
        "network_address": Field(_ADDRESS, None),
        "update": Field(_UPDATE, None),
    },
)
_MEASUREMENT = Record(
    Measurement,
    {
        "model": Field(Text("a model's name")),
        "tokens_per_s": Field(Number(0, 1e6, "tok/s")),
        "ttft_ms": Field(Number(0, 1e9, "ms")),
        "date": Field(Text("a date such as 2026-11-22", r"\d{4}-\d\d-\d\d")),
    },
)
_DETECT = Record(
    Detect,
    {
        "device_tree": Field(Text("a compatible string, such as raspberrypi,4-model-b", r"[^,\s]+,\S+"), None),
        "usb": Field(_USB, ()),
        "boot_usb": Field(_USB, ()),
    },
)
_POWER = Record(
    Power,
    {
        "idle_w": Field(Number(0, 1000, "W")),
        "busy_w": Field(Number(0, 1000, "W")),
        "source": Field(Text("where both figures are from")),
    },
)
BOARD: Record[Board] = Record(
    Board,
    {
        "schema": Field(Integer(1, 1)),
        "id": Field(Text("an id of a-z, 0-9 and -, at most 64 characters", r"[a-z0-9][a-z0-9-]{0,63}")),
        "name": Field(Text("the board's name")),
        "class": Field(Choice(("linux", "mcu")), to="kind"),
        "refused": Field(Text("why stonechat does not run on this board"), None),
        "soc": Field(_SOC),
        "memory": Field(_MEMORY),
        "storage": Field(Record(Storage, {"model_kib": Field(_POSITIVE_KIB), "slots": Field(Integer(1, 16))})),
        "graph": Field(
            Record(
                Graph,
                {"profile": Field(Choice(("pi", "micro"))), "max_context": Field(Integer(16, 2**20, "positions"))},
            )
        ),
        "flash": Field(_FLASH),
        "detect": Field(_DETECT, Detect()),
        "power": Field(_POWER, None),
        "firmware": Field(_FIRMWARE, None),
        "source": Field(Text("where each figure is from")),
        "measured": Field(ListOf(_MEASUREMENT), ()),
    },
)
