"""EXAONE 4: norms only after each part, norms of q and k; in the 32B, windows in the layers that have RoPE."""

from __future__ import annotations

from collections.abc import Sequence

from converters.architectures import llama
from converters.architectures.configuration import (
    Sizes,
    activation_of,
    gguf_rope,
    gguf_sizes,
    huggingface_sizes,
    sliding_layers,
)
from converters.architectures.family import Family, GgufFormat, GgufSource, HuggingFaceFormat, refused
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import Block, FeedForward, NetworkConfig, Norm, Rope

__all__ = ["FAMILY"]

NAME = "exaone4"
_HUGGINGFACE_NAMES = {
    **llama.HUGGINGFACE_NAMES,
    "q_norm": "model.layers.{i}.self_attn.q_norm",
    "k_norm": "model.layers.{i}.self_attn.k_norm",
    "attention_post_norm": "model.layers.{i}.post_attention_layernorm",
    "ffn_post_norm": "model.layers.{i}.post_feedforward_layernorm",
}
_GGUF_NAMES = {
    **llama.GGUF_NAMES,
    "q_norm": "blk.{i}.attn_q_norm",
    "k_norm": "blk.{i}.attn_k_norm",
    "attention_post_norm": "blk.{i}.post_attention_norm",
    "ffn_post_norm": "blk.{i}.post_ffw_norm",
}
_PATTERN = 4  # of the 32B, one layer of so many is global


def _network(sizes: Sizes, turns: Rope, norm: Norm, window: int | None, slides: Sequence[bool]) -> NetworkConfig:
    """With a window, global layers know no positions."""
    blocks = [
        Block(
            sizes.attention(
                turns if window is None or sliding else None, qk_norm=norm, window=window if sliding else None
            ),
            FeedForward(sizes.ffn_width),
            attention_norm=None,
            ffn_norm=None,
            attention_post_norm=norm,
            ffn_post_norm=norm,
        )
        for sliding in slides
    ]
    return sizes.network(blocks, norm)


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json.

    Raises:
        ArchitectureError: an activation or an extra that the network does not describe.
    """
    activation_of(NAME, config, "hidden_act", "silu", ("silu",))
    sizes = huggingface_sizes(NAME, config, maps=("sliding_window", "layer_types"))
    window = config.integer("sliding_window") if "sliding_window" in config else None
    pattern = config.values.get("sliding_window_pattern", _PATTERN)
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        default = [pattern[i % len(pattern)] == "L" for i in range(sizes.layers)]
    else:
        each = config.integer("sliding_window_pattern", _PATTERN, least=0)
        default = [bool(each and (i + 1) % each) for i in range(sizes.layers)]
    slides = sliding_layers(NAME, config, sizes.layers, default if window is not None else [False] * sizes.layers)
    if window is None and any(slides):
        raise refused(NAME, config.where, "layer_types", "sliding_attention", "full_attention without a window")
    turns = rope.from_huggingface(config, sizes.head_dim, sizes.max_context)
    return _network(sizes, turns, Norm(config.number("rms_norm_eps", 1e-5)), window, slides)


def config_from_gguf(source: GgufSource) -> NetworkConfig:
    """Map the `exaone4.*` metadata.

    Raises:
        ArchitectureError: a key that the network does not describe.
    """
    keys = ("attention.sliding_window", "attention.sliding_window_pattern")
    meta, sizes = source.metadata, gguf_sizes(NAME, NAME, source, keys=keys)
    window = meta.integer(f"{NAME}.attention.sliding_window", 0, least=0) or None
    pattern = meta.values.get(f"{NAME}.attention.sliding_window_pattern")
    slides = [window is not None and (i + 1) % _PATTERN != 0 for i in range(sizes.layers)]
    if isinstance(pattern, list) and len(pattern) == sizes.layers:
        slides = [bool(sliding) for sliding in pattern]
    norm = Norm(meta.number(f"{NAME}.attention.layer_norm_rms_epsilon"))
    return _network(sizes, gguf_rope(sizes, NAME, source), norm, window, slides)


FAMILY = Family(
    NAME,
    "EXAONE 4.0 1.2B and 32B",
    HuggingFaceFormat(
        _HUGGINGFACE_NAMES,
        unused=llama.UNUSED,
        model_type="exaone4",
        classes=("Exaone4ForCausalLM",),
        config=config_from_huggingface,
    ),
    GgufFormat(_GGUF_NAMES, unused=(r"rope_freqs\.weight",), architecture=NAME, config=config_from_gguf),
)
