"""Qwen3: Llama's layers with a norm for each head of q and k, and a head size apart from the width."""

from __future__ import annotations

from converters.architectures import llama
from converters.architectures.configuration import activation_of, gguf_rope, gguf_sizes, huggingface_sizes
from converters.architectures.family import Family, GgufFormat, GgufSource, HuggingFaceFormat
from converters.architectures.qwen2 import WINDOW_KEYS, windows
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import NetworkConfig, Norm

__all__ = ["FAMILY"]

NAME = "qwen3"
_HUGGINGFACE_NAMES = {
    **llama.HUGGINGFACE_NAMES,
    "q_norm": "model.layers.{i}.self_attn.q_norm",
    "k_norm": "model.layers.{i}.self_attn.k_norm",
}
_GGUF_NAMES = {**llama.GGUF_NAMES, "q_norm": "blk.{i}.attn_q_norm", "k_norm": "blk.{i}.attn_k_norm"}
_HEAD_DIM = 128  # where nothing is said


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json.

    Raises:
        ArchitectureError: an activation or an extra that the network does not describe.
    """
    activation_of(NAME, config, "hidden_act", "silu", ("silu",))
    sizes = huggingface_sizes(NAME, config, maps=WINDOW_KEYS, max_context=32768, head_dim=_HEAD_DIM)
    norm, bias = Norm(config.number("rms_norm_eps", 1e-6)), config.flag("attention_bias", False)
    turns = rope.from_huggingface(config, sizes.head_dim, sizes.max_context)
    attentions = (
        sizes.attention(turns, bias=bias, output_bias=bias, qk_norm=norm, window=window)
        for window in windows(NAME, config, sizes.layers)
    )
    return sizes.network([sizes.plain_block(attention, norm) for attention in attentions], norm)


def config_from_gguf(source: GgufSource) -> NetworkConfig:
    """Map the `qwen3.*` metadata.

    Raises:
        ArchitectureError: a key that the network does not describe.
    """
    sizes = gguf_sizes(NAME, NAME, source, head_dim=_HEAD_DIM)
    norm = Norm(source.metadata.number(f"{NAME}.attention.layer_norm_rms_epsilon"))
    attention = sizes.attention(gguf_rope(sizes, NAME, source), qk_norm=norm)
    return sizes.network(sizes.plain_block(attention, norm), norm)


FAMILY = Family(
    NAME,
    "Qwen3 0.6B to 32B, without experts",
    HuggingFaceFormat(
        _HUGGINGFACE_NAMES,
        unused=llama.UNUSED,
        model_type="qwen3",
        classes=("Qwen3ForCausalLM",),
        config=config_from_huggingface,
    ),
    GgufFormat(_GGUF_NAMES, architecture=NAME, config=config_from_gguf),
)
