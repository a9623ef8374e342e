"""Boards that are processes of this machine: the firmware's own main.c and boot.c over a port for a host (tests only).

The line is a pseudo-terminal, so that whatever opens a serial port can talk to one. Flash is a file, and the power can
be cut at any operation of it.
"""

from __future__ import annotations

import os
import subprocess
import tty
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from boards import Board, load_board
from boards.board import UpdateSlots
from device_runtime.bundle.trust import PublicKey
from device_runtime.micro.library import CEngine, compile_library
from device_runtime.micro.sources import (
    FIRMWARE_INCLUDES,
    FLAGS,
    INCLUDES,
    PORTS,
    THIRD_PARTY,
    WARNINGS,
    engine_sources,
    firmware_sources,
)
from tests.support.c_objects import object_files
from tests.support.c_programs import SANITIZERS, compiler, link
from toolkit.firmware.layout import layout_of
from toolkit.firmware.slots import write_flash

__all__ = ["HostBoard", "build_host_board", "host_board_file", "write_host_flash"]

FOLDER = Path(__file__).parents[1] / "host_board"
FIRMWARE = PORTS.parent / "firmware"
RUN_BYTES = 60 * 1024


def host_board_file(firmware_kib: int = 64, model_kib: int = 1024) -> Board:
    """A board file for one: flash begins at its record, and is all that the file keeps."""
    board = load_board("mps2-an386")
    flash_kib = 64 + 2 * firmware_kib + 2 * model_kib
    update = UpdateSlots(0, firmware_kib, machine_ram_address=0, machine_ram_kib=flash_kib)
    assert board.firmware is not None
    return replace(
        board,
        id="host",
        storage=replace(board.storage, model_kib=model_kib, slots=2),
        flash=replace(board.flash, model_address=(64 + 2 * firmware_kib) * 1024),
        firmware=replace(board.firmware, update=update),
    )


def write_host_flash(path: Path, board: Board, firmware: bytes | None, model: bytes | None) -> Path:
    """A flash file; erased flash is FF in a part, and zeros here."""
    write_flash(path, board, firmware, model)
    return path


def build_host_board(
    folder: Path, image: Path, board: Board, *, key: PublicKey | None = None, sanitized: bool = False
) -> Path:
    """The program, sized for a model image.

    Compiling all of it for the sanitizers takes half a minute; without them the engine is that of the backend `native`,
    which other tests have compiled already.
    """
    flags: Sequence[str] = SANITIZERS if sanitized else ()
    folder.mkdir(parents=True, exist_ok=True)
    layout = layout_of(board)
    assert layout is not None
    (folder / "layout.h").write_text(layout.header(key), encoding="ascii")
    needs = CEngine(image).needs
    defines = {
        "ARENA_BYTES": needs.arena_bytes + 1024, "KV_BYTES": max(16, needs.kv_cache_bytes), "CONTEXT": needs.context,
        "LOGITS": needs.vocabulary, "BOARD": '"host"', "FIRMWARE": '"0.0.1"', "FLASH_AT": "0",
        "FLASH_SECTOR_BYTES": "4096u", "RUN_BYTES": f"{RUN_BYTES}u",
    }  # fmt: skip
    common = [
        *FLAGS, "-O1", *flags, *(f"-D{name}={value}" for name, value in defines.items()),
        *(f"-I{path}" for path in (FOLDER, folder, *INCLUDES, *FIRMWARE_INCLUDES, PORTS)),
    ]  # fmt: skip

    def compiled(*sources: Path, more: Sequence[str] = WARNINGS) -> list[Path]:
        return object_files(compiler(), [*common, *more], sources)

    engine = engine_sources() if sanitized else []
    library = [] if sanitized else [compile_library()]
    objects = compiled(*engine, FOLDER / "port_host.c", *(p for p in firmware_sources() if p.parent != THIRD_PARTY))
    objects += compiled(*(p for p in firmware_sources() if p.parent == THIRD_PARTY), more=())
    for name in ("main", "boot"):
        objects += compiled(FIRMWARE / f"{name}.c", more=[*WARNINGS, f"-Dmain={name.replace('main', 'firmware')}_main"])
    program = folder / "board"
    link(program, [*objects, *library], [*flags, *(f"-Wl,-rpath,{path.parent}" for path in library)])
    return program


class HostBoard:
    """One that runs; a context manager. `port` is its serial line."""

    def __init__(self, program: Path, flash: Path, *, cut: int = 0) -> None:
        """`cut`: the operation of the flash at which its power goes; 0: it does not."""
        self._program, self.flash, self._cut = program, flash, cut

    def __enter__(self) -> HostBoard:
        self._own, others = os.openpty()
        tty.setraw(others)
        self.port = os.ttyname(others)
        self._kept_open = others  # a program that leaves is no hang-up
        environment = {
            **os.environ, "HOST_LINE": str(self._own), "HOST_FLASH": str(self.flash), "HOST_CUT": str(self._cut),
            "ASAN_OPTIONS": "detect_leaks=0",
        }  # fmt: skip
        self.process = subprocess.Popen([self._program], env=environment, pass_fds=[self._own], stderr=subprocess.PIPE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        _, said = self.process.communicate()
        os.close(self._own)
        os.close(self._kept_open)
        assert b"ERROR: " not in said and b"runtime error" not in said, said.decode()

    @property
    def was_cut(self) -> bool:
        """Whether the power has gone."""
        return self.process.poll() == 9
