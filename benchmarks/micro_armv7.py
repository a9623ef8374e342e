"""Instructions a token on an emulated 32-bit Raspberry Pi: the C engine beside tflite-runtime 2.14.

    python benchmarks/micro_armv7.py [STORIES260K.bin]

One layer of SmolLM2-135M's shape (random weights), and stories260K. A process feeds 2 tokens, another 34; the
difference is 32 tokens without what starting takes, counted by a plugin in QEMU's user mode. Needs qemu-user (the
static one loads no plugins), gcc-arm-linux-gnueabihf, and what tests/system/emulated_board.sh needs; the wheel comes
from the package index.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from micro_tokens import ROOT, STORIES, layer_image, stories_image

from device_runtime.bundle.folder import Bundle
from device_runtime.micro.sources import FLAGS, INCLUDES, engine_sources

FEW, MANY = 2, 34
EMULATED = ROOT / "build" / "emulated" / "armhf"
TFLITE = ("tflite-runtime==2.14.0", "--python-version", "3.11", "--platform", "manylinux_2_34_armv7l")
HERE = Path(__file__).parent / "micro"
Command = Callable[[int], list[str]]


def run(*command: object) -> str:
    """What a command writes; ends this script where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"micro_armv7: {command[0]}: {done.stderr.strip()[-400:]}")
    return done.stdout


def instructions(emulator: list[str], command: Command) -> float:
    """Of a token."""
    found = []
    for tokens in (FEW, MANY):
        done = subprocess.run([*emulator, *command(tokens)], capture_output=True, check=False)
        count = re.search(rb"instructions (\d+)", done.stderr)
        if done.returncode != 0 or count is None:
            sys.exit(f"micro_armv7: {command(tokens)[0]}: {done.stderr.decode(errors='replace').strip()[-400:]}")
        found.append(int(count[1]))
    return (found[1] - found[0]) / (MANY - FEW)


def in_the_engine(program: Path, image: Path, tokens: int) -> list[str]:
    """The command that feeds so many."""
    return [str(program), str(image), *map(str, range(1, tokens + 1))]


def in_tflite_runtime(python: str, model: Path, tokens: int) -> list[str]:
    """As `in_the_engine`."""
    return [python, str(HERE / "interpreter_tokens.py"), str(model), str(tokens)]


def main() -> None:
    """Both models, each in both."""
    checkpoint = Path(sys.argv[1]) if len(sys.argv) > 1 else STORIES
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plugin, program, site = folder / "count.so", folder / "engine", folder / "site"
        run("cc", "-O2", "-shared", "-fPIC", HERE / "count_instructions.c", "-o", plugin)
        includes = [f"-I{path}" for path in INCLUDES]
        sources = [ROOT / "tests" / "device_runtime" / "micro" / "run_image.c", *engine_sources()]
        # as the library for `--backend native` is compiled there
        run(
            "arm-linux-gnueabihf-gcc", *FLAGS, "-mfpu=neon", "-O3", "-static", *includes, *sources, "-lm", "-o", program
        )
        run("sh", ROOT / "tests" / "system" / "emulated_board.sh", "armhf", EMULATED)
        python = str(EMULATED / "root" / "usr" / "bin" / "python3.11")  # past the wrapper that starts QEMU
        pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder)
        run(*pip, *TFLITE)
        with zipfile.ZipFile(next(folder.glob("tflite_runtime*.whl"))) as wheel:
            wheel.extractall(site)
        emulator = ["qemu-arm", "-cpu", "cortex-a7", "-plugin", str(plugin), "-L", str(EMULATED / "root")]
        emulator += ["-E", f"PYTHONPATH={site}", "-E", "OPENBLAS_NUM_THREADS=1"]
        images = {"one layer of SmolLM2": layer_image(folder)}
        if checkpoint.is_file():
            images["stories260K"] = stories_image(folder, checkpoint)
        for title, image in images.items():
            model = Bundle.open(image.parent).model_path
            ours = instructions(emulator, partial(in_the_engine, program, image))
            theirs = instructions(emulator, partial(in_tflite_runtime, python, model))
            print(
                f"{title}: {ours:,.0f} instructions a token in the engine, {theirs:,.0f} in tflite-runtime 2.14: "
                f"{ours / theirs:.3f}"
            )


if __name__ == "__main__":
    main()
