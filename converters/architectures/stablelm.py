"""StableLM 2: Llama's layers with layer norms, and RoPE on a part of each head."""

from __future__ import annotations

from dataclasses import replace

from converters.architectures import llama
from converters.architectures.configuration import activation_of, gguf_rope, gguf_sizes, huggingface_sizes
from converters.architectures.family import Family, GgufFormat, GgufSource, HuggingFaceFormat, refused
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import Attention, Block, NetworkConfig, Norm

__all__ = ["FAMILY"]

NAME = "stablelm"


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json.

    Raises:
        ArchitectureError: norms of q and k (they are of the 12B model), or another extra that is not described.
    """
    activation_of(NAME, config, "hidden_act", "silu", ("silu",))
    sizes = huggingface_sizes(NAME, config, maps=("use_parallel_residual",), max_context=4096)
    turns = rope.from_huggingface(config, sizes.head_dim, sizes.max_context, partial=0.25)
    attention = sizes.attention(turns, bias=config.flag("use_qkv_bias", False))
    norm = Norm(config.number("layer_norm_eps", 1e-5), "layer", bias=True)
    parallel = config.flag("use_parallel_residual", False)
    return sizes.network(_block(sizes.plain_block(attention, norm), parallel), norm)


def config_from_gguf(source: GgufSource) -> NetworkConfig:
    """Map the `stablelm.*` metadata.

    Raises:
        ArchitectureError: norms of q and k, or a key that the network does not describe.
    """
    if "blk.0.attn_q_norm.weight" in source.shapes:
        raise refused(NAME, source.metadata.where, "tensor blk.0.attn_q_norm.weight", "there", "models without it")
    meta, keys = source.metadata, ("attention.layer_norm_epsilon", "use_parallel_residual")
    sizes = gguf_sizes(NAME, NAME, source, keys=keys)
    attention: Attention = sizes.attention(
        gguf_rope(sizes, NAME, source, partial=True), bias="blk.0.attn_q.bias" in source.shapes
    )
    norm = Norm(meta.number(f"{NAME}.attention.layer_norm_epsilon"), "layer", bias=True)
    parallel = "blk.0.ffn_norm.weight" not in source.shapes  # as llama.cpp: the key is not always right
    return sizes.network(_block(sizes.plain_block(attention, norm), parallel), norm)


def _block(block: Block, parallel: bool) -> Block:
    """The parallel one reads what one norm gives."""
    return replace(block, parallel=True, ffn_norm=None) if parallel else block


FAMILY = Family(
    NAME,
    "StableLM 2 1.6B and Zephyr, StableLM 3B",
    HuggingFaceFormat(
        llama.HUGGINGFACE_NAMES,
        unused=llama.UNUSED,
        model_type="stablelm",
        classes=("StableLmForCausalLM",),
        config=config_from_huggingface,
    ),
    GgufFormat(llama.GGUF_NAMES, architecture=NAME, config=config_from_gguf),
)
