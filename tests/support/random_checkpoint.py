"""Checkpoints with random weights, in memory: for shapes and contexts that tests/data does not have (tests only)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.architectures import llama
from converters.checkpoints import Checkpoint, TokenizerFile
from converters.network.config import NetworkConfig, Rope
from converters.network.decoder import decoder
from converters.network.tensors import tensors as tensors_of
from converters.network.weights import CanonicalWeights
from converters.ops.numpy import NumpyOps

__all__ = ["CHECKPOINTS", "checkpoint_of", "float_logits", "random_checkpoint"]

CHECKPOINTS = Path(__file__).parents[1] / "data" / "checkpoints"


def random_checkpoint(seed: int = 1, **changes: Any) -> Checkpoint:
    """A tame network, whose logits follow its weights smoothly; `changes` are arguments of `llama.network`."""
    shape: dict[str, Any] = dict(
        vocabulary=384, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_width=48, norm_epsilon=1e-5,
        max_context=1200, tied_head=True,
    )  # fmt: skip
    shape |= changes
    frequencies = tuple(1000.0 ** -(np.arange(0, shape["head_dim"], 2) / shape["head_dim"]))
    return checkpoint_of(llama.network(**shape, rope=Rope(frequencies)), seed)


def checkpoint_of(config: NetworkConfig, seed: int = 1) -> Checkpoint:
    """A tame network of any kind."""
    random = np.random.default_rng(seed)
    tensors = {}
    for tensor in tensors_of(config):
        name, size = tensor.name, tensor.shape
        noise = random.standard_normal(size).astype(np.float32)
        if tensor.kind == "gain":
            tensors[name] = 1 + 0.2 * noise
        elif tensor.kind in ("bias", "norm bias"):
            tensors[name] = 0.3 * noise
        else:
            tensors[name] = noise * np.float32(0.5 if tensor.layer is None else size[1] ** -0.5)
    content = (CHECKPOINTS / "gqa-tied" / "tokenizer.json").read_bytes()
    tokenizer = TokenizerFile("tokenizer.json", content, 0, (1,), False, None)
    return Checkpoint("random", "llama", config, tokenizer, "0" * 64, lambda name: tensors[name].copy())


def float_logits(checkpoint: Checkpoint, prefix: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
    """The float reference's logits after each of `tokens`, which stand behind `prefix`: (tokens, vocabulary)."""
    read = CanonicalWeights(checkpoint.config, checkpoint.read)
    ops = NumpyOps(checkpoint.config, read, np.array([[*prefix, *tokens]]))
    return decoder(ops, checkpoint.config)[len(prefix) :]
