"""What the configurations of all families have in common: their sizes, and the keys that would change a network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converters.architectures.family import GgufSource, refused
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import (
    ActivationKind,
    Attention,
    Block,
    Embedding,
    FeedForward,
    Head,
    NetworkConfig,
    Norm,
    Rope,
)
from device_runtime.errors import ArchitectureError, CheckpointError

__all__ = [
    "ACTIVATIONS",
    "Sizes",
    "activation_of",
    "check_neutral",
    "gguf_rope",
    "gguf_sizes",
    "huggingface_sizes",
    "sliding_layers",
]

# Keys of config.json that change what a network computes, and the values that leave it as it is. A family names those
# that it maps; the others are refused.
_CHANGES: Mapping[str, tuple[object, ...]] = {
    "attention_multiplier": (),
    "attn_logit_softcapping": (),
    "clip_qkv": (),
    "dim_model_base": (),
    "embedding_multiplier": (1,),
    "final_logit_softcapping": (),
    "hidden_size_per_layer_input": (0,),
    "kv_lora_rank": (),
    "layer_types": (),  # below
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "no_rope_layers": ([],),
    "num_experts": (0,),
    "num_kv_shared_layers": (0,),
    "num_local_experts": (0, 1),
    "n_routed_experts": (0,),
    "position_embedding_type": ("rope",),
    "qk_layernorm": (False,),
    "qk_norm": (False,),
    "quantization_config": (),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1,),
    "scale_depth": (),
    "scale_emb": (1,),
    "sliding_window": (),
    "use_bidirectional_attention": (False,),
    "use_parallel_residual": (False,),
    "use_qk_norm": (False,),
    "use_sliding_window": (False,),
}
# All that may come under the architecture's name in a GGUF file; another key may change the network.
_GGUF_KEYS = {
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "block_count", "context_length", "embedding_length", "expert_count"),
    *("expert_used_count", "feed_forward_length", "rope.dimension_count", "rope.freq_base", "rope.scale_linear"),
    *("rope.scaling.attn_factor", "rope.scaling.factor", "rope.scaling.finetuned"),
    *("rope.scaling.original_context_length", "rope.scaling.type", "rope.scaling.yarn_attn_factor"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_ext_factor"),
    *("rope.scaling.yarn_log_multiplier", "tensor_data_layout", "vocab_size"),
}
# Keys of other families, and of files that are about more than the network, with the values that change nothing.
_GGUF_CHANGES: Mapping[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),  # llama.cpp: 0 stands for one over the root of the head's width
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "expert_group_count": (0,),
    "expert_shared_count": (0,),
    "expert_weights_norm": (False,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),  # none: no embedding of a whole text
    "residual_scale": (0, 1),
    "rope.scaling.alpha": (0,),
    "swin_norm": (False,),
    "use_parallel_residual": (False,),
}
# As transformers spells the functions; its `gelu_new` and `gelu_fast` are the one with tanh.
ACTIVATIONS: Mapping[str, ActivationKind] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
}


@dataclass(frozen=True)
class Sizes:
    """How large the parts of a network are, where all its layers are alike."""

    family: str
    where: str  # file or folder, for messages
    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    max_context: int
    tied: bool

    def attention(self, turns: Rope | None, **kinds: Any) -> Attention:
        """Attention of these sizes; `kinds` are further fields of it."""
        return Attention(self.heads, self.kv_heads, self.head_dim, turns, **kinds)

    def network(
        self, blocks: Block | Iterable[Block], norm: Norm, *, embedding: Embedding | None = None, **head: Any
    ) -> NetworkConfig:
        """The network: one block for all layers or one for each; `head` are further fields of the head.

        Raises:
            ArchitectureError: query heads that cannot share the key heads evenly.
        """
        if self.heads % self.kv_heads:
            expected = f"a divisor of {self.heads} heads"
            raise refused(self.family, self.where, "number of key-value heads", self.kv_heads, expected)
        each = (blocks,) * self.layers if isinstance(blocks, Block) else tuple(blocks)
        return NetworkConfig(
            self.vocabulary, self.width, each, Head(self.tied, norm, **head), self.max_context, embedding or Embedding()
        )

    def plain_block(self, attention: Attention, norm: Norm, *, bias: bool = False) -> Block:
        """A norm before each part, and a gated SiLU: Llama's layer."""
        return Block(attention, FeedForward(self.ffn_width, bias=bias), attention_norm=norm, ffn_norm=norm)


def huggingface_sizes(
    family: str,
    config: Fields,
    *,
    maps: Collection[str] = (),
    tied: bool = False,
    max_context: int = 2048,
    head_dim: int | None = None,
) -> Sizes:
    """The sizes in a config.json.

    Args:
        maps: the keys in `_CHANGES` that the family reads itself.
        tied: whether the head shares the embedding's rows where nothing is said.
        max_context: where nothing is said.
        head_dim: where nothing is said; None: the width divided by the heads.

    Raises:
        ArchitectureError: a key that the network does not describe.
    """
    check_neutral(family, config, {key: values for key, values in _CHANGES.items() if key not in maps})
    width, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if "head_dim" in config:
        head_dim = config.integer("head_dim")
    return Sizes(
        family,
        config.where,
        vocabulary=config.integer("vocab_size"),
        width=width,
        layers=config.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=_divided(width, heads, config.where) if head_dim is None else head_dim,
        ffn_width=config.integer("intermediate_size"),
        max_context=config.integer("max_position_embeddings", max_context),
        tied=config.flag("tie_word_embeddings", tied),
    )


def gguf_sizes(
    family: str, architecture: str, source: GgufSource, *, keys: Collection[str] = (), head_dim: int | None = None
) -> Sizes:
    """The sizes in a GGUF file's metadata; the head is tied where there is no tensor for it.

    Args:
        keys: what the family reads itself of the keys under the architecture's name.
        head_dim: where nothing is said; None: the width divided by the heads.

    Raises:
        ArchitectureError: experts, or a key that the network does not describe.
    """
    meta, prefix = source.metadata, f"{architecture}."
    own = {key.removeprefix(prefix) for key in meta.values if key.startswith(prefix)}
    neutral = {k for k, values in _GGUF_CHANGES.items() if k in own and meta.values[prefix + k] in values}
    if strange := sorted(own - _GGUF_KEYS - set(keys) - neutral):
        raise refused(family, meta.where, prefix + strange[0], meta.values[prefix + strange[0]], "absent")
    if experts := meta.integer(f"{prefix}expert_count", 0, least=0):
        raise refused(family, meta.where, f"{prefix}expert_count", experts, 0)
    rows = source.shapes.get("token_embd.weight", (None,))[0]  # where it is missing, the reader will name the tensor
    width, heads = meta.integer(f"{prefix}embedding_length"), meta.integer(f"{prefix}attention.head_count")
    if f"{prefix}attention.key_length" in meta:
        head_dim = meta.integer(f"{prefix}attention.key_length")
    head_dim = _divided(width, heads, meta.where) if head_dim is None else head_dim
    if (value_dim := meta.integer(f"{prefix}attention.value_length", head_dim)) != head_dim:
        raise refused(family, meta.where, f"{prefix}attention.value_length", value_dim, head_dim)
    return Sizes(
        family,
        meta.where,
        vocabulary=meta.integer(f"{prefix}vocab_size", rows),
        width=width,
        layers=meta.integer(f"{prefix}block_count"),
        heads=heads,
        kv_heads=meta.integer(f"{prefix}attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn_width=meta.integer(f"{prefix}feed_forward_length"),
        max_context=meta.integer(f"{prefix}context_length"),
        tied="output.weight" not in source.shapes,
    )


def gguf_rope(sizes: Sizes, architecture: str, source: GgufSource, *, partial: bool = False) -> Rope:
    """RoPE by a GGUF file's metadata and by the tensors that it may have for it.

    Args:
        partial: whether the family may turn a part of each head only.

    Raises:
        ArchitectureError: a scaling that is not written in `network.rope`.
        CheckpointError: a value that cannot be, or a tensor of another shape.
    """
    meta = source.metadata
    turned = meta.integer(f"{architecture}.rope.dimension_count", sizes.head_dim)
    found = {}
    for name in ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"):
        shape = source.shapes.get(name)
        if shape is None:
            continue
        if shape != (turned // 2,):
            raise refused(sizes.family, meta.where, f"shape of {name}", shape, (turned // 2,))
        found[name] = source.read(name)
    return rope.from_gguf(
        meta,
        architecture,
        sizes.head_dim,
        sizes.max_context,
        found.get("rope_freqs.weight", found.get("rope_factors_short.weight")),
        long_divisors=found.get("rope_factors_long.weight"),
        partial=partial,
    )


def activation_of(family: str, config: Fields, key: str, default: str, known: Collection[str]) -> ActivationKind:
    """The activation function that a key names, out of those that the family may have.

    Raises:
        ArchitectureError: another one.
    """
    name = config.text(key, default)
    kind = ACTIVATIONS.get(name)
    if kind is None or kind not in {ACTIVATIONS[each] for each in known}:
        raise refused(family, config.where, key, name, ", ".join(known))
    return kind


def sliding_layers(family: str, config: Fields, layers: int, default: Sequence[bool]) -> list[bool]:
    """For each layer, whether its attention has the sliding window: `layer_types`, or else `default`.

    Raises:
        ArchitectureError: layers of another kind.
        CheckpointError: not one kind for each layer.
    """
    kinds = config.values.get("layer_types")
    if kinds is None:
        return list(default)
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise CheckpointError(
            f"{config.where}: layer_types is {kinds!r:.80}; expected a list of {layers} kinds, one for each layer. "
            "The configuration is damaged, or of a variant that is not supported."
        )
    if strange := [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]:
        raise refused(family, config.where, "layer_types", strange[0], "full_attention and sliding_attention")
    return [kind == "sliding_attention" for kind in kinds]


def check_neutral(family: str, config: Fields, neutral: Mapping[str, tuple[object, ...]]) -> None:
    """Raise an `ArchitectureError` if a key has a value that would change the network."""
    for key, values in neutral.items():
        value = config.values.get(key)
        if key == "layer_types" and isinstance(value, list) and all(kind == "full_attention" for kind in value):
            continue
        if value is not None and value not in values:
            raise refused(family, config.where, key, value, " or ".join(map(repr, values)) or "none")


def _divided(width: int, heads: int, where: str) -> int:
    """The head dimension where none is given."""
    if width % heads:
        raise ArchitectureError(
            f"{where}: width {width} does not divide into {heads} heads and no head dimension is given. "
            "The configuration is damaged, or of a variant that is not supported."
        )
    return width // heads
