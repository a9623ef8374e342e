"""Products an instruction of the C engine's int8 and int4 matmuls on Cortex-M, rows' ends included, counted in QEMU.

    python benchmarks/micro_kernels.py

SMLAD on M4 and M7 and Helium on M55, beside the scalar kernels on the same cores. QEMU counts instructions, not cycles.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.bare_metal import BOARDS, compile_for, missing_tools, run_on

SHAPES = [(576, 1536), (1536, 576), (64, 64)]  # rows, columns


def main() -> None:
    """One line for each core and shape."""
    if missing := missing_tools():
        sys.exit(f"micro_kernels: {missing}")
    with tempfile.TemporaryDirectory() as folder:
        for name, board in BOARDS.items():
            if not board.clock_hz:
                continue
            for rows, columns in SHAPES:
                found = []
                for flags in ((), ("-DSC_SCALAR",), ("-DBLOCKS",), ("-DBLOCKS", "-DSC_SCALAR")):
                    defines = {
                        "ROWS": rows, "COLUMNS": columns, "WEIGHTS_AT": board.memory,
                    }  # fmt: skip
                    program = compile_for(board, Path(folder) / "count.elf", "count_matmul.c", defines, flags)
                    found.append(rows * columns / int(run_on(board, program)))
                ours, scalar, ours4, scalar4 = found
                print(
                    f"{name:4} {rows:5} x {columns:5}  {ours:5.2f} products an instruction  (scalar {scalar:.2f}); "
                    f"int4 in blocks {ours4:5.2f} ({scalar4:.2f})"
                )


if __name__ == "__main__":
    main()
