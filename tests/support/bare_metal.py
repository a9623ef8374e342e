"""Programs without an operating system on boards that QEMU emulates (tests and benchmarks)."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from device_runtime.micro.library import CEngine
from device_runtime.micro.sources import FLAGS, INCLUDES, WARNINGS, engine_sources

__all__ = ["BOARDS", "Board", "compile_for", "missing_tools", "run_image", "run_on"]

FOLDER = Path(__file__).parents[1] / "device_runtime" / "micro" / "bare_metal"


@dataclass(frozen=True)
class Board:
    """A machine of QEMU's."""

    machine: str
    cpu: tuple[str, ...]  # flags of the compiler
    memory: int  # address of megabytes of RAM that stand for flash
    clock_hz: int  # of SysTick; 0: it has none
    family: str = "arm"  # names start_*.c, the linker's script, compiler and emulator


BOARDS = {
    "M4": Board(
        "mps2-an386", ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"), 0x21000000, 25_000_000
    ),
    "M7": Board("mps2-an500", ("-mcpu=cortex-m7", "-mfloat-abi=hard", "-mfpu=fpv5-d16"), 0x60000000, 25_000_000),
    "M55": Board("mps3-an547", ("-mcpu=cortex-m55", "-mfloat-abi=hard"), 0x60000000, 32_000_000),
    "RISC-V": Board(
        # GCC 12 finds the 32-bit libraries by this spelling; there is no floating-point unit
        "virt", ("-march=rv32imac", "-mabi=ilp32", "-mcmodel=medany", "--specs=picolibc.specs"), 0x84000000, 0, "riscv"
    ),
}  # fmt: skip
_TOOLS = {
    "arm": (
        ("arm-none-eabi-gcc", "-mthumb", "--specs=nano.specs"), "gcc-arm-none-eabi libnewlib-arm-none-eabi",
        ("qemu-system-arm", "-semihosting-config", "enable=on,target=native"), "qemu-system-arm",
    ),
    "riscv": (
        ("riscv64-unknown-elf-gcc",), "gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf",
        ("qemu-system-riscv32", "-bios", "none"), "qemu-system-misc",
    ),
}  # fmt: skip


def missing_tools(family: str = "arm") -> str | None:
    """What to install, or None."""
    compiler, compiler_packages, emulator, emulator_package = _TOOLS[family]
    tools = {compiler[0]: compiler_packages, emulator[0]: emulator_package}
    missing = [package for tool, package in tools.items() if shutil.which(tool) is None]
    return f"apt install {' '.join(missing)}" if missing else None


def compile_for(
    board: Board,
    out: Path,
    main: str | Path,
    defines: Mapping[str, int],
    flags: Sequence[str] = (),
    engine: Sequence[Path] | None = None,
) -> Path:
    """One C file (of tests/device_runtime/micro/bare_metal, or anywhere) with `engine`, by default the whole."""
    compiler = _TOOLS[board.family][0]
    command = [compiler[0], *board.cpu, *compiler[1:], *FLAGS, *WARNINGS, *flags, "-nostartfiles"]
    command += ["-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"]
    command += [f"-T{FOLDER / f'{board.family}.ld'}", *(f"-D{name}={value}" for name, value in defines.items())]
    if board.clock_hz:
        command.append(f"-DCLOCK_HZ={board.clock_hz}")
    command += [f"-I{folder}" for folder in (*INCLUDES, FOLDER)]
    sources = [FOLDER / f"start_{board.family}.c", FOLDER / main, *(engine_sources() if engine is None else engine)]
    done = subprocess.run([*command, *map(str, sources), "-lm", "-o", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def run_on(board: Board, program: Path, blobs: Mapping[int, Path] | None = None) -> str:
    """What a program prints; `blobs` lie at their addresses before it starts. One instruction takes a nanosecond."""
    emulator = _TOOLS[board.family][2]
    command = [*emulator, "-M", board.machine, "-nographic", "-icount", "shift=0", "-kernel", str(program)]
    for address, blob in (blobs or {}).items():
        command += ["-device", f"loader,file={blob},addr={address:#x},force-raw=on"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr  # semihosting writes to stderr


def run_image(
    board: Board, folder: Path, image: Path, tokens: Sequence[int], flags: Sequence[str] = ()
) -> tuple[str, int]:
    """Feed tokens to a model image: the SHA-256 of all stored logits, and the instructions of the last token."""
    needs = CEngine(image).needs
    (folder / "tokens").write_bytes(struct.pack(f"<{len(tokens) + 1}I", len(tokens), *tokens))
    tokens_at = board.memory + -(-image.stat().st_size // 4096) * 4096
    defines = {
        "IMAGE_AT": board.memory, "IMAGE_BYTES": image.stat().st_size, "TOKENS_AT": tokens_at,
        "ARENA_BYTES": needs.arena_bytes + 64, "KV_BYTES": needs.kv_cache_bytes,
    }  # fmt: skip
    program = compile_for(board, folder / "run.elf", "run_bare.c", defines, flags)
    digest, taken = run_on(board, program, {board.memory: image, tokens_at: folder / "tokens"}).split()
    return digest, int(taken)
