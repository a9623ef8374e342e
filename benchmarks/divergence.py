"""How far bundles of one checkpoint are from its float network, on the held-out texts.

    python benchmarks/divergence.py CHECKPOINT BUNDLE... [--window 250] [--windows 12]

As `stonechat eval --against`, but the float network is read once for all of them, and the bundles take the text in in
runs of 32 tokens, in a tenth of the time. The ratio is that of the perplexities.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from converters.checkpoints import open_checkpoint
from converters.measure.quality import Positions, compare_logits, pooled
from converters.network.decoder import head, hidden
from converters.network.weights import CanonicalWeights
from converters.ops.numpy import NumpyOps
from converters.quantize.prefix import prefix_cache
from converters.texts.windows import heldout_windows
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends import open_backend
from device_runtime.engine.prompts import tokenizer_of

RUN = 32  # tokens


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="divergence of bundles from the float network")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--window", type=int, default=250, help="tokens read at a time")
    parser.add_argument("--windows", type=int, default=12, help="of each kind of text")
    args = parser.parse_args()
    checkpoint, opened = open_checkpoint(args.checkpoint), [Bundle.open(path) for path in args.bundles]
    manifest = opened[0].manifest
    kinds = heldout_windows(
        tokenizer_of(opened[0]),
        manifest.chat_template,
        manifest.tokenizer.special_tokens,
        args.window,
        args.windows,
    )
    windows = np.concatenate(list(kinds.values()))
    config, read = checkpoint.config, CanonicalWeights(checkpoint.config, checkpoint.read)
    ops = NumpyOps(config, read, windows, prefix_cache(read, manifest.prefix_tokens))
    rows = hidden(ops, config).reshape(*windows.shape, -1)
    backends = [open_backend(bundle, threads=1) for bundle in opened]
    parts: list[list[Positions]] = [[] for _ in opened]
    for window, row in zip(windows, rows, strict=True):
        exact = head(ops, config, row[:-1])
        for found, backend in zip(parts, backends, strict=True):
            backend.rewind(0)
            runs = [window[i : min(i + RUN, len(window) - 1)] for i in range(0, len(window) - 1, RUN)]
            logits = [backend.decode_several([int(token) for token in run]).copy() for run in runs]
            found.append(compare_logits(exact, np.concatenate(logits), window[1:]))
    print(f"{'':24}{'tokens':>8}{'ratio':>19}{'KL, nats':>10}{'same top-1':>12}")
    for path, found in zip(args.bundles, parts, strict=True):
        c = pooled(found)
        print(
            f"{path.name:<24}{c.tokens:>8}{c.ratio:>10.4f} ± {c.ratio_error:.4f}{c.kl_divergence:>10.4f}"
            f"{c.top1_agreement:>12.1%}"
        )


if __name__ == "__main__":
    main()
