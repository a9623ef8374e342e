"""Compile the engine and its firmware for a board, sized for one model image."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from boards import Board
from boards.board import Firmware
from device_runtime import __version__
from device_runtime.bundle.trust import PublicKey
from device_runtime.errors import BackendError, ConfigurationError, DoesNotFitError
from device_runtime.micro.library import CEngine
from device_runtime.micro.sources import (
    FIRMWARE_INCLUDES,
    FLAGS,
    INCLUDES,
    LWIP_PORT,
    PORTS,
    engine_sources,
    firmware_sources,
    update_sources,
)
from toolkit.firmware.layout import FlashLayout, layout_of
from toolkit.firmware.lwip import Network, lwip_sources
from toolkit.firmware.toolchain import Toolchain, toolchain_for

__all__ = ["Build", "build_firmware", "firmware_of"]

STACK_BYTES = 12 * 1024
BOOT_STACK_BYTES = 8 * 1024
WATCHDOG_MS = 4000
_SLACK_BYTES = 1024  # the host's records have wider pointers than the board's: its arena is never the smaller one
_FIXED_BYTES = 40 * 1024  # of RAM: buffers and stack, generously
_FIRMWARE = PORTS.parent / "firmware"


@dataclass(frozen=True)
class Build:
    """What was built."""

    elf: Path
    map: Path
    image: Path  # of the model, which lies apart
    image_address: int
    arena_bytes: int
    kv_cache_bytes: int
    program: Path | None = None  # firmware.bin, what a firmware slot's image holds; None: the board has no slots
    boot: Path | None = None  # boot.elf, which starts it


def firmware_of(board: Board) -> Firmware:
    """What the board's file says of its firmware.

    Raises:
        ConfigurationError: it says nothing, or not where the model lies.
    """
    if board.firmware is None or board.flash.model_address is None:
        raise ConfigurationError(
            f"stonechat builds no firmware for {board.id}: its file has no `firmware:` block. "
            "`stonechat firmware export` writes its sources for the board's own tools."
        )
    return board.firmware


def build_firmware(
    image: Path,
    board: Board,
    folder: Path,
    *,
    key: PublicKey | None = None,
    version: str = __version__,
    network: Network | None = None,
    model: str = "default",
) -> Build:
    """Build `firmware.elf` and its map in `folder`; for a board with slots, its boot loader too.

    Args:
        image: of the model (`toolkit.firmware.images.image_for`).
        key: whose signatures updates need; None: they need none.
        version: that the firmware says of itself.
        network: the broker that the board connects to by itself; None: it speaks over its serial line alone.
        model: what it calls its model there.

    Raises:
        ConfigurationError: there is no firmware for the board, or it has no network card.
        BackendMissingError: its compiler is not installed.
        BackendError: the compiler fails.
        DoesNotFitError: the board has too little memory.
    """
    firmware, tools = firmware_of(board), toolchain_for(board)
    layout = layout_of(board)
    assert board.flash.model_address is not None
    if image.stat().st_size > board.storage.model_kib * 1024:
        raise DoesNotFitError(
            f"The model image has {image.stat().st_size / 1024:,.0f} KiB; {board.id} has "
            f"{board.storage.model_kib:,} KiB for one."
        )
    needs = CEngine(image).needs
    arena, kv_cache = needs.arena_bytes + _SLACK_BYTES, max(16, needs.kv_cache_bytes)
    left = firmware.ram_kib * 1024 - arena - kv_cache - 16 * needs.context - _FIXED_BYTES
    folder.mkdir(parents=True, exist_ok=True)
    defines: dict[str, object] = {
        "ARENA_BYTES": arena,
        "KV_BYTES": kv_cache,
        "CONTEXT": needs.context,
        "LOGITS": needs.vocabulary if left > 4 * needs.vocabulary else 0,
        "BOARD": f'"{board.id[:32]}"',
        "FIRMWARE": f'"{version[:32]}"',
        "UART_AT": f"{firmware.uart_address:#x}u",
        "UART_IRQ": firmware.uart_irq,
        "CLOCK_HZ": f"{board.soc.mhz * 1_000_000}u",
        "WATCHDOG_MS": WATCHDOG_MS,
    }
    if firmware.watchdog_address is not None:
        defines["WATCHDOG_AT"] = f"{firmware.watchdog_address:#x}u"
        defines["WATCHDOG_HZ"] = f"{firmware.watchdog_hz or board.soc.mhz * 1_000_000}u"
    more: list[Path] = []
    includes: list[Path] = []
    if network is not None:
        defines |= _network_defines(network, board, model)
        more = [*sorted(LWIP_PORT.glob("lwip_*.c")), LWIP_PORT / f"{firmware.network}.c", *lwip_sources(network.lwip)]
        includes = [LWIP_PORT, network.lwip / "src" / "include"]
    code_at, code_bytes = firmware.code_address, firmware.code_kib * 1024
    if layout is None:
        defines["IMAGE_AT"] = f"{board.flash.model_address:#x}u"
        defines["IMAGE_ROOM"] = f"{board.storage.model_kib * 1024}u"
    else:
        boot_bytes = layout.update.boot_kib * 1024
        run_at, run_bytes = code_at + boot_bytes, min(code_bytes - boot_bytes, layout.firmware_bytes - 1024)
        defines["FLASH_AT"] = f"{layout.update.flash_address:#x}u"
        defines["FLASH_SECTOR_BYTES"] = f"{layout.update.sector_kib * 1024}u"
        defines["RUN_AT"], defines["RUN_BYTES"] = f"{run_at:#x}u", f"{run_bytes:#x}u"
        (folder / "layout.h").write_text(layout.header(key), encoding="ascii")
    compile_ = _Compiler(tools, folder, defines, includes)
    port = _port_sources(firmware, tools, layout)
    objects = compile_.all([*engine_sources(), *firmware_sources(), _FIRMWARE / "main.c", *port, *more])
    ram = firmware.ram_address, firmware.ram_kib * 1024
    elf, map_file = folder / "firmware.elf", folder / "firmware.map"
    program = boot = None
    try:
        if layout is None:
            compile_.link(elf, objects, (code_at, code_bytes), ram, STACK_BYTES)
        else:
            compile_.link(elf, objects, (run_at, run_bytes), ram, STACK_BYTES)
            program = folder / "firmware.bin"
            _run([tools.objcopy, "-O", "binary", str(elf), str(program)])
            boot = folder / "boot.elf"
            parts = compile_.all([*update_sources(), _FIRMWARE / "boot.c", *port])
            compile_.link(boot, parts, (code_at, boot_bytes), ram, BOOT_STACK_BYTES)
    except BackendError as error:
        if "overflowed" not in str(error) and "will not fit" not in str(error):
            raise
        raise DoesNotFitError(
            f"The firmware does not fit {board.id}, which has {firmware.code_kib:,} KiB for code and "
            f"{firmware.ram_kib:,} KiB of RAM; the model needs {arena / 1024:,.0f} KiB of arena and "
            f"{kv_cache / 1024:,.0f} KiB of kv_cache. Convert with a shorter --context, or take a smaller model."
        ) from None
    return Build(elf, map_file, image, board.flash.model_address, arena, kv_cache, program, boot)


def _network_defines(network: Network, board: Board, model: str) -> dict[str, object]:
    firmware = board.firmware
    if firmware is None or firmware.network is None or firmware.network_address is None:
        raise ConfigurationError(
            f"{board.id} has no network card that stonechat has a driver for (`network:` of its file); put "
            "`stonechat bridge` at the end of its serial line."
        )
    first, second, third, fourth = network.address.split(".")
    found: dict[str, object] = {
        "DEVICE_ID": f'"{network.device}"', "MODEL_NAME": f'"{model}"', "BROKER_PORT": network.port,
        "BROKER_IP": f"{first},{second},{third},{fourth}", "NETWORK_AT": f"{firmware.network_address:#x}u",
    }  # fmt: skip
    if network.user is not None and network.password is not None:
        found["BROKER_USER"], found["BROKER_PASSWORD"] = _c_text(network.user), _c_text(network.password)
    return found


def _c_text(text: str) -> str:
    """A string of C whose bytes a compiler does not take for anything else."""
    return '"' + "".join(f"\\{byte:03o}" for byte in text.encode()) + '"'


def _port_sources(firmware: Firmware, tools: Toolchain, layout: FlashLayout | None) -> list[Path]:
    watchdog = "none" if firmware.watchdog_address is None else "cmsdk"
    names = ["receive.c", tools.start, f"uart_{firmware.uart}.c", f"watchdog_{watchdog}.c"]
    return [PORTS / name for name in [*names, *(["flash_memory.c"] if layout is not None else [])]]


class _Compiler:
    """Compiles each file once."""

    def __init__(
        self, tools: Toolchain, folder: Path, defines: Mapping[str, object], includes: Sequence[Path] = ()
    ) -> None:
        self._tools, self._folder = tools, folder
        self._done: dict[Path, Path] = {}
        self._command = [
            tools.compiler, *tools.flags, *FLAGS, "-ffunction-sections", "-fdata-sections",
            *(f"-I{i}" for i in (*INCLUDES, *FIRMWARE_INCLUDES, PORTS, folder, *includes)),
            *(f"-D{name}={value}" for name, value in defines.items()),
        ]  # fmt: skip

    def all(self, sources: Sequence[Path]) -> list[Path]:
        """The object files of `sources`."""
        new = [source for source in sources if source not in self._done]
        with ThreadPoolExecutor(2) as pool:
            self._done |= zip(new, pool.map(self._one, new), strict=True)
        return [self._done[source] for source in sources]

    def _one(self, source: Path) -> Path:
        # `firmware size` adds up by the word before the hyphen
        part = "kernels" if "kernels" in source.parts else source.parent.name
        out = self._folder / f"{part}-{source.stem}.o"
        _run([*self._command, "-c", str(source), "-o", str(out)])
        return out

    def link(
        self, elf: Path, objects: Sequence[Path], code: tuple[int, int], ram: tuple[int, int], stack_bytes: int
    ) -> None:
        """Link, with a map beside it. `code` and `ram` are an address and bytes each."""
        tools = self._tools
        symbols = {
            "code_address": code[0], "code_bytes": code[1], "ram_address": ram[0], "ram_bytes": ram[1],
            "stack_bytes": stack_bytes,
        }  # fmt: skip
        _run([
            tools.compiler, *tools.flags, *tools.link_flags, *map(str, objects), "-nostartfiles", "-T",
            str(PORTS / tools.script), "-Wl,--gc-sections", f"-Wl,-Map={elf.with_suffix('.map')}",
            *(f"-Wl,--defsym={name}={value:#x}" for name, value in symbols.items()), "-lm", "-o", str(elf),
        ])  # fmt: skip


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BackendError(f"{command[0]} failed: {done.stderr.strip()[-1500:]}")
