"""GPT-NeoX (Pythia): parallel parts with a layer norm each, RoPE on a part of each head, q, k and v head by head."""

from __future__ import annotations

from dataclasses import replace

from converters.architectures.configuration import (
    Sizes,
    activation_of,
    gguf_rope,
    gguf_sizes,
    huggingface_sizes,
)
from converters.architectures.family import Family, GgufFormat, GgufSource, HuggingFaceFormat, Source
from converters.architectures.llama import GGUF_NAMES
from converters.architectures.stored import fused
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import ActivationKind, Block, FeedForward, NetworkConfig, Norm, Rope
from converters.network.tensors import Role, Tensor
from converters.network.weights import FloatArray

__all__ = ["FAMILY"]

NAME = "gpt_neox"
_GGUF_ARCHITECTURE = "gptneox"
_NAMES = {
    "embed": "gpt_neox.embed_in",
    "attention_norm": "gpt_neox.layers.{i}.input_layernorm",
    "o": "gpt_neox.layers.{i}.attention.dense",
    "ffn_norm": "gpt_neox.layers.{i}.post_attention_layernorm",
    "up": "gpt_neox.layers.{i}.mlp.dense_h_to_4h",
    "down": "gpt_neox.layers.{i}.mlp.dense_4h_to_h",
    "final_norm": "gpt_neox.final_layer_norm",
    "head": "embed_out",
}
_ROLES = (Role.Q, Role.K, Role.V)


def _network(
    sizes: Sizes, turns: Rope, epsilon: float, activation: ActivationKind, *, parallel: bool, bias: bool = True
) -> NetworkConfig:
    norm = Norm(epsilon, "layer", bias=True)
    block = Block(
        sizes.attention(turns, bias=bias, output_bias=bias),
        FeedForward(sizes.ffn_width, activation, gated=False, bias=True),
        attention_norm=norm,
        ffn_norm=norm,
        parallel=parallel,
    )
    return sizes.network(block, norm)


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json.

    Raises:
        ArchitectureError: an activation or an extra that the network does not describe.
    """
    known = ("gelu", "gelu_new", "relu", "silu")
    activation = activation_of(NAME, config, "hidden_act", "gelu", known)
    sizes = huggingface_sizes(NAME, config, maps=("use_parallel_residual",))
    sizes = replace(sizes, kv_heads=sizes.heads)  # whatever `num_key_value_heads` says
    values = {"partial_rotary_factor": config.number("rotary_pct", 0.25)}
    values |= {"rope_theta": config.number("rotary_emb_base", 10_000.0, least=1.0)} | config.values
    turns = rope.from_huggingface(Fields(values, config.where), sizes.head_dim, sizes.max_context, partial=0.25)
    parallel, bias = config.flag("use_parallel_residual", True), config.flag("attention_bias", True)
    return _network(sizes, turns, config.number("layer_norm_eps", 1e-5), activation, parallel=parallel, bias=bias)


def config_from_gguf(source: GgufSource) -> NetworkConfig:
    """Map the `gptneox.*` metadata.

    Raises:
        ArchitectureError: a key that the network does not describe.
    """
    meta, keys = source.metadata, ("attention.layer_norm_epsilon", "use_parallel_residual")
    sizes = gguf_sizes(NAME, _GGUF_ARCHITECTURE, source, keys=keys)
    turns = gguf_rope(sizes, _GGUF_ARCHITECTURE, source, partial=True)
    epsilon = meta.number(f"{_GGUF_ARCHITECTURE}.attention.layer_norm_epsilon")
    parallel = meta.flag(f"{_GGUF_ARCHITECTURE}.use_parallel_residual", True)
    return _network(sizes, turns, epsilon, "gelu", parallel=parallel)


def _find(tensor: Tensor, config: NetworkConfig) -> Source | None:
    """Rows of q, k and v lie head by head: (heads, 3, head_dim)."""
    if tensor.matmul is None or tensor.layer is None or tensor.matmul.role not in _ROLES:
        return None
    head_dim, which = config.blocks[tensor.layer].attention.head_dim, _ROLES.index(tensor.matmul.role)

    def part(stored: FloatArray) -> FloatArray:
        heads = stored.reshape(-1, 3, head_dim, *stored.shape[1:])
        return heads[:, which].reshape(-1, *stored.shape[1:])

    name = f"gpt_neox.layers.{tensor.layer}.attention.query_key_value.{tensor.part}"
    return Source(name, (3 * tensor.shape[0], *tensor.shape[1:]), part=part)


def _newer_head(tensor: Tensor, config: NetworkConfig) -> Source | None:
    """What transformers 5 calls it."""
    return Source("lm_head.weight") if tensor.stem == "head" else None


FAMILY = Family(
    NAME,
    "GPT-NeoX: Pythia 14M to 12B",
    HuggingFaceFormat(
        _NAMES,
        # masks and frequencies that old checkpoints carry, and a tied head, which the reader compares
        unused=(r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)", r"(embed_out|lm_head)\.weight"),
        find=_find,
        other=_newer_head,
        model_type="gpt_neox",
        classes=("GPTNeoXForCausalLM",),
        config=config_from_huggingface,
    ),
    GgufFormat(
        GGUF_NAMES,
        find=fused({"blk.{i}.attn_qkv": _ROLES}),
        architecture=_GGUF_ARCHITECTURE,
        config=config_from_gguf,
    ),
)
