"""Compile the engine and its console for a board, sized for one bundle."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from boards import Board
from boards.board import Firmware
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import IMAGE
from device_runtime.errors import BackendError, BundleError, ConfigurationError, DoesNotFitError
from device_runtime.micro.library import CEngine
from device_runtime.micro.sources import FLAGS, INCLUDES, engine_sources
from toolkit.firmware.toolchain import toolchain_for

__all__ = ["Build", "build_firmware", "firmware_of", "image_of"]

PORTS = INCLUDES[0].parent / "ports"
STACK_BYTES = 12 * 1024
_SLACK_BYTES = 1024  # the host's records have wider pointers than the board's: its arena is never the smaller one


@dataclass(frozen=True)
class Build:
    """What was built."""

    elf: Path
    map: Path
    image: Path  # of the model, which lies apart
    image_address: int
    arena_bytes: int
    kv_cache_bytes: int


def firmware_of(board: Board) -> Firmware:
    """What the board's file says of its firmware.

    Raises:
        ConfigurationError: it says nothing, or not where the model lies.
    """
    if board.firmware is None or board.flash.model_address is None:
        raise ConfigurationError(
            f"stonechat builds no firmware for {board.id}: its file has no `firmware:` block. "
            "Build device_runtime/micro/ with the board's own tools."
        )
    return board.firmware


def image_of(bundle: Bundle) -> Path:
    """The model image of a bundle.

    Raises:
        BundleError: it has none.
    """
    path = bundle.path / IMAGE
    if not path.is_file():
        raise BundleError(f"{bundle.path} has no {IMAGE}; convert the checkpoint with --profile micro.")
    return path


def build_firmware(bundle: Bundle, board: Board, folder: Path) -> Build:
    """Build `firmware.elf` and its map in `folder`.

    Raises:
        ConfigurationError: there is no firmware for the board.
        BackendMissingError: its compiler is not installed.
        BackendError: the compiler fails.
        DoesNotFitError: the board has too little memory.
    """
    layout, tools, image = firmware_of(board), toolchain_for(board), image_of(bundle)
    assert board.flash.model_address is not None
    if image.stat().st_size > board.storage.model_kib * 1024:
        raise DoesNotFitError(
            f"The model image has {image.stat().st_size / 1024:,.0f} KiB; {board.id} has "
            f"{board.storage.model_kib:,} KiB for one."
        )
    needs = CEngine(image).needs
    arena, kv_cache = needs.arena_bytes + _SLACK_BYTES, max(16, needs.kv_cache_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    defines = {
        "IMAGE_AT": f"{board.flash.model_address:#x}u",
        "IMAGE_ROOM": f"{board.storage.model_kib * 1024}u",
        "ARENA_BYTES": arena,
        "KV_BYTES": kv_cache,
        "CONTEXT": needs.context,
        "UART_AT": f"{layout.uart_address:#x}u",
    }
    command = [
        tools.compiler, *tools.flags, *FLAGS, "-ffunction-sections", "-fdata-sections", *(f"-I{i}" for i in INCLUDES),
        f"-I{PORTS}", *(f"-D{name}={value}" for name, value in defines.items()),
    ]  # fmt: skip
    ports = [PORTS / name for name in ("console.c", tools.start, f"uart_{layout.uart}.c")]
    sources = [*engine_sources(), *ports]
    objects = [folder / f"{source.parent.name}-{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda pair: _run([*command, "-c", str(pair[0]), "-o", str(pair[1])]),
                      zip(sources, objects, strict=True)))  # fmt: skip
    elf, map_file = folder / "firmware.elf", folder / "firmware.map"
    symbols = {
        "code_address": layout.code_address,
        "code_bytes": layout.code_kib * 1024,
        "ram_address": layout.ram_address,
        "ram_bytes": layout.ram_kib * 1024,
        "stack_bytes": STACK_BYTES,
    }
    linked = [
        tools.compiler, *tools.flags, *tools.link_flags, *map(str, objects), "-nostartfiles", "-T",
        str(PORTS / tools.script), "-Wl,--gc-sections", f"-Wl,-Map={map_file}",
        *(f"-Wl,--defsym={name}={value:#x}" for name, value in symbols.items()), "-lm", "-o", str(elf),
    ]  # fmt: skip
    try:
        _run(linked)
    except BackendError as error:
        if "overflowed" not in str(error) and "will not fit" not in str(error):
            raise
        raise DoesNotFitError(
            f"The firmware does not fit {board.id}, which has {layout.code_kib:,} KiB for code and {layout.ram_kib:,} "
            f"KiB of RAM; the model needs {arena / 1024:,.0f} KiB of arena and {kv_cache / 1024:,.0f} KiB of kv_cache. "
            "Convert with a shorter --context, or take a smaller model."
        ) from None
    return Build(elf, map_file, image, board.flash.model_address, arena, kv_cache)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BackendError(f"{command[0]} failed: {done.stderr.strip()[-1500:]}")
