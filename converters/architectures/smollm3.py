"""SmolLM3: Llama's layers, some of which know no positions."""

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
from converters.architectures.stored import permuted
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import NetworkConfig, Norm

__all__ = ["FAMILY"]

NAME = "smollm3"
_BASE = 2_000_000.0  # of RoPE, where nothing is said
_INTERVAL = 4  # one layer of so many has no RoPE


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json.

    Raises:
        ArchitectureError: an activation or an extra that the network does not describe.
    """
    activation_of(NAME, config, "hidden_act", "silu", ("silu",))
    maps = ("no_rope_layers", "sliding_window", "use_sliding_window", "layer_types")
    sizes = huggingface_sizes(NAME, config, maps=maps, tied=True, max_context=32768)
    norm, bias = Norm(config.number("rms_norm_eps", 1e-6)), config.flag("attention_bias", False)
    with_base = Fields({"rope_theta": _BASE} | config.values, config.where)
    turns = rope.from_huggingface(with_base, sizes.head_dim, sizes.max_context)
    interval = config.integer("no_rope_layer_interval", _INTERVAL)
    turning = config.values.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(sizes.layers)]
    if not isinstance(turning, list) or len(turning) != sizes.layers or not set(turning) <= {0, 1}:
        raise refused(NAME, config.where, "no_rope_layers", turning, f"a list of {sizes.layers} times 0 or 1")
    window = config.integer("sliding_window") if config.flag("use_sliding_window", False) else None
    slides = sliding_layers(NAME, config, sizes.layers, [window is not None and not turns_ for turns_ in turning])
    if window is None and any(slides):
        raise refused(NAME, config.where, "layer_types", "sliding_attention", "full_attention without a window")
    attentions = (
        sizes.attention(turns if turn else None, bias=bias, output_bias=bias, window=window if sliding else None)
        for turn, sliding in zip(turning, slides, strict=True)
    )
    ffn_bias = config.flag("mlp_bias", False)
    return sizes.network([sizes.plain_block(attention, norm, bias=ffn_bias) for attention in attentions], norm)


def config_from_gguf(source: GgufSource) -> NetworkConfig:
    """Map the `smollm3.*` metadata, which do not say which layers have RoPE: llama.cpp has it in three of four.

    Raises:
        ArchitectureError: a key that the network does not describe.
    """
    sizes = gguf_sizes(NAME, NAME, source)
    norm = Norm(source.metadata.number(f"{NAME}.attention.layer_norm_rms_epsilon"))
    turns = gguf_rope(sizes, NAME, source)
    attentions = (sizes.attention(turns if (i + 1) % _INTERVAL else None) for i in range(sizes.layers))
    return sizes.network([sizes.plain_block(attention, norm) for attention in attentions], norm)


FAMILY = Family(
    NAME,
    "SmolLM3 3B",
    HuggingFaceFormat(
        llama.HUGGINGFACE_NAMES,
        unused=llama.UNUSED,
        model_type="smollm3",
        classes=("SmolLM3ForCausalLM",),
        config=config_from_huggingface,
    ),
    GgufFormat(llama.GGUF_NAMES, find=permuted(llama.GGUF_NAMES), architecture=NAME, config=config_from_gguf),
)
