"""GPT-2: layer norms, learned positions, no gate; matrices are stored as (in, out), q, k and v side by side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from converters.architectures.configuration import ACTIVATIONS, activation_of, check_neutral
from converters.architectures.family import Family, GgufFormat, GgufSource, HuggingFaceFormat, Source, refused
from converters.architectures.llama import GGUF_NAMES
from converters.architectures.stored import first_of, fused
from converters.checkpoints.fields import Fields
from converters.network.config import (
    ActivationKind,
    Attention,
    Block,
    Embedding,
    FeedForward,
    Head,
    NetworkConfig,
    Norm,
)
from converters.network.tensors import Role, Tensor
from converters.network.weights import FloatArray

__all__ = ["FAMILY"]

NAME = "gpt2"
_NAMES = {
    "embed": "wte",
    "positions": "wpe",
    "attention_norm": "h.{i}.ln_1",
    "o": "h.{i}.attn.c_proj",
    "ffn_norm": "h.{i}.ln_2",
    "up": "h.{i}.mlp.c_fc",
    "down": "h.{i}.mlp.c_proj",
    "final_norm": "ln_f",
    "head": "lm_head",
}
_QKV = "h.{i}.attn.c_attn"
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False,),
    "quantization_config": (),
}


def _network(
    *,
    vocabulary: int,
    width: int,
    layers: int,
    heads: int,
    ffn_width: int,
    positions: int,
    epsilon: float,
    tied: bool,
    activation: ActivationKind,
    where: str,
    scaled: bool = True,
    scaled_by_layer: bool = False,
) -> NetworkConfig:
    """`scaled`: scores by the root of the head's size; `scaled_by_layer`: those of layer i by 1 / (i + 1) too."""
    if width % heads:
        raise refused(NAME, where, "width", width, f"a multiple of {heads} heads")
    norm = Norm(epsilon, "layer", bias=True)
    plain = Attention(heads, heads, width // heads, rope=None, bias=True, output_bias=True)
    feed_forward = FeedForward(ffn_width, activation, gated=False, bias=True)
    scale = plain.score_scale if scaled else 1.0
    blocks = tuple(
        Block(
            replace(plain, scale=scale / (i + 1 if scaled_by_layer else 1)),
            feed_forward,
            attention_norm=norm,
            ffn_norm=norm,
        )
        for i in range(layers)
    )
    return NetworkConfig(vocabulary, width, blocks, Head(tied, norm), positions, Embedding(positions=positions))


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json.

    Raises:
        ArchitectureError: an activation or an extra that the network does not describe.
    """
    check_neutral(NAME, config, _NEUTRAL)
    width = config.integer("n_embd")
    return _network(
        vocabulary=config.integer("vocab_size"),
        width=width,
        layers=config.integer("n_layer"),
        heads=config.integer("n_head"),
        ffn_width=config.integer("n_inner", 4 * width),
        positions=config.integer("n_positions", config.integer("n_ctx", 1024)),
        epsilon=config.number("layer_norm_epsilon", 1e-5),
        tied=config.flag("tie_word_embeddings", True),
        activation=activation_of(NAME, config, "activation_function", "gelu_new", tuple(ACTIVATIONS)),
        where=config.where,
        scaled=config.flag("scale_attn_weights", True),
        scaled_by_layer=config.flag("scale_attn_by_inverse_layer_idx", False),
    )


def config_from_gguf(source: GgufSource) -> NetworkConfig:
    """Map the `gpt2.*` metadata.

    Raises:
        ArchitectureError: a key that the network does not describe.
    """
    meta = source.metadata
    known = {
        *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_epsilon", "block_count"),
        *("context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    }
    own = {key.removeprefix(f"{NAME}.") for key in meta.values if key.startswith(f"{NAME}.")}
    if strange := sorted(own - known):
        raise refused(NAME, meta.where, f"{NAME}.{strange[0]}", meta.values[f"{NAME}.{strange[0]}"], "absent")
    return _network(
        vocabulary=source.shapes["token_embd.weight"][0] if "token_embd.weight" in source.shapes else 1,
        width=meta.integer(f"{NAME}.embedding_length"),
        layers=meta.integer(f"{NAME}.block_count"),
        heads=meta.integer(f"{NAME}.attention.head_count"),
        ffn_width=meta.integer(f"{NAME}.feed_forward_length"),
        positions=meta.integer(f"{NAME}.context_length"),
        epsilon=meta.number(f"{NAME}.attention.layer_norm_epsilon"),
        tied="output.weight" not in source.shapes,
        activation="gelu_tanh",
        where=meta.where,
    )


def _find(tensor: Tensor, config: NetworkConfig) -> Source | None:
    if tensor.matmul is None or tensor.layer is None:
        return None
    role, width = tensor.matmul.role, config.width
    if role not in (Role.Q, Role.K, Role.V):
        if tensor.part == "bias":
            return None
        return Source(f"{_NAMES[tensor.stem].format(i=tensor.layer)}.weight", tensor.shape[::-1], part=np.transpose)
    start = (Role.Q, Role.K, Role.V).index(role) * width

    def part(stored: FloatArray) -> FloatArray:
        return stored[..., start : start + width].T  # a bias has one axis

    return Source(f"{_QKV.format(i=tensor.layer)}.{tensor.part}", (*tensor.shape[1:], 3 * width), part=part)


def _tied_head(tensor: Tensor, config: NetworkConfig) -> Source | None:
    """A head of its own is kept as rows, unlike the other matrices."""
    return Source("lm_head.weight") if tensor.stem == "head" else None


FAMILY = Family(
    NAME,
    "GPT-2 124M to 1.5B, DistilGPT2",
    HuggingFaceFormat(
        _NAMES,
        # masks that old checkpoints carry, and a tied head, which the reader compares with the embedding
        unused=(r"h\.\d+\.attn\.(bias|masked_bias)", r"lm_head\.weight"),
        find=first_of(_tied_head, _find),
        prefix="transformer.",
        model_type="gpt2",
        classes=("GPT2LMHeadModel",),
        config=config_from_huggingface,
    ),
    GgufFormat(
        {**GGUF_NAMES, "positions": "position_embd"},
        find=fused({"blk.{i}.attn_qkv": (Role.Q, Role.K, Role.V)}),
        architecture=NAME,
        config=config_from_gguf,
    ),
)
