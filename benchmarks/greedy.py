"""Whether a bundle's graph says the same as the float network, word for word.

    python benchmarks/greedy.py CHECKPOINT BUNDLE

Counts on how many of ten prompts the first 32 greedy tokens are those of the float network, and shows for the others by
how little the float network itself preferred its token. `stonechat eval` measures the rest.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import numpy as np

from converters.checkpoints import Checkpoint, open_checkpoint
from converters.network.decoder import decoder
from converters.network.weights import CanonicalWeights
from converters.ops.numpy import KvCache, NumpyOps
from converters.quantize.prefix import prefix_cache
from device_runtime.engine.language_model import LanguageModel

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = (
    "What is the capital of France?",
    "Explain in one sentence why the sky is blue.",
    "The pump makes a loud noise. What should I check first?",
    "Write a short poem about rain.",
    "List three uses of copper.",
    "How many days has a leap year?",
    "The soil sensor reads 12 percent. Should I water the tomatoes?",
    "Translate 'good morning' into Spanish.",
    "What does a capacitor do?",
    "Give me a name for a small robot.",
)
GREEDY_TOKENS = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="whether a graph says the same as the float network")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.checkpoint)
    read = CanonicalWeights(checkpoint.config, functools.cache(checkpoint.read))
    with LanguageModel.open(args.bundle) as model:
        prefix = prefix_cache(read, model.manifest.prefix_tokens)
        greedy(checkpoint, read, prefix, model)


def greedy(checkpoint: Checkpoint, read: CanonicalWeights, prefix: KvCache, model: LanguageModel) -> None:
    """Compare greedy tokens, and show the float network's margin where they part."""
    same = 0
    for prompt in PROMPTS:
        tokens = model.encode([{"role": "user", "content": prompt}])
        model.backend.rewind(0)
        logits = model.backend.prefill(tokens[len(model.manifest.prefix_tokens) :])
        graph = []
        for _ in range(GREEDY_TOKENS):
            graph.append(int(logits.argmax()))
            if graph[-1] in model.manifest.tokenizer.eos_ids:
                break
            logits = model.backend.decode(graph[-1])
        # One float pass over prompt and answer shows at every step what the float network would have said.
        sequence = np.array([[*tokens[len(model.manifest.prefix_tokens) :], *graph[:-1]]])
        ops = NumpyOps(checkpoint.config, read, sequence, prefix)
        reference = decoder(ops, checkpoint.config)[-len(graph) :]
        parted = next((i for i, row in enumerate(reference) if row.argmax() != graph[i]), None)
        if parted is None:
            same += 1
            print(f"same  {len(graph):2} tokens  {prompt}")
        else:
            best = np.sort(reference[parted])[::-1]
            gap = best[0] - reference[parted][graph[parted]]
            spread = reference[parted].std()
            print(f"part  at {parted:2}      {prompt}  (margin {gap:.3f}; the logits' spread is {spread:.2f})")
    model.backend.rewind(0)
    print(f"the same first {GREEDY_TOKENS} greedy tokens on {same} of {len(PROMPTS)} prompts")


if __name__ == "__main__":
    main()
