"""What a token costs the C engine on a microcontroller, in instructions, counted in QEMU.

    python benchmarks/micro_tokens.py [STORIES260K.bin]

First one layer of SmolLM2-135M's shape (random weights, int8 and int4) at position 128: which calls take how much, and
how deep the stack went. Then, with the checkpoint of llama2.c's stories260K (../shared/data/ by default), 200 greedy
tokens beside the plain float loop of benchmarks/micro/float_loop.c, by the same compiler with the same flags.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from converters.checkpoints import open_checkpoint
from converters.convert import Options, convert
from converters.profiles import WeightType
from device_runtime.bundle.manifest import IMAGE
from device_runtime.micro.library import CEngine
from tests.support.bare_metal import BOARDS, compile_for, missing_tools, run_on
from tests.support.micro_bundles import micro_bundle, random_network

ROOT = Path(__file__).resolve().parents[1]
KINDS = (
    "programs", "int8 matmuls", "int16 matmuls", "stores", "attention", "int8 by int4 matmuls", "int16 by int4 matmuls",
)  # fmt: skip
POSITION, TOKENS = 128, 200
WEIGHTS: tuple[WeightType, ...] = ("int8", "int4")
STORIES = ROOT.parents[0] / "shared" / "data" / "stories260K.bin"


def engine_defines(image: Path, memory: int) -> dict[str, int]:
    """Where the image lies and how much it needs."""
    needs = CEngine(image).needs
    return {
        "IMAGE_AT": memory, "IMAGE_BYTES": image.stat().st_size, "ARENA_BYTES": needs.arena_bytes + 64,
        "KV_BYTES": needs.kv_cache_bytes,
    }  # fmt: skip


def layer_image(folder: Path, weights: WeightType = "int8") -> Path:
    """The model image of one layer of SmolLM2's shape, with random weights."""
    network = random_network(
        vocabulary=256, width=576, layers=1, heads=9, kv_heads=3, head_dim=64, ffn_width=1536, max_context=512
    )
    return micro_bundle(folder / f"layer-{weights}", network, context=256, weights=weights).path / IMAGE


def layer(folder: Path) -> None:
    """Shares of the calls in a token of one layer, with int8 and with int4 weights."""
    images = {weights: layer_image(folder, weights) for weights in WEIGHTS}
    for core in ("M4", "M7", "M55"):
        totals = []
        for weights, image in images.items():
            board = BOARDS[core]
            defines = {**engine_defines(image, board.memory), "POSITION": POSITION}
            program = compile_for(board, folder / "calls.elf", "count_calls.c", defines)
            *taken, stack = map(int, run_on(board, program, {board.memory: image}).split())
            total = sum(taken)
            totals.append(total)
            shares = ", ".join(f"{name} {n / total:.1%}" for name, n in zip(KINDS, taken, strict=True) if n)
            print(
                f"{core:4} one layer of SmolLM2, {weights}, position {POSITION}: {total:,} instructions: {shares}; "
                f"{stack:,} bytes of stack were used"
            )
            matmuls = sum(n for name, n in zip(KINDS, taken, strict=True) if "matmuls" in name)
            print(f"{core:4} matmuls with weights {matmuls / total:.1%} of them")
        print(f"{core:4} instructions with int4 weights : int8 {totals[1] / totals[0]:.2f}")


def stories_image(folder: Path, checkpoint: Path) -> Path:
    """The model image of stories260K."""
    bundle = convert(open_checkpoint(checkpoint), folder / "stories", Options("micro", context=256, fast=True))
    return bundle.path / IMAGE


def stories(folder: Path, checkpoint: Path) -> None:
    """The engine beside the float loop."""
    image = stories_image(folder, checkpoint)
    for core in ("M4", "M7"):
        board = BOARDS[core]
        defines = {**engine_defines(image, board.memory), "TOKENS": TOKENS}
        program = compile_for(board, folder / "tokens.elf", "count_tokens.c", defines)
        ours = int(run_on(board, program, {board.memory: image}).split()[0])
        plain = compile_for(
            board, folder / "float.elf", ROOT / "benchmarks" / "micro" / "float_loop.c",
            {"MODEL_AT": board.memory, "TOKENS": TOKENS},
        )  # fmt: skip
        theirs = int(run_on(board, plain, {board.memory: checkpoint}).split()[0])
        print(
            f"{core:4} stories260K, {TOKENS} tokens: {ours / TOKENS:,.0f} instructions a token, the float loop "
            f"{theirs / TOKENS:,.0f}: {ours / theirs:.2f}"
        )


def main() -> None:
    """Both."""
    if missing := missing_tools():
        sys.exit(f"micro_tokens: {missing}")
    checkpoint = Path(sys.argv[1]) if len(sys.argv) > 1 else STORIES
    with tempfile.TemporaryDirectory() as folder:
        layer(Path(folder))
        if checkpoint.is_file():
            stories(Path(folder), checkpoint)
        else:
            print(f"micro_tokens: {checkpoint} is not there, so there is no comparison with the float loop")


if __name__ == "__main__":
    main()
