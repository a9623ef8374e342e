"""Where the time of a prompt goes, by kind of kernel: `python benchmarks/prefill.py BUNDLE [--runs 100]`.

Chunks of a prompt are taken in by one thread under `perf record` (Linux; the package linux-perf), which samples the
processor's clock and so says the same on a busy machine. Shares are of the time in the runtime's library and in what it
calls of the C library; Python and the opening of the graph are left out.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bytecode import with_bytecode

ROOT = Path(__file__).resolve().parents[1]
KINDS = {  # what a kernel's name says it is for, in the order of the questions
    "matmuls of weights": r"qd8_f32_q[cb]\d+w?_gemm",
    "float matmuls (attention, embedding)": r"f32_gemm|f32_gemminc",
    "weights of float matmuls packed again": r"packw",
    "activations quantized": r"rminmax|f32_qs8|f32_qu8|pack_lh|qs8_cvt",
    "softmax": r"raddstoreexp|rmax|vexp",
    "elementwise (norms, RoPE, SiLU, residual)": r"f32_v|rsum|rdsum|rsqrt|vsigmoid",
    "copies (slices, transposes, concatenations)": r"memmove|memcpy|transpose|x32_|copy",
}
LIBRARIES = ("libpywrap_litert_common", "libc.so")
OPENING = (
    r"UnpackModel|IrAllocator|InterpreterBuilder|flatbuffers|xnn_define|xnn_validate|malloc|free|Delegate|Quantization"
)


def main() -> None:
    """Measure and print, or be the measured process."""
    parser = argparse.ArgumentParser(description="the time of a prompt, by kind of kernel")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        take_in(args.bundle, args.runs)
        return
    if shutil.which("perf") is None:
        sys.exit("perf is not installed; on Debian it is in the package linux-perf.")
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/perf.data"
        own = [sys.executable, __file__, str(args.bundle), "--runs", str(args.runs), "--once"]
        record = ["perf", "record", "-q", "-F", "2000", "-e", "cpu-clock", "-o", data, *own]
        done = subprocess.run(record, capture_output=True, text=True, cwd=ROOT, env=with_bytecode(), check=True)
        report = ["perf", "report", "-i", data, "--sort", "dso,symbol", "-t", "|", "--stdio"]
        lines = subprocess.run(report, capture_output=True, text=True, check=True).stdout.splitlines()
    print(done.stdout.strip())
    shares = by_kind(lines)
    total = sum(shares.values())
    for kind, share in sorted(shares.items(), key=lambda found: found[1], reverse=True):
        print(f"{kind:<48}{share / total:6.1%}")


def by_kind(lines: list[str]) -> dict[str, float]:
    """Percent of all samples, by kind, of lines of `perf report`: percent, library, symbol."""
    found: dict[str, float] = {}
    for line in lines:
        fields = [field.strip() for field in line.split("|")]
        if line.startswith("#") or len(fields) < 3 or not fields[1].startswith(LIBRARIES):
            continue
        if re.search(OPENING, fields[2]):
            continue
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, fields[2])), "all else")
        found[kind] = found.get(kind, 0.0) + float(fields[0].rstrip("%"))
    return found


def take_in(path: Path, runs: int) -> None:
    """Chunks of a prompt, always at the same place."""
    import time

    from device_runtime.machine.machine import numpy_without_threads

    numpy_without_threads()
    from device_runtime.engine.backends import open_backend
    from device_runtime.update.active import open_bundle

    bundle = open_bundle(path)
    backend = open_backend(bundle, None, 1)
    place = backend.position
    tokens = [i * 37 % (bundle.manifest.graph.vocabulary - 1) + 1 for i in range(backend.chunk)]
    started_s = time.thread_time()
    for _ in range(runs):
        backend.rewind(place)
        backend.prefill(tokens)
    each_ms = (time.thread_time() - started_s) * 1e3 / runs
    print(f"{each_ms:.1f} ms of processor time for {len(tokens)} tokens")
    backend.close()


if __name__ == "__main__":
    main()
