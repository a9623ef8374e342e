"""Phi-3, Phi-3.5 and Phi-4 mini: Llama's layers with fused projections, LongRoPE, and RoPE on a part of each head."""

from __future__ import annotations

from converters.architectures import llama
from converters.architectures.configuration import activation_of, gguf_rope, gguf_sizes, huggingface_sizes
from converters.architectures.family import Family, GgufFormat, GgufSource, HuggingFaceFormat
from converters.architectures.stored import fused
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import NetworkConfig, Norm
from converters.network.tensors import Role

__all__ = ["FAMILY"]

NAME = "phi3"
_QKV, _GATE_UP = (Role.Q, Role.K, Role.V), (Role.GATE, Role.UP)


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json.

    Raises:
        ArchitectureError: an activation or an extra that the network does not describe.
    """
    activation_of(NAME, config, "hidden_act", "silu", ("silu",))
    sizes = huggingface_sizes(NAME, config, maps=("sliding_window",), max_context=4096)
    norm = Norm(config.number("rms_norm_eps", 1e-5))
    window = config.integer("sliding_window") if "sliding_window" in config else None
    turns = rope.from_huggingface(config, sizes.head_dim, sizes.max_context, partial=1.0)
    return sizes.network(sizes.plain_block(sizes.attention(turns, window=window), norm), norm)


def config_from_gguf(source: GgufSource) -> NetworkConfig:
    """Map the `phi3.*` metadata; a window of 0 stands for none.

    Raises:
        ArchitectureError: a key that the network does not describe.
    """
    meta, sizes = source.metadata, gguf_sizes(NAME, NAME, source, keys=("attention.sliding_window",))
    norm = Norm(meta.number(f"{NAME}.attention.layer_norm_rms_epsilon"))
    window = meta.integer(f"{NAME}.attention.sliding_window", 0, least=0) or None
    attention = sizes.attention(gguf_rope(sizes, NAME, source, partial=True), window=window)
    return sizes.network(sizes.plain_block(attention, norm), norm)


FAMILY = Family(
    NAME,
    "Phi-3 and Phi-3.5 mini, Phi-4 mini, Phi-4",
    HuggingFaceFormat(
        llama.HUGGINGFACE_NAMES,
        unused=llama.UNUSED,
        find=fused(
            {"model.layers.{i}.self_attn.qkv_proj": _QKV, "model.layers.{i}.mlp.gate_up_proj": _GATE_UP},
        ),
        model_type="phi3",
        classes=("Phi3ForCausalLM",),
        config=config_from_huggingface,
    ),
    GgufFormat(
        llama.GGUF_NAMES,
        unused=(r"rope_factors_(short|long)\.weight",),
        find=fused({"blk.{i}.attn_qkv": _QKV, "blk.{i}.ffn_up": _GATE_UP}),
        architecture=NAME,
        config=config_from_gguf,
    ),
)
