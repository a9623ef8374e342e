"""Does the prediction of `stonechat check` hold? Memory and arena, predicted beside measured.

    python benchmarks/fit.py [CHECKPOINT ...]

Each checkpoint (and a random one of middle size) is converted and run by `stonechat run` in a process of its own, with
a prompt that fills its context: once without a weight cache, which is the first start, and once with it. For `micro`
the arena is predicted from the configuration alone and compared with what TFLite Micro took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from converters.checkpoints import Checkpoint, open_checkpoint
from converters.convert import Options, convert
from converters.emit.lint import measured_arena
from converters.profiles import PROFILES
from converters.quantize.rotation import folded
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import MODEL, TABLE
from device_runtime.engine.tokenizer import read_tokenizer
from device_runtime.machine.memory import Footprint, arena, memory, model_bytes

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for tests/support/random_checkpoint.py


@dataclass(frozen=True)
class Row:
    """One figure."""

    what: str
    predicted: float
    measured: float
    unit: str

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was measured."""
        return self.predicted / self.measured - 1


def predicted(bundle: Bundle) -> Footprint:
    """By what its manifest says."""
    manifest = bundle.manifest
    tokenizer, graph = (manifest.files[name].size_bytes for name in (manifest.tokenizer.file, MODEL))
    counts, table = manifest.counts[manifest.profile], TABLE in manifest.files
    return memory(manifest.graph, counts, manifest.profile, manifest.context, tokenizer, graph, table)


def memory_rows(name: str, bundle: Bundle) -> Iterator[Row]:
    """The peak of the first start, of a later one, and of one that cannot keep packed weights, MB."""
    os.sync()  # pages that are still to be written stay in memory, and are not what a device has
    expected = predicted(bundle)
    with tempfile.TemporaryDirectory() as cache:
        first, later = (peak_mb(bundle, Path(cache)) for _ in range(2))
    yield Row(f"{name}, first start", expected.total / 1e6, first, "MB")
    yield Row(f"{name}, later", expected.total / 1e6, later, "MB")
    if expected.original:
        yield Row(f"{name}, not kept", expected.unkept / 1e6, peak_mb(bundle, Path(os.devnull)), "MB")


# Asks prompts that begin differently, each of which fills the context, and keeps what it may of them.
_KEEPING = """
import json, sys
from device_runtime.machine.machine import numpy_without_threads, peak_rss_mb
numpy_without_threads()
from device_runtime.engine.language_model import LanguageModel
with LanguageModel.open(sys.argv[1], keep_bytes=int(sys.argv[2])) as model:
    room = model.manifest.context - len(model.manifest.prefix_tokens) - 8
    for number in range(8):
        text = f"{number} " + " the" * room
        while len(model.encode(text)) > room:
            text = text[: -4 * max(1, len(text) // 64)]
        list(model.generate(text, max_new=4))
    print(json.dumps([peak_rss_mb(), model.states.used_bytes]))
"""


def kept_row(name: str, bundle: Bundle, keep_bytes: int = 48 << 20) -> Row:
    """The peak of a process that has answered several prompts, and keeps states of them, MB."""
    command = [sys.executable, "-c", _KEEPING, str(bundle.path), str(keep_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    peak, kept = json.loads(done.stdout)
    return Row(f"{name}, with kept states", (predicted(bundle).total + kept) / 1e6, peak, "MB")


def peak_mb(bundle: Bundle, cache: Path) -> float:
    """The peak resident memory of `stonechat run` with a prompt that fills the context."""
    tokenizer = read_tokenizer(bundle.path / bundle.manifest.tokenizer.file)
    room = bundle.manifest.context - len(bundle.manifest.prefix_tokens) - 8
    count = room
    while len(tokenizer.encode(" the" * count)) > room:
        count -= max(1, count // 16)
    command = [sys.executable, "-m", "toolkit", "run", str(bundle.path), "-", "--raw", "--max-new", "4", "--json"]
    done = subprocess.run(
        command,
        input=" the" * count,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "STONECHAT_CACHE": str(cache)},
    )
    return float(json.loads(done.stdout)["peak_rss_mb"])


def arena_row(name: str, checkpoint: Checkpoint, bundle: Bundle, fast: bool) -> Row:
    """The arena, predicted from the checkpoint's configuration, KB."""
    measured = bundle.manifest.arena or measured_arena(bundle)
    if measured is None:
        raise SystemExit("TFLite Micro's interpreter is not installed (there are packages for x86_64 only).")
    counts = PROFILES["micro"].estimate(folded(checkpoint.config), bundle.manifest.context, fast=fast)
    predicted = arena(counts, bundle.manifest.context, measured.pointer_bytes)
    return Row(f"{name}, arena", predicted.total_bytes / 1e3, measured.total_bytes / 1e3, "KB")


def size_row(name: str, checkpoint: Checkpoint, bundle: Bundle) -> Row:
    """The graph's file, predicted from the checkpoint's configuration, MB."""
    manifest = bundle.manifest
    profile = PROFILES[manifest.profile]
    counts = profile.estimate(folded(checkpoint.config, profile.turns_head), manifest.context)
    predicted = model_bytes(counts, manifest.profile, manifest.context)
    return Row(f"{name}, model.tflite", predicted / 1e6, manifest.files[MODEL].size_bytes / 1e6, "MB")


def rows(checkpoint: Checkpoint, folder: Path, plan: list[tuple[str, int]], fast: bool = True) -> Iterator[Row]:
    """Convert a checkpoint for each (profile, context) and measure."""
    for profile, context in plan:
        name = f"{checkpoint.name} {profile} {context}"
        bundle = convert(checkpoint, folder / f"{profile}-{context}", Options(profile, context, fast=fast))  # type: ignore[arg-type]
        yield size_row(name, checkpoint, bundle)
        yield from memory_rows(name, bundle)
        if profile == "pi":
            yield kept_row(name, bundle)
        if profile == "micro":
            yield arena_row(name, checkpoint, bundle, fast)


def main() -> None:
    """Print the table."""
    from tests.support.random_checkpoint import random_checkpoint

    middle = random_checkpoint(
        vocabulary=16000, width=512, layers=12, heads=8, kv_heads=4, head_dim=64, ffn_width=1536, max_context=4096
    )
    small = random_checkpoint(vocabulary=4096, width=128, layers=6, heads=4, kv_heads=2, head_dim=32, ffn_width=384)
    work = [(middle, [("pi", 1024), ("micro", 256)]), (small, [("pi", 512), ("micro", 512)])]
    work += [(open_checkpoint(Path(path)), [("pi", 512), ("pi", 2048), ("micro", 256)]) for path in sys.argv[1:]]
    print(f"{'':48}{'predicted':>11}{'measured':>11}")
    for checkpoint, plan in work:
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(checkpoint, Path(folder), plan):
                print(
                    f"{row.what:48}{row.predicted:11.1f}{row.measured:11.1f} {row.unit}  {row.error:+.1%}", flush=True
                )


if __name__ == "__main__":
    main()
