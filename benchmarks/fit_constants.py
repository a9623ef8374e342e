"""Fit the constants of device_runtime/machine/memory.py again on this machine, and print them beside those in force.

    python benchmarks/fit_constants.py [CHECKPOINT]

Random networks are converted and run as benchmarks/fit.py does. From each measurement all that is derived is taken
off (weights, caches, activations, records whose layout is known); least squares over the networks gives what remains.
The tokenizer's is fitted where a checkpoint with a real one is named.
The constants are of x86-64, Python 3.11, LiteRT 2.3 and TFLite Micro of the wheel: fit them again when one of these
changes. Nothing is written: put a constant into memory.py by hand, and run benchmarks/fit.py, which holds the
predictions against networks that this script has not seen.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from fit import ROOT, peak_mb

from converters.checkpoints import Checkpoint, open_checkpoint
from converters.convert import Options, convert
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import MODEL, TABLE, Arena, GraphCounts
from device_runtime.machine import memory as footprint

# vocabulary, width, layers, heads, kv_heads, head_dim, ffn_width, context: each constant's factor varies by itself
NETWORKS = (
    (512, 64, 2, 4, 2, 16, 384, 64),
    (512, 64, 24, 4, 2, 16, 384, 64),
    (8192, 256, 4, 8, 4, 32, 768, 256),
    (2048, 256, 16, 8, 4, 32, 1024, 512),
    (4096, 128, 10, 4, 1, 32, 512, 1024),
    (16000, 256, 8, 8, 2, 32, 1024, 128),
)


@dataclass(frozen=True)
class Constant:
    """One of memory.py, and what this machine says."""

    name: str
    in_force: float
    fitted: float
    unit: str


def least_squares(factors: Sequence[Sequence[float]], rests: Sequence[float]) -> list[float]:
    """What each factor has to be multiplied by, so that the sums come closest to `rests`; prints how close.

    A constant whose share of the memory is no larger than what remains is not known better than that.
    """
    table = np.array(factors, dtype=float)
    scale = np.abs(table).max(axis=0)
    found, *_ = np.linalg.lstsq(table / scale, np.array(rests, dtype=float), rcond=None)
    remains = np.abs(table / scale @ found - np.array(rests)).max()
    print(f"{len(rests)} networks, of which the furthest is {remains / 1e6:.2f} MB off:")
    return [float(value) for value in found / scale]


def bundles(profile: Literal["pi", "micro"], folder: Path) -> Iterator[Bundle]:
    """Each network, converted."""
    from tests.support.random_checkpoint import random_checkpoint

    for i, (vocabulary, width, layers, heads, kv_heads, head_dim, ffn_width, context) in enumerate(NETWORKS):
        checkpoint = random_checkpoint(
            vocabulary=vocabulary, width=width, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
            ffn_width=ffn_width, max_context=4096,
        )  # fmt: skip
        # Of `micro`, a longer context would add what is derived, and minutes: it takes the prompt token by token.
        context = context if profile == "pi" else min(context, 96)
        yield convert(checkpoint, folder / f"{profile}-{i}", Options(profile, context, fast=True))


def later_peak(bundle: Bundle) -> float:
    """The peak of a start that finds its weights packed, bytes."""
    os.sync()  # pages that are still to be written stay in memory
    with tempfile.TemporaryDirectory() as cache:
        return [peak_mb(bundle, Path(cache)) for _ in range(2)][-1] * 1e6


def known_part(bundle: Bundle) -> footprint.Footprint:
    """The prediction, whose derived terms are taken off."""
    manifest = bundle.manifest
    tokenizer = manifest.files[manifest.tokenizer.file].size_bytes
    size = manifest.files[MODEL].size_bytes
    counts = manifest.counts[manifest.profile]
    table = TABLE in manifest.files
    return footprint.memory(manifest.graph, counts, manifest.profile, manifest.context, tokenizer, size, table)


def pi_constants(folder: Path) -> Iterator[Constant]:
    """The process, and what LiteRT keeps for a layer and a row of each signature."""
    factors, rests = [], []
    for bundle in bundles("pi", folder):
        counts, known = bundle.manifest.counts["pi"], known_part(bundle)
        operators, rows = counts.operators, counts.signatures * counts.rows
        records = operators * footprint._SIGNATURE_OPERATOR + int(rows * footprint._SIGNATURE_ROW)
        in_graph = known.graph - footprint._LITERT_MODEL - records  # the FlatBuffer's own pages
        factors.append((1, operators, rows))
        rests.append(later_peak(bundle) - known.weights - known.workspace - known.kv_cache - known.tokenizer - in_graph)
    process, operator, row = least_squares(factors, rests)
    yield Constant("_PROCESS[pi] + _LITERT_MODEL", footprint._PROCESS["pi"] + footprint._LITERT_MODEL, process, "B")
    yield Constant("_SIGNATURE_OPERATOR", footprint._SIGNATURE_OPERATOR, operator, "B")
    yield Constant("_SIGNATURE_ROW", footprint._SIGNATURE_ROW, row, "B")


def micro_constants(folder: Path) -> Iterator[Constant]:
    """The process and the interpreter's records; and in TFLite Micro, what kernels keep."""
    factors, rests, kept_factors, kept = [], [], [], []
    for bundle in bundles("micro", folder):
        counts, known, arena = bundle.manifest.counts["micro"], known_part(bundle), bundle.manifest.arena
        operators, rows = counts.operators, counts.rows
        factors.append((1, operators, rows))
        rests.append(later_peak(bundle) - known.weights - known.workspace - known.kv_cache - known.tokenizer)
        if arena is not None:
            kept_factors.append((operators, rows))
            kept.append(kept_by_kernels(arena, counts))
    process, operator, row = least_squares(factors, rests)
    in_force = footprint._PROCESS["micro"] + footprint._LITERT_MODEL
    yield Constant("_PROCESS[micro] + _LITERT_MODEL", in_force, process, "B")
    yield Constant("_INTERPRETER_OPERATOR", footprint._INTERPRETER_OPERATOR, operator, "B")
    yield Constant("_INTERPRETER_ROW", footprint._INTERPRETER_ROW, row, "B")
    if not kept:
        print("TFLite Micro's interpreter is not installed: its constants are left out", file=sys.stderr)
        return
    operator, row = least_squares(kept_factors, kept)
    yield Constant("_OPERATOR_DATA", footprint._OPERATOR_DATA, operator, "B")
    yield Constant("_ROW_DATA", footprint._ROW_DATA, row, "B")


def kept_by_kernels(arena: Arena, counts: GraphCounts) -> int:
    """The arena's tail without the kv_cache and the records whose layout is known."""
    records = counts.operators * footprint._OPERATOR_RECORD[arena.pointer_bytes]
    records += counts.tensors * footprint._TENSOR_RECORD[arena.pointer_bytes]
    return arena.tail_bytes - arena.kv_cache_bytes - records


def tokenizer_constant(checkpoint: Checkpoint, folder: Path) -> Constant:
    """A tokenizer in memory, as a multiple of its file, beside the smallest one of the tests."""
    small = ROOT / "tests" / "data" / "checkpoints" / "gqa-tied" / "tokenizer.json"
    large = folder / checkpoint.tokenizer.file_name
    large.write_bytes(checkpoint.tokenizer.content)
    program = (
        "import sys; from pathlib import Path; from device_runtime.engine.tokenizer import read_tokenizer;"
        "kept = read_tokenizer(Path(sys.argv[1])); print(Path('/proc/self/statm').read_text().split()[1])"
    )
    factors, rests = [], []
    for file in (small, large):
        command = [sys.executable, "-c", program, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        factors.append((1, file.stat().st_size))
        rests.append(int(done.stdout) * os.sysconf("SC_PAGE_SIZE"))  # what reading it took for a while is used again
    _, factor = least_squares(factors, rests)
    return Constant("_TOKENIZER_FACTOR", footprint._TOKENIZER_FACTOR, factor, "times")


def main() -> None:
    """Print the table."""
    print(f"{'':32}{'in force':>14}{'fitted here':>14}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizers = (tokenizer_constant(open_checkpoint(Path(path)), folder) for path in sys.argv[1:])
        for constant in chain(tokenizers, pi_constants(folder), micro_constants(folder)):
            values = f"{constant.in_force:14,.1f}{constant.fitted:14,.1f}"
            print(f"{constant.name:32}{values} {constant.unit}", flush=True)


if __name__ == "__main__":
    main()
