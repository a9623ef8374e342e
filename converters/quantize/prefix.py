"""The sink prefix: the first position's keys and values, computed in float and kept.

The first token of a sequence draws activations a thousand times larger than any other. Quantized with the
rest it would swallow every range it touches; computed once in float, only its keys and values are left of
it, and those are ordinary. docs/quantization.md has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.checkpoints import TokenizerFile
from converters.network import NetworkConfig, head, hidden
from converters.ops_numpy import FloatArray, KvCache, NumpyOps, ReadTensor
from device_runtime.chat import render_chat
from device_runtime.errors import StonechatError
from device_runtime.tokenizer import Tokenizer

__all__ = ["Prefix", "choose_prefix", "float_prefix", "save_prefix"]


@dataclass(frozen=True)
class Prefix:
    """Positions that are in the kv_cache before anything is said."""

    cache: KvCache
    logits: FloatArray | None  # (vocabulary,), after the last position; None for an empty prefix


def choose_prefix(file: TokenizerFile, tokenizer: Tokenizer) -> list[int]:
    """The one token that every sequence begins with: the chat template's first, else BOS, else none."""
    if file.chat_template is not None:
        try:
            text = render_chat(file.chat_template, [{"role": "user", "content": "x"}], file.special_tokens)
        except StonechatError:
            text = ""  # a template that wants more than messages; BOS will do
        first = tokenizer.encode(text)[:1]
        if first and (first == [file.bos_id] or not file.adds_bos):
            return first
    return [file.bos_id] if file.bos_id is not None else []


def float_prefix(config: NetworkConfig, read: ReadTensor, tokens: Sequence[int]) -> Prefix:
    """Run the float network over the prefix."""
    if not tokens:
        return Prefix(KvCache(), None)
    ops = NumpyOps(config, read, np.array([tokens]))
    x = hidden(ops, config)
    return Prefix(ops.cache, head(ops, x[-1:])[0])


def save_prefix(path: Path, prefix: Prefix) -> None:
    """Write prefix.npz: `k` and `v`, (layers, positions, kv_heads, head_dim), and `logits`, (vocabulary,)."""
    keys = np.concatenate([k for k, _ in prefix.cache.layers])
    values = np.concatenate([v for _, v in prefix.cache.layers])
    np.savez(path, k=keys, v=values, logits=prefix.logits)  # type: ignore[arg-type]
