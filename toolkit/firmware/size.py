"""Flash and RAM of a firmware by part, from the linker's map."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Size", "read_sizes"]

# An input section: its name, address, size and file; a long name has a line of its own.
_ENTRY = re.compile(r"^ (\.?[\w.*-]+)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+) (\S+)$", re.MULTILINE)
_OUTPUT = re.compile(r"^(\.[\w.]+)", re.MULTILINE)
_RAM = (".data", ".bss", ".stack")


@dataclass(frozen=True)
class Size:
    """Bytes of one part of a firmware."""

    part: str  # runtime, kernels, tokenizer … or libraries
    flash_bytes: int
    ram_bytes: int


def read_sizes(map_file: Path) -> list[Size]:
    """The parts of a firmware, the largest first, the stack among them."""
    text = map_file.read_text(encoding="utf-8", errors="replace")
    text = text[text.index("Linker script and memory map") :]
    text = re.sub(r"^( \.\S+)\n\s+(0x)", r"\1 \2", text, flags=re.MULTILINE)
    flash: Counter[str] = Counter()
    ram: Counter[str] = Counter()
    output = ""
    for line in text.splitlines():
        if found := _OUTPUT.match(line):
            output = found[1]
            stack = re.match(r"\.stack\s+0x[0-9a-f]+\s+0x([0-9a-f]+)", line)
            if stack:
                ram["stack"] += int(stack[1], 16)
        entry = _ENTRY.match(line)
        if entry is None or int(entry[3], 16) == 0 or output not in (".text", ".ARM.exidx", *_RAM):
            continue
        part = _part(entry[4])
        if output in _RAM:
            ram[part] += int(entry[3], 16)
        if output not in (".bss", ".stack"):
            flash[part] += int(entry[3], 16)
    parts = {*flash, *ram}
    return sorted((Size(p, flash[p], ram[p]) for p in parts), key=lambda size: (-size.flash_bytes, -size.ram_bytes))


def _part(file: str) -> str:
    name = file.rsplit("/", 1)[-1]
    return name.split("-", 1)[0] if re.fullmatch(r"\w+-\w+\.o", name) else "libraries"
