"""Programs without an operating system on boards that QEMU emulates (tests and benchmarks)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from device_runtime.micro.sources import FLAGS, INCLUDES, WARNINGS, engine_sources

__all__ = ["BOARDS", "Board", "compile_for", "missing_tools", "run_on"]

FOLDER = Path(__file__).parent / "device_runtime" / "micro" / "bare_metal"


@dataclass(frozen=True)
class Board:
    """A machine of qemu-system-arm."""

    machine: str
    cpu: tuple[str, ...]  # flags of the compiler
    memory: int  # address of megabytes of RAM that stand for flash
    clock_hz: int  # of SysTick


BOARDS = {
    "M4": Board(
        "mps2-an386", ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"), 0x21000000, 25_000_000
    ),
    "M7": Board("mps2-an500", ("-mcpu=cortex-m7", "-mfloat-abi=hard", "-mfpu=fpv5-d16"), 0x60000000, 25_000_000),
    "M55": Board("mps3-an547", ("-mcpu=cortex-m55", "-mfloat-abi=hard"), 0x60000000, 32_000_000),
}  # fmt: skip


def missing_tools() -> str | None:
    """What to install, or None."""
    tools = {"arm-none-eabi-gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi", "qemu-system-arm": "qemu-system-arm"}
    missing = [package for tool, package in tools.items() if shutil.which(tool) is None]
    return f"apt install {' '.join(missing)}" if missing else None


def compile_for(board: Board, out: Path, main: str, defines: Mapping[str, int], flags: Sequence[str] = ()) -> Path:
    """One C file of tests/device_runtime/micro/bare_metal with the whole engine."""
    command = ["arm-none-eabi-gcc", *board.cpu, "-mthumb", *FLAGS, *WARNINGS, *flags, "-nostartfiles"]
    command += ["-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "--specs=nano.specs"]
    command += [f"-T{FOLDER / 'arm.ld'}", *(f"-D{name}={value}" for name, value in defines.items())]
    command += [*(f"-I{folder}" for folder in (*INCLUDES, FOLDER)), str(FOLDER / "start_arm.c"), str(FOLDER / main)]
    done = subprocess.run(
        [*command, *map(str, engine_sources()), "-lm", "-o", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out


def run_on(board: Board, program: Path, blobs: Mapping[int, Path] | None = None) -> str:
    """What a program prints; `blobs` lie at their addresses before it starts. One instruction takes a nanosecond."""
    command = ["qemu-system-arm", "-M", board.machine, "-nographic", "-icount", "shift=0"]
    command += ["-semihosting-config", "enable=on,target=native", "-kernel", str(program)]
    for address, blob in (blobs or {}).items():
        command += ["-device", f"loader,file={blob},addr={address:#x},force-raw=on"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr  # semihosting writes to stderr
