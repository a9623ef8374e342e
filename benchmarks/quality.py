"""How close a bundle's graph is to the float network: perplexity, divergence, and the same greedy text.

    python benchmarks/quality.py CHECKPOINT BUNDLE [--tokens 4096] [--window 512] [--no-prompts]

The text is this project's LICENSE and docstrings of Python's standard library, neither of which calibration saw.
Every window starts right behind the bundle's prefix, in the float network as in the graph, and the graph is read token
by token, as it answers. The last part counts on how many of ten prompts the first 32 greedy tokens are those of the
float network, and shows for the others by how little the float network itself preferred its token.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from pathlib import Path

import numpy as np

from converters.checkpoints import Checkpoint, open_checkpoint
from converters.network import decoder, head, hidden
from converters.ops_numpy import KvCache, NumpyOps, ReadTensor, with_head
from converters.quality import text_windows
from converters.quantize.prefix import float_prefix
from device_runtime.backends import open_backend
from device_runtime.bundle import Bundle
from device_runtime.engine import LanguageModel

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    "argparse",
    "csv",
    "difflib",
    "functools",
    "heapq",
    "ipaddress",
    "json",
    "locale",
    "random",
    "shutil",
    "sched",
)
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
    parser = argparse.ArgumentParser(description="how close a bundle's graph is to the float network")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--no-prompts", action="store_true")
    args = parser.parse_args()
    checkpoint, bundle = open_checkpoint(args.checkpoint), Bundle.open(args.bundle)
    read = with_head(checkpoint.config, functools.cache(checkpoint.read))
    prefix = float_prefix(checkpoint.config, read, bundle.manifest.prefix_tokens).cache
    with LanguageModel.open(args.bundle) as model:
        tokens = model.encode(text())[len(bundle.manifest.prefix_tokens) :]
        windows = text_windows(tokens[: args.tokens], args.window)
        divergence(checkpoint, read, prefix, bundle, windows)
        if not args.no_prompts:
            greedy(checkpoint, read, prefix, model)


def text() -> str:
    """Prose and documentation that calibration never saw."""
    docs = []
    for name in MODULES:
        module = importlib.import_module(name)
        members = [module, *(getattr(module, member) for member in getattr(module, "__all__", dir(module)))]
        docs += [m.__doc__ for m in members if isinstance(getattr(m, "__doc__", None), str)]
    return (ROOT / "LICENSE").read_text() + "\n\n".join(dict.fromkeys(docs))


def divergence(checkpoint: Checkpoint, read: ReadTensor, prefix: KvCache, bundle: Bundle, windows: np.ndarray) -> None:
    """Perplexity of both, their ratio, KL divergence of the next-token distribution, and top-1 agreement."""
    config = checkpoint.config
    backend = open_backend(bundle)
    float_losses, graph_losses, divergences, agreements = [], [], [], []
    for number, window in enumerate(windows, 1):
        ops = NumpyOps(config, read, window[None], prefix)
        reference = log_softmax(head(ops, hidden(ops, config)))
        backend.rewind(0)
        graph = log_softmax(np.stack([backend.decode(int(token)).copy() for token in window]))
        rows = np.arange(len(window) - 1)
        float_losses.append(-reference[rows, window[1:]])
        graph_losses.append(-graph[rows, window[1:]])
        divergences.append((np.exp(reference) * (reference - graph)).sum(axis=1))
        agreements.append(reference.argmax(axis=1) == graph.argmax(axis=1))
        print(f"\r{number}/{len(windows)} windows", end="", file=sys.stderr)
    print(file=sys.stderr)
    backend.close()
    losses = np.concatenate(float_losses), np.concatenate(graph_losses)
    difference = losses[1] - losses[0]
    ratio = np.exp(difference.mean())
    error = ratio * difference.std() / np.sqrt(difference.size)
    print(f"tokens              {losses[0].size} in windows of {windows.shape[1]}")
    print(f"perplexity, float   {np.exp(losses[0].mean()):.4f}")
    print(f"perplexity, graph   {np.exp(losses[1].mean()):.4f}")
    print(f"ratio               {ratio:.5f} (standard error {error:.5f})")
    print(f"KL divergence       {np.concatenate(divergences).mean():.5f} nats per token")
    print(f"top-1 agreement     {np.concatenate(agreements).mean():.4f}")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Row by row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def greedy(checkpoint: Checkpoint, read: ReadTensor, prefix: KvCache, model: LanguageModel) -> None:
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
        # One float pass over prompt and answer tells at every step what the float network would have said.
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
