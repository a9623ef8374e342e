"""How far a bundle's logits depend on how many tokens a run takes in: `python benchmarks/lengths.py BUNDLE CHECKPOINT`.

The same text in runs of 1, 2, 4, 5, 8 tokens and in one run; the Kullback-Leibler divergence, nats a token, from the
float network to it, and from the runs for one token to it. A run of another length adds up floats in another order;
where a value lies on the border between two int8 steps it is rounded the other way, and the layers after it multiply
that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from converters.checkpoints import open_checkpoint
from converters.network.decoder import decoder
from converters.network.weights import CanonicalWeights
from converters.ops.numpy import NumpyOps
from device_runtime.engine.language_model import LanguageModel

LENGTHS = (1, 2, 4, 5, 8, 64)
TEXT = (
    "The pump in the cellar stopped at night. In the morning the water was two fingers high, and the fuse had blown. "
    "A new one lasted an hour. The bearing was dry, so the motor drew more current than it should."
)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="logits by the length of the runs")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint", type=Path)
    args = parser.parse_args()
    with LanguageModel.open(args.bundle, threads=1, keep_bytes=0) as model:
        prefix = list(model.manifest.prefix_tokens)
        tokens = model.encode(TEXT)[len(prefix) :][: max(LENGTHS)]
        found = {}
        for length in LENGTHS:
            model.backend.rewind(0)
            parts = [tokens[start : start + length] for start in range(0, len(tokens), length)]
            found[length] = np.concatenate([model.backend.decode_several(part) for part in parts])
    checkpoint = open_checkpoint(args.checkpoint)
    ops = NumpyOps(checkpoint.config, CanonicalWeights(checkpoint.config, checkpoint.read), np.array([prefix + tokens]))
    exact = decoder(ops, checkpoint.config)[len(prefix) :]
    print(f"{len(tokens)} tokens\n{'a run':>6}{'from float':>12}{'from single':>13}{'same first choice as single':>29}")
    for length, logits in found.items():
        same = float((logits.argmax(-1) == found[1].argmax(-1)).mean())
        print(f"{length:>6}{_divergence(exact, logits):>12.4f}{_divergence(found[1], logits):>13.4f}{same:>29.2f}")


def _divergence(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    p, q = (_log_softmax(logits.astype(np.float64)) for logits in (one, other))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


if __name__ == "__main__":
    main()
