"""Which compiler builds for a core, and with which flags."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from boards import Board
from device_runtime.errors import BackendMissingError, ConfigurationError

__all__ = ["Toolchain", "toolchain_for"]

_ARM = {
    "cortex-m4": ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
    "cortex-m7": ("-mcpu=cortex-m7", "-mfloat-abi=hard", "-mfpu=fpv5-d16"),
    "cortex-m55": ("-mcpu=cortex-m55", "-mfloat-abi=hard"),
}
# GCC 12 picks the 64-bit libraries for a riscv32 architecture that it spells differently than the libraries do.
_RISCV = ("-march=rv32imac", "-mabi=ilp32", "-mcmodel=medany", "--specs=picolibc.specs")


@dataclass(frozen=True)
class Toolchain:
    """A cross compiler."""

    compiler: str
    flags: tuple[str, ...]  # of the core, for compiling and for linking
    link_flags: tuple[str, ...]
    start: str  # files of device_runtime/micro/ports/
    script: str
    qemu: str

    @property
    def objcopy(self) -> str:
        """Beside the compiler."""
        return self.compiler.removesuffix("gcc") + "objcopy"


def toolchain_for(board: Board) -> Toolchain:
    """The toolchain of a board's core.

    Raises:
        ConfigurationError: stonechat does not build for it.
        BackendMissingError: the compiler is not installed.
    """
    core = board.soc.core
    if core in _ARM:
        tools = Toolchain(
            "arm-none-eabi-gcc", ("-mthumb", *_ARM[core]), ("--specs=nosys.specs",), "start_arm.c", "arm.ld",
            "qemu-system-arm",
        )  # fmt: skip
        packages = "gcc-arm-none-eabi libnewlib-arm-none-eabi"
    elif board.soc.arch == "riscv32" and core == "rv32imac":
        tools = Toolchain(
            "riscv64-unknown-elf-gcc", _RISCV, (), "start_riscv.c", "riscv.ld", "qemu-system-riscv32"
        )  # fmt: skip
        packages = "gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf"
    else:
        raise ConfigurationError(
            f"stonechat builds no firmware for the core {core}; it does for {', '.join([*_ARM, 'rv32imac'])}. "
            "Build device_runtime/micro/ with the board's own tools."
        )
    if shutil.which(tools.compiler) is None:
        raise BackendMissingError(f"{tools.compiler} is not installed; on Debian: apt install {packages}.")
    return tools
