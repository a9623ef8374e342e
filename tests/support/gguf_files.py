"""GGUF files as llama.cpp's converter writes them, from a Hugging Face folder or part of one (tests only)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from converters.architectures import llama
from converters.checkpoints import Checkpoint
from converters.network.tensors import Role, tensors

__all__ = ["add_tokenizer", "permuted", "write_gguf"]

_CONTROL, _USER_DEFINED, _NORMAL = 3, 4, 1


def permuted(tensor: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute` of convert_hf_to_gguf.py."""
    rows = tensor.shape[0]
    return tensor.reshape(heads, 2, rows // heads // 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer_json: Path, pre: str, ids: Mapping[str, int]) -> None:
    """Metadata of a byte-level BPE tokenizer; `ids` has bos, eos … as GGUF names them."""
    document = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    vocab = dict(document["model"]["vocab"])
    types = dict.fromkeys(vocab, _NORMAL)
    for token in document["added_tokens"]:
        vocab[token["content"]] = token["id"]
        types[token["content"]] = _CONTROL if token["special"] else _USER_DEFINED
    tokens = sorted(vocab, key=vocab.__getitem__)
    merges = document["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([types[token] for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for name, number in ids.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)


def write_gguf(
    path: Path,
    checkpoint: Checkpoint,
    kind_of: Callable[[str], Kind],
    *,
    base: float,
    tokenizer: Callable[[gguf.GGUFWriter], None],
    divisors: np.ndarray | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a Llama checkpoint, each tensor as `kind_of(canonical name)`; `extra` are further uint32 keys."""
    config = checkpoint.config
    block = config.blocks[0]
    attention = block.attention
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(checkpoint.name)
    writer.add_vocab_size(config.vocabulary)
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(block.feed_forward.width)
    writer.add_head_count(attention.heads)
    writer.add_head_count_kv(attention.kv_heads)
    writer.add_key_length(attention.head_dim)
    writer.add_value_length(attention.head_dim)
    writer.add_rope_dimension_count(attention.head_dim)
    writer.add_rope_freq_base(base)
    assert block.attention_norm is not None
    writer.add_layer_norm_rms_eps(block.attention_norm.epsilon)
    for key, value in (extra or {}).items():
        writer.add_uint32(key, value)
    tokenizer(writer)
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    form = llama.FAMILY.gguf
    assert form is not None
    for known in tensors(config):
        tensor = checkpoint.read(known.name)
        if known.matmul is not None and known.matmul.role in (Role.Q, Role.K):
            tensor = permuted(tensor, attention.heads if known.matmul.role is Role.Q else attention.kv_heads)
        kind = kind_of(known.name)
        if kind == Kind.F64:
            writer.add_tensor(form.named(known), tensor.astype(np.float64))
        else:
            data = gguf.quantize(np.ascontiguousarray(tensor), kind)
            writer.add_tensor(form.named(known), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
