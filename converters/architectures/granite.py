"""Granite 3: Llama's layers, with multipliers of the embedding, the scores, each part and the logits."""

from __future__ import annotations

from dataclasses import replace

from converters.architectures import llama
from converters.architectures.configuration import (
    Sizes,
    activation_of,
    gguf_rope,
    gguf_sizes,
    huggingface_sizes,
)
from converters.architectures.family import Family, GgufFormat, GgufSource, HuggingFaceFormat
from converters.architectures.stored import permuted
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import Attention, Embedding, NetworkConfig, Norm, Rope

__all__ = ["FAMILY", "MULTIPLIERS", "network_of"]

NAME = "granite"
MULTIPLIERS = ("attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier")
_GGUF_KEYS = ("attention.scale", "embedding_scale", "logit_scale", "residual_scale")


def multiplied(
    sizes: Sizes,
    attention: Attention,
    norm: Norm,
    *,
    embedding: float,
    residual: float,
    logits: float,
    bias: bool = False,
) -> NetworkConfig:
    """The network with these multipliers; `logits` divides."""
    block = replace(sizes.plain_block(attention, norm, bias=bias), residual_scale=residual)
    return sizes.network(block, norm, embedding=Embedding(embedding), scale=1 / logits)


def network_of(config: Fields, sizes: Sizes, turns: Rope | None) -> NetworkConfig:
    """The network of a config.json of Granite 3 or 4."""
    activation_of(sizes.family, config, "hidden_act", "silu", ("silu",))
    bias = config.flag("attention_bias", False)
    scale = config.number("attention_multiplier", 1.0)
    return multiplied(
        sizes,
        sizes.attention(turns, bias=bias, output_bias=bias, scale=scale),
        Norm(config.number("rms_norm_eps", 1e-6)),
        embedding=config.number("embedding_multiplier", 1.0),
        residual=config.number("residual_multiplier", 1.0),
        logits=config.number("logits_scaling", 1.0),
        bias=config.flag("mlp_bias", False),
    )


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json.

    Raises:
        ArchitectureError: an activation or an extra that the network does not describe.
    """
    sizes = huggingface_sizes(NAME, config, maps=MULTIPLIERS)
    return network_of(config, sizes, rope.from_huggingface(config, sizes.head_dim, sizes.max_context))


def config_from_gguf(source: GgufSource) -> NetworkConfig:
    """Map the `granite.*` metadata; 0 in a multiplier stands for none, and `rope.scaling.finetuned` switches RoPE.

    Raises:
        ArchitectureError: a key that the network does not describe.
    """
    meta = source.metadata
    keys = (*_GGUF_KEYS, *(key for key in _SSM if meta.values.get(f"{NAME}.{key}") in (0, None)))
    sizes = gguf_sizes(NAME, NAME, source, keys=keys)
    turning = meta.flag(f"{NAME}.rope.scaling.finetuned", True)
    scales = {key: meta.number(f"{NAME}.{key}", 0.0, least=-1.0) for key in _GGUF_KEYS}
    attention = sizes.attention(
        gguf_rope(sizes, NAME, source) if turning else None,
        scale=scales["attention.scale"] or None,
        bias="blk.0.attn_q.bias" in source.shapes,
        output_bias="blk.0.attn_output.bias" in source.shapes,
    )
    return multiplied(
        sizes,
        attention,
        Norm(meta.number(f"{NAME}.attention.layer_norm_rms_epsilon")),
        embedding=scales["embedding_scale"] or 1.0,
        residual=scales["residual_scale"] or 1.0,
        logits=scales["logit_scale"] or 1.0,
    )


# Granite 4 without state-space layers has their keys all the same.
_SSM = (
    *("ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank", "ssm.group_count"),
    *("expert_shared_feed_forward_length",),
)
FAMILY = Family(
    NAME,
    "Granite 3.0 to 3.3, dense",
    HuggingFaceFormat(
        llama.HUGGINGFACE_NAMES,
        unused=llama.UNUSED,
        model_type="granite",
        classes=("GraniteForCausalLM",),
        config=config_from_huggingface,
    ),
    GgufFormat(
        llama.GGUF_NAMES,
        unused=(r"rope_freqs\.weight",),
        find=permuted(llama.GGUF_NAMES),
        architecture=NAME,
        config=config_from_gguf,
    ),
)
