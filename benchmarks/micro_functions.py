"""Which functions of the C engine take a token's instructions on a microcontroller, sampled in QEMU.

    python benchmarks/micro_functions.py [STORIES260K.bin]

One layer of SmolLM2-135M's shape (random weights) at position 128 on M4 and M55, then 200 greedy tokens of stories260K
on M4. An interrupt every 1,000 instructions notes the address; a function that the compiler put into another one counts
as that one's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from micro_tokens import POSITION, STORIES, TOKENS, engine_defines, layer_image, stories_image

from tests.support.bare_metal import BOARDS, compile_for, missing_tools, run_on

INTERVAL_INSTRUCTIONS = 1000
LEAST = 0.004  # share of a function that gets a line


def symbols(program: Path) -> tuple[list[int], list[str]]:
    """Addresses of a program's functions, ascending, and their names."""
    found = subprocess.run(["arm-none-eabi-nm", "-n", program], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in found.splitlines() if line.split()[1] in "tTW" and "$" not in line]
    return [int(row[0], 16) for row in rows], [row[2] for row in rows]


def shares(core: str, folder: Path, image: Path, first: int, tokens: int) -> dict[str, float]:
    """Of the instructions of `tokens` tokens from token `first` on, by function, the largest first."""
    board = BOARDS[core]
    defines = {
        **engine_defines(image, board.memory), "FROM": first, "TOKENS": tokens,
        "INTERVAL": INTERVAL_INSTRUCTIONS * board.clock_hz // 1_000_000_000,
    }  # fmt: skip
    program = compile_for(board, folder / "profile.elf", "profile_tokens.c", defines)
    starts, names = symbols(program)
    counts: Counter[str] = Counter()
    for line in run_on(board, program, {board.memory: image}).splitlines():
        address, count = line.split()
        counts[names[bisect_right(starts, int(address, 16)) - 1]] += int(count)
    return {name: count / counts.total() for name, count in counts.most_common()}


def show(title: str, found: dict[str, float]) -> None:
    """A line a function."""
    print(title)
    for name, share in found.items():
        if share >= LEAST:
            print(f"  {share:6.1%}  {name}")


def main() -> None:
    """Both models."""
    if missing := missing_tools():
        sys.exit(f"micro_functions: {missing}")
    checkpoint = Path(sys.argv[1]) if len(sys.argv) > 1 else STORIES
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = layer_image(folder)
        for core in ("M4", "M55"):
            found = shares(core, folder, image, POSITION, 20)
            show(f"{core}: one layer of SmolLM2, 20 tokens from position {POSITION} on", found)
        if checkpoint.is_file():
            found = shares("M4", folder, stories_image(folder, checkpoint), 0, TOKENS)
            show(f"M4: stories260K, {TOKENS} tokens", found)


if __name__ == "__main__":
    main()
