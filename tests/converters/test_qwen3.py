"""Qwen3: its checkpoints are read as transformers' definition says, computed here a second time in float64."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from converters.architectures import qwen3
from converters.architectures.family import GgufSource
from converters.checkpoints import open_checkpoint
from converters.checkpoints.fields import Fields
from converters.convert import Options, convert
from device_runtime.engine.backends import open_backend
from device_runtime.errors import ArchitectureError
from tests.support.random_checkpoint import CHECKPOINTS, float_logits

WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS, VOCABULARY = 48, 4, 2, 16, 80, 2, 384
KEYS = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": WIDTH,
    "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "head_dim": HEAD_DIM,
    "num_key_value_heads": KV_HEADS, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 1000.0,
    "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 1, "hidden_act": "silu", "sliding_window": 4096,
    "use_sliding_window": False, "max_window_layers": 28, "attention_bias": False,
}  # fmt: skip
TOKENS = [int(t) for t in np.random.default_rng(8).integers(0, VOCABULARY, 20)]


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    tensors = {"model.embed_tokens.weight": random.standard_normal((VOCABULARY, WIDTH)) * 0.5}
    tensors["model.norm.weight"] = 1 + 0.2 * random.standard_normal(WIDTH)
    shapes = {
        "self_attn.q_proj": (HEADS * HEAD_DIM, WIDTH), "self_attn.k_proj": (KV_HEADS * HEAD_DIM, WIDTH),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, WIDTH), "self_attn.o_proj": (WIDTH, HEADS * HEAD_DIM),
        "mlp.gate_proj": (FFN, WIDTH), "mlp.up_proj": (FFN, WIDTH), "mlp.down_proj": (WIDTH, FFN),
    }  # fmt: skip
    norms = {
        "input_layernorm": WIDTH, "post_attention_layernorm": WIDTH,
        "self_attn.q_norm": HEAD_DIM, "self_attn.k_norm": HEAD_DIM,
    }  # fmt: skip
    for i in range(LAYERS):
        for name, shape in shapes.items():
            tensors[f"model.layers.{i}.{name}.weight"] = random.standard_normal(shape) * shape[1] ** -0.5
        for name, size in norms.items():
            tensors[f"model.layers.{i}.{name}.weight"] = 1.2 + 0.3 * random.standard_normal(size)
    return {name: values.astype(np.float32) for name, values in tensors.items()}


@pytest.fixture
def folder(tmp_path: Path, weights: dict[str, np.ndarray]) -> Path:
    folder = tmp_path / "qwen3"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(KEYS))
    save_file(weights, folder / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINTS / "gqa-tied" / name, folder)
    return folder


def logits_by_hand(w: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """As `modeling_qwen3.py` has it: q and k are normed head by head before they turn. (tokens, vocabulary)."""
    w, count = {name: values.astype(np.float64) for name, values in w.items()}, len(tokens)
    angles = np.outer(np.arange(count), 1000.0 ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM))
    cos, sin = (np.concatenate([f(angles), f(angles)], axis=1)[:, None] for f in (np.cos, np.sin))

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-6) * w[f"{name}.weight"]

    def turned(x: np.ndarray) -> np.ndarray:
        a, b = np.split(x, 2, axis=-1)
        return x * cos + np.concatenate([-b, a], axis=-1) * sin

    x = w["model.embed_tokens.weight"][tokens]
    for i in range(LAYERS):
        p = f"model.layers.{i}"
        h = norm(x, f"{p}.input_layernorm")
        q, k, v = (
            (h @ w[f"{p}.self_attn.{n}_proj.weight"].T).reshape(count, heads, HEAD_DIM)
            for n, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        )
        q, k = turned(norm(q, f"{p}.self_attn.q_norm")), turned(norm(k, f"{p}.self_attn.k_norm"))
        k, v = (np.repeat(t, HEADS // KV_HEADS, axis=1) for t in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / HEAD_DIM**0.5 + np.triu(np.full((count, count), -np.inf), 1)
        shares = np.exp(scores - scores.max(axis=2, keepdims=True))
        shares /= shares.sum(axis=2, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", shares, v).reshape(count, -1)
        x = x + mixed @ w[f"{p}.self_attn.o_proj.weight"].T
        h = norm(x, f"{p}.post_attention_layernorm")
        gate, up = (h @ w[f"{p}.mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"{p}.mlp.down_proj.weight"].T
    return norm(x, "model.norm") @ w["model.embed_tokens.weight"].T


def test_the_float_network_is_the_definition(folder: Path, weights: dict[str, np.ndarray]) -> None:
    found = float_logits(open_checkpoint(folder), [], TOKENS)
    np.testing.assert_allclose(found, logits_by_hand(weights, TOKENS), atol=1e-4)  # float32 sums


@pytest.mark.parametrize("profile", ["pi", "micro"])
def test_it_converts(profile: str, folder: Path, weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Two layers of int8 roundings, 0.7 % each, some twenty of them in quadrature."""
    bundle = convert(open_checkpoint(folder), tmp_path / "bundle", Options(profile, 40, fast=True))  # type: ignore[arg-type]
    prefix = list(bundle.manifest.prefix_tokens)
    backend = open_backend(bundle)
    found = np.stack([backend.decode(token).copy() for token in TOKENS])
    backend.close()
    expected = logits_by_hand(weights, prefix + TOKENS)[len(prefix) :]
    assert np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()) < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is gelu; the qwen3 network is described for silu only"),
        ({"num_experts": 128}, "num_experts is 128"),
        ({"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ({"num_key_value_heads": 3}, "key-value heads is 3"),
    ],
)
def test_a_variant_that_would_be_wrong_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        qwen3.config_from_huggingface(Fields(KEYS | changes, "config.json"))


def test_gguf_metadata_describe_the_same_network() -> None:
    metadata = {
        "qwen3.embedding_length": WIDTH, "qwen3.block_count": LAYERS, "qwen3.feed_forward_length": FFN,
        "qwen3.attention.head_count": HEADS, "qwen3.attention.head_count_kv": KV_HEADS, "qwen3.context_length": 256,
        "qwen3.attention.key_length": HEAD_DIM, "qwen3.attention.value_length": HEAD_DIM,
        "qwen3.attention.layer_norm_rms_epsilon": 1e-6, "qwen3.rope.freq_base": 1000.0,
    }  # fmt: skip
    shapes = {"token_embd.weight": (VOCABULARY, WIDTH)}
    source = GgufSource(Fields(metadata, "model.gguf"), shapes, lambda name: np.zeros(0, np.float32))
    assert qwen3.config_from_gguf(source) == qwen3.config_from_huggingface(Fields(KEYS, "config.json"))
    experts = GgufSource(Fields(metadata | {"qwen3.expert_count": 8}, "model.gguf"), shapes, source.read)
    with pytest.raises(ArchitectureError, match=r"qwen3\.expert_count is 8"):
        qwen3.config_from_gguf(experts)
