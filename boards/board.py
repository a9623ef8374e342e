"""What stonechat knows of a board: the dataclasses that a board file is read into.

The file's form, its checks and its reading are in boards/schema.py and boards/catalogue.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from device_runtime.machine.power import Power

__all__ = ["Board", "Detect", "Firmware", "Flash", "Graph", "Measurement", "Memory", "Soc", "Storage"]

_BITS_64 = ("aarch64", "x86_64")


@dataclass(frozen=True)
class Soc:
    """The processor."""

    arch: str  # of the programs that run: a 32-bit Raspberry Pi OS is armv7l, whatever its kernel says
    core: str  # cortex-a53
    cores: int
    mhz: int
    features: tuple[str, ...] = ()  # neon, dotprod, dsp …: what kernels may use

    @property
    def pointer_bytes(self) -> int:
        """The width of an address."""
        return 8 if self.arch in _BITS_64 else 4


@dataclass(frozen=True)
class Memory:
    """RAM."""

    ram_kib: int
    psram_kib: int  # external, slower than `ram_kib`
    model_budget_kib: int  # what a model may take: arena or resident memory, its weights included if they are in RAM
    bandwidth_mb_s: int  # 10^6 bytes a second that the interface of the memory with the weights can move at most
    weights: Literal["ram", "flash"]  # where the weights lie while the model runs; in flash they take no RAM
    prompt_states_kib: int | None = None  # beside that, for states of prompts that are kept; None: an eighth of it

    @property
    def prompt_states_bytes(self) -> int:
        """What kept states of prompts may take, of all models together."""
        kib = self.model_budget_kib // 8 if self.prompt_states_kib is None else self.prompt_states_kib
        return kib << 10


@dataclass(frozen=True)
class Storage:
    """Where bundles lie."""

    model_kib: int  # for one bundle
    slots: int  # how many of that size: 2 let an update be undone


@dataclass(frozen=True)
class Graph:
    """What the converter makes for this board."""

    profile: Literal["pi", "micro"]
    max_context: int  # positions


@dataclass(frozen=True)
class Flash:
    """How software gets onto the board."""

    method: Literal["ssh", "esptool", "uf2", "smp", "stm32"]
    chip: str | None = None  # as esptool's --chip takes it: esp32s3; with stm32 the part's line: stm32f405
    baud: int | None = None  # of the serial port while flashing; None: the method's own default
    uf2_family: int | None = None  # family id that each UF2 block carries
    uf2_board_id: str | None = None  # Board-ID in the INFO_UF2.TXT of the boot loader's drive
    firmware_address: int | None = None  # where an image goes that does not say it itself; counted as model_address
    firmware_kib: int | None = None  # room for it from there, with smp of one MCUboot slot
    model_address: int | None = None  # of the first slot's first byte: a CPU address; for esptool an offset in flash
    boot_loader: str | None = None  # what to press so that the board waits for a new image


@dataclass(frozen=True)
class UpdateSlots:
    """Where a board keeps two slots each for firmware and model, and the boot loader that chooses one."""

    flash_address: int  # of a record of 64 KiB; the slots follow, those for firmware first
    firmware_kib: int  # of one firmware slot
    boot_kib: int = 64  # of the boot loader, at code_address; a firmware is copied to what follows, and runs there
    sector_kib: int = 4  # that is erased at once
    machine_ram_address: int | None = None  # of QEMU's RAM that a file keeps: it is used as flash
    machine_ram_kib: int | None = None


@dataclass(frozen=True)
class Firmware:
    """How stonechat's own firmware is built for this board, and which of QEMU's machines runs it."""

    uart: Literal["cmsdk", "stm32", "ns16550"]  # device_runtime/micro/ports/uart_….c
    uart_address: int
    code_address: int
    code_kib: int
    ram_address: int  # for data, the arena, the kv_cache and the stack
    ram_kib: int
    uart_irq: int = 0
    machine: str | None = None  # of QEMU
    watchdog_address: int | None = None  # of Arm's CMSDK watchdog; None: there is none
    watchdog_hz: int | None = None
    network: Literal["lan9118"] | None = None  # its network card, device_runtime/micro/ports/lwip/….c; None: none
    network_address: int | None = None
    update: UpdateSlots | None = None  # None: one slot, written over the chip's own boot loader


@dataclass(frozen=True)
class Detect:
    """How a board that is plugged in, or the board that we run on, is recognized."""

    device_tree: str | None = None  # one of the strings in /proc/device-tree/compatible
    usb: tuple[str, ...] = ()  # vendor:product, in hexadecimal, of the serial port
    boot_usb: tuple[str, ...] = ()  # the same, of the boot loader, if it has other ids


@dataclass(frozen=True)
class Measurement:
    """What was measured on the board itself."""

    model: str
    tokens_per_s: float  # decode
    ttft_ms: float  # time to first token
    date: str  # 2026-11-22


@dataclass(frozen=True)
class Board:
    """A board file."""

    id: str  # equals the file's name
    name: str
    kind: Literal["linux", "mcu"]  # `class` in the file
    soc: Soc
    memory: Memory
    storage: Storage
    graph: Graph
    flash: Flash
    detect: Detect
    source: str  # where each figure is from, and which are our own choice
    measured: tuple[Measurement, ...] = ()
    power: Power | None = None  # what it draws; None: nobody has said
    firmware: Firmware | None = None  # None: stonechat builds no firmware for it
    refused: str | None = None  # why stonechat does not run here, for a board that is only known
    schema: int = 1

    @property
    def profile(self) -> Literal["pi", "micro"]:
        """The graph profile."""
        return self.graph.profile

    @property
    def max_context(self) -> int:
        """The longest context, in positions, that makes sense here."""
        return self.graph.max_context

    @property
    def arch(self) -> str:
        """The instruction set."""
        return self.soc.arch

    @property
    def ram_kib(self) -> int:
        """RAM inside the chip, or on a Linux board all of it."""
        return self.memory.ram_kib

    @property
    def model_budget_kib(self) -> int:
        """What a model may take of it."""
        return self.memory.model_budget_kib
