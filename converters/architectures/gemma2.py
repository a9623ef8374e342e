"""Gemma 2: Gemma with norms after each part, soft caps, and a sliding window in every second layer."""

from __future__ import annotations

from converters.architectures import llama
from converters.architectures.configuration import Sizes, gguf_rope, gguf_sizes, huggingface_sizes, sliding_layers
from converters.architectures.family import Family, GgufFormat, GgufSource, HuggingFaceFormat
from converters.architectures.gemma import embedding_of, feed_forward_of, geglu
from converters.architectures.stored import gain_minus_one
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import Attention, Block, NetworkConfig, Norm

__all__ = ["FAMILY", "GGUF_NAMES", "HUGGINGFACE_NAMES", "block_of", "gguf_scale"]

NAME = "gemma2"
HUGGINGFACE_NAMES = {
    **llama.HUGGINGFACE_NAMES,
    "attention_post_norm": "model.layers.{i}.post_attention_layernorm",
    "ffn_norm": "model.layers.{i}.pre_feedforward_layernorm",
    "ffn_post_norm": "model.layers.{i}.post_feedforward_layernorm",
}
GGUF_NAMES = {
    **llama.GGUF_NAMES,
    "attention_post_norm": "blk.{i}.post_attention_norm",
    "ffn_post_norm": "blk.{i}.post_ffw_norm",
}
_LAYERS_OF_27B = 46


def block_of(sizes: Sizes, attention: Attention, norm: Norm) -> Block:
    """A layer of Gemma 2 or 3: a norm before and after each part."""
    return Block(
        attention,
        feed_forward_of(sizes),
        attention_norm=norm,
        ffn_norm=norm,
        attention_post_norm=norm,
        ffn_post_norm=norm,
    )


def gguf_scale(sizes: Sizes, layers_of_27b: int) -> float | None:
    """The scores' scale, which a GGUF file lacks: of the 27B models it follows the width divided by the heads."""
    return (sizes.width / sizes.heads) ** -0.5 if sizes.layers == layers_of_27b else None


def _network(sizes: Sizes, attentions: list[Attention], norm: Norm, logits_cap: float | None) -> NetworkConfig:
    blocks = [block_of(sizes, attention, norm) for attention in attentions]
    return sizes.network(blocks, norm, embedding=embedding_of(sizes), softcap=logits_cap)


def _cap(config: Fields, key: str, default: float) -> float | None:
    """null is no cap; nothing at all is the default."""
    return None if key in config.nulls else config.number(key, default)


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json.

    Raises:
        ArchitectureError: an activation or an extra that the network does not describe.
    """
    geglu(NAME, config)
    maps = (
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "query_pre_attn_scalar",
        "sliding_window",
        "layer_types",
    )
    sizes = huggingface_sizes(NAME, config, maps=maps, tied=True, max_context=8192, head_dim=256)
    turns = rope.from_huggingface(config, sizes.head_dim, sizes.max_context)
    scores, logits = _cap(config, "attn_logit_softcapping", 50.0), _cap(config, "final_logit_softcapping", 30.0)
    bias, window = config.flag("attention_bias", False), config.integer("sliding_window", 4096)
    slides = sliding_layers(NAME, config, sizes.layers, [i % 2 == 0 for i in range(sizes.layers)])
    attentions = [
        sizes.attention(
            turns,
            bias=bias,
            output_bias=bias,
            scale=config.number("query_pre_attn_scalar", 256.0) ** -0.5,
            window=window if sliding else None,
            softcap=scores,
        )
        for sliding in slides
    ]
    return _network(sizes, attentions, Norm(config.number("rms_norm_eps", 1e-6)), logits)


def config_from_gguf(source: GgufSource) -> NetworkConfig:
    """Map the `gemma2.*` metadata.

    Raises:
        ArchitectureError: a key that the network does not describe.
    """
    keys = ("attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window")
    meta, sizes = source.metadata, gguf_sizes(NAME, NAME, source, keys=keys)
    turns, window = gguf_rope(sizes, NAME, source), meta.integer(f"{NAME}.attention.sliding_window", 4096)
    attentions = [
        sizes.attention(
            turns,
            scale=gguf_scale(sizes, _LAYERS_OF_27B),
            window=window if i % 2 == 0 else None,
            softcap=meta.number(f"{NAME}.attn_logit_softcapping", 50.0),
        )
        for i in range(sizes.layers)
    ]
    norm = Norm(meta.number(f"{NAME}.attention.layer_norm_rms_epsilon"))
    return _network(sizes, attentions, norm, meta.number(f"{NAME}.final_logit_softcapping", 30.0))


FAMILY = Family(
    NAME,
    "Gemma 2 2B, 9B and 27B",
    HuggingFaceFormat(
        HUGGINGFACE_NAMES,
        unused=llama.UNUSED,
        find=gain_minus_one(HUGGINGFACE_NAMES),
        model_type="gemma2",
        classes=("Gemma2ForCausalLM",),
        config=config_from_huggingface,
    ),
    GgufFormat(GGUF_NAMES, architecture=NAME, config=config_from_gguf),
)
