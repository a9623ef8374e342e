"""The sink prefix: the first position's keys and values, computed in float and kept.

The first token of a sequence draws activations a thousand times larger than any other. Quantized with the
rest it would swallow every range it touches; computed once in float, only its keys and values are left of
it, and those are ordinary. docs/explained/quantization.md has the figures.

A fixed instruction is kept in the same way: its keys and values are computed at conversion, whatever its length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.checkpoints import TokenizerFile
from converters.network.decoder import hidden
from converters.network.weights import CanonicalWeights, FloatArray
from converters.ops.numpy import KvCache, NumpyOps
from device_runtime.engine.chat import Message, render_segments
from device_runtime.engine.text.segments import Segment
from device_runtime.engine.tokenizer import Tokenizer
from device_runtime.errors import ConfigurationError, StonechatError

# How a message may begin: a tokenizer joins some of these to the end of what comes before them.
_BEGINNINGS = ("x", "Y", "1", " a", "  ", "\n", "\n\n", "é", ".", "{", "<", "日")

__all__ = ["Prefix", "choose_prefix", "prefix_cache", "save_prefix"]


@dataclass(frozen=True)
class Prefix:
    """Positions that are in the kv_cache before anything is said."""

    cache: KvCache
    logits: FloatArray | None  # (vocabulary,), after the last position; None for an empty prefix


def choose_prefix(file: TokenizerFile, tokenizer: Tokenizer, instruction: str | None = None) -> list[int]:
    """The tokens that every sequence begins with.

    Args:
        instruction: a system message, or without a chat template the beginning of every prompt. None: the one token
            that every sequence begins with: what the chat template writes first, with a system message and without,
            else BOS, else none.

    Raises:
        ConfigurationError: the instruction is empty, or the chat template does not put it first.
    """
    if instruction is not None:
        return _instruction_prefix(file, tokenizer, instruction)
    bos = [file.bos_id] if file.bos_id is not None else []
    if file.chat_template is None:
        return bos
    found: set[int] = set()
    for conversation in _conversations():
        try:
            tokens = tokenizer.encode(_segments(file, tokenizer, conversation))
        except StonechatError:  # many templates refuse a system message
            continue
        found.add(tokens[0] if tokens else -1)
    if len(found) == 1 and -1 not in found and (found == set(bos) or not file.adds_bos):
        return [found.pop()]
    return bos if file.adds_bos or not found else []


def _conversations() -> Iterator[list[Message]]:
    """With each role and without, and with several beginnings: a template may put the message first."""
    for content in _BEGINNINGS:
        user = {"role": "user", "content": content}
        yield [user]
        yield [{"role": "system", "content": content}, user]
        yield [user, {"role": "assistant", "content": content}, user]


def _segments(file: TokenizerFile, tokenizer: Tokenizer, conversation: Sequence[Message]) -> list[Segment]:
    return render_segments(file.chat_template, conversation, file.special_tokens, tokenizer.names, tokenizer.special)


def _instruction_prefix(file: TokenizerFile, tokenizer: Tokenizer, instruction: str) -> list[int]:
    if not instruction.strip():
        raise ConfigurationError("The text of --prefix is empty; give the instruction that every answer follows.")
    if file.chat_template is None:
        bos = [file.bos_id] if file.adds_bos and file.bos_id is not None else []
        return bos + tokenizer.encode([Segment(instruction, False)])
    if "strftime_now" in file.chat_template:
        raise ConfigurationError(
            "The model's chat template writes today's date into every conversation, so an instruction cannot be baked "
            "into the bundle; convert without --prefix and give it as a system message."
        )
    system = {"role": "system", "content": instruction}
    renderings = [_segments(file, tokenizer, [system, {"role": "user", "content": c}]) for c in _BEGINNINGS]
    texts = ["".join(segment.text for segment in rendering) for rendering in renderings]
    # After messages of several lengths it would be at several places.
    if len({text.find(instruction.strip()) for text in texts}) > 1 or instruction.strip() not in texts[0]:
        raise ConfigurationError(
            "The model's chat template does not put the system message first, so an instruction cannot be baked into "
            "the bundle; convert without --prefix."
        )
    sequences = [tokenizer.encode(rendering) for rendering in renderings]
    shortest = min(map(len, sequences))
    same = next((i for i in range(shortest) if len({s[i] for s in sequences}) > 1), shortest)
    return sequences[0][:same]


def prefix_cache(weights: CanonicalWeights, tokens: Sequence[int]) -> KvCache:
    """Keys and values of the prefix in the float network."""
    if not tokens:
        return KvCache()
    ops = NumpyOps(weights.config, weights, np.array([tokens]))
    hidden(ops, weights.config)
    return ops.cache


def save_prefix(path: Path, prefix: Prefix) -> None:
    """Write prefix.npz: `k` and `v`, (layers, positions, kv_heads, head_dim), and `logits`, (vocabulary,)."""
    keys = np.concatenate([k for k, _ in prefix.cache.layers])
    values = np.concatenate([v for _, v in prefix.cache.layers])
    np.savez(path, k=keys, v=values, logits=prefix.logits)  # type: ignore[arg-type]
