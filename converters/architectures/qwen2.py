"""Qwen2 and Qwen2.5: Llama's layers with biases of q, k and v."""

from __future__ import annotations

from converters.architectures import llama
from converters.architectures.configuration import (
    activation_of,
    gguf_rope,
    gguf_sizes,
    huggingface_sizes,
    sliding_layers,
)
from converters.architectures.family import Family, GgufFormat, GgufSource, HuggingFaceFormat, refused
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import NetworkConfig, Norm

__all__ = ["FAMILY", "WINDOW_KEYS", "windows"]

NAME = "qwen2"
WINDOW_KEYS = ("sliding_window", "use_sliding_window", "layer_types")


def windows(family: str, config: Fields, layers: int) -> list[int | None]:
    """The sliding window of each layer: of those from `max_window_layers` on, where `use_sliding_window` is true."""
    used = config.flag("use_sliding_window", False) and "sliding_window" in config
    full = config.integer("max_window_layers", 28, least=0)
    slides = sliding_layers(family, config, layers, [used and i >= full for i in range(layers)])
    if any(slides) and not used:
        raise refused(family, config.where, "layer_types", "sliding_attention", "full_attention without a window")
    return [config.integer("sliding_window") if sliding else None for sliding in slides]


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json.

    Raises:
        ArchitectureError: an activation or an extra that the network does not describe.
    """
    activation_of(NAME, config, "hidden_act", "silu", ("silu",))
    sizes = huggingface_sizes(NAME, config, maps=WINDOW_KEYS, max_context=32768)
    norm = Norm(config.number("rms_norm_eps", 1e-6))
    turns = rope.from_huggingface(config, sizes.head_dim, sizes.max_context)
    attentions = (sizes.attention(turns, bias=True, window=window) for window in windows(NAME, config, sizes.layers))
    return sizes.network([sizes.plain_block(attention, norm) for attention in attentions], norm)


def config_from_gguf(source: GgufSource) -> NetworkConfig:
    """Map the `qwen2.*` metadata.

    Raises:
        ArchitectureError: a key that the network does not describe.
    """
    sizes = gguf_sizes(NAME, NAME, source)
    norm = Norm(source.metadata.number(f"{NAME}.attention.layer_norm_rms_epsilon"))
    attention = sizes.attention(gguf_rope(sizes, NAME, source), bias=True)
    return sizes.network(sizes.plain_block(attention, norm), norm)


FAMILY = Family(
    NAME,
    "Qwen2 and Qwen2.5 0.5B to 72B, without experts",
    HuggingFaceFormat(
        llama.HUGGINGFACE_NAMES,
        unused=llama.UNUSED,
        model_type="qwen2",
        classes=("Qwen2ForCausalLM",),
        config=config_from_huggingface,
    ),
    GgufFormat(llama.GGUF_NAMES, architecture=NAME, config=config_from_gguf),
)
