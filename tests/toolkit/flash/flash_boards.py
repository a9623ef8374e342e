"""Boards as the tests need them: the same fields as a board file's, without the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from boards import Board, load_board
from boards.board import Detect, Flash, Storage

BASE = load_board("esp32-s3")


def board(method: str, model_kib: int = 1024, **flash: object) -> Board:
    """A microcontroller that is flashed by `method`."""
    return replace(
        BASE,
        id=f"test-{method}",
        name=f"Test board ({method})",
        storage=Storage(model_kib, 1),
        flash=Flash(method, **{"boot_loader": "hold BOOT and press RESET"} | flash),
        detect=Detect(usb=("1209:0001",)),
    )


def board_file(folder: Path, method: str, *lines: str) -> Path:
    """The same as a file, for the command line."""
    path = folder / f"test-{method}.yaml"
    path.write_text(
        f"""\
schema: 1
id: test-{method}
name: Test board ({method})
class: mcu
soc: {{arch: armv7e-m, core: cortex-m4, cores: 1, mhz: 100}}
memory: {{ram_kib: 1024, model_budget_kib: 512, bandwidth_mb_s: 100, weights: flash}}
storage: {{model_kib: 1024, slots: 1}}
graph: {{profile: micro, max_context: 128}}
flash:
  method: {method}
  boot_loader: hold BOOT and press RESET
"""
        + "".join(f"  {line}\n" for line in lines)
        + "detect: {usb: ['1209:0001']}\nsource: a test\n",
        encoding="utf-8",
    )
    return path
