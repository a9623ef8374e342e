"""What baking an instruction into a bundle saves, and what it costs in each step.

    python benchmarks/prefix.py CHECKPOINT [--runs 5]

The same instruction is a system message in one bundle and baked into the other (`convert --prefix`). Each run opens
both models afresh, one after the other, and asks one question: time to the first token, and the rate after it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from converters.checkpoints import open_checkpoint
from converters.convert import Options, convert
from device_runtime.engine.language_model import LanguageModel

INSTRUCTION = (
    "You watch over the pumps, boilers and valves of a small water plant. Each message is one reading. Pressures "
    "are in bar and temperatures in degrees Celsius. A boiler above 95 degrees is an alarm, one above 85 degrees "
    "a warning. A pump below 1.5 bar may have run dry. Answer in one short sentence that a night watchman "
    "understands, name the part, and say what to do first. If all is well, say so."
)
QUESTION = {"role": "user", "content": "Boiler 2 reads 97 degrees and 2.1 bar."}
NEW = 24  # tokens


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="what a baked instruction saves and costs")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        for profile, backends in (("pi", ["compiled"]), ("micro", ["litert", "tflm"])):
            paths = {}
            for name, instruction in (("message", None), ("baked", INSTRUCTION)):
                paths[name] = Path(folder) / f"{profile}-{name}"
                convert(checkpoint, paths[name], Options(profile, 256, instruction=instruction, fast=True))  # type: ignore[arg-type]
            sizes = {name: sum(file.stat().st_size for file in path.iterdir()) for name, path in paths.items()}
            for backend in backends:
                report(backend, paths, args.runs)
            print(f"{profile:6} bundle {(sizes['baked'] - sizes['message']) / 1e6:+.2f} MB")


def report(backend: str, paths: dict[str, Path], runs: int) -> None:
    """One line."""
    first_ms: dict[str, list[float]] = {name: [] for name in paths}
    rates: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(runs):
        for name, path in paths.items():
            messages = [QUESTION] if name == "baked" else [{"role": "system", "content": INSTRUCTION}, QUESTION]
            with LanguageModel.open(path, backend=backend, threads=1) as model:
                generation = model.generate(messages, max_new=NEW)
                list(generation)
                first_ms[name].append(generation.result.ttft_ms)
                rates[name].append(generation.result.tokens_per_s)
                prefix = len(model.manifest.prefix_tokens)
    before_ms, after_ms = (statistics.median(first_ms[name]) for name in ("message", "baked"))
    before, after = (statistics.median(rates[name]) for name in ("message", "baked"))
    print(
        f"{backend:9} {prefix} positions: first token after {after_ms:.0f} instead of {before_ms:.0f} ms "
        f"({after_ms / before_ms:.2f}); {after:.1f} instead of {before:.1f} tok/s ({after / before:.2f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
