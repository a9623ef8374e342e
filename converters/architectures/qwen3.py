"""Qwen3: Llama's layers with a norm for each head of q and k, and a head size apart from the width."""

from __future__ import annotations

from dataclasses import replace

from converters.architectures import llama
from converters.architectures.family import Family, GgufFormat, GgufSource, HuggingFaceFormat, refused
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import Attention, Block, FeedForward, Head, NetworkConfig, Norm

__all__ = ["FAMILY"]

NAME = "qwen3"
_HUGGINGFACE_NAMES = {
    **llama.HUGGINGFACE_NAMES,
    "q_norm": "model.layers.{i}.self_attn.q_norm",
    "k_norm": "model.layers.{i}.self_attn.k_norm",
}
_GGUF_NAMES = {**llama.GGUF_NAMES, "q_norm": "blk.{i}.attn_q_norm", "k_norm": "blk.{i}.attn_k_norm"}
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "num_experts": (0,),
    "quantization_config": (),
}
# What `qwen3.` may have in a GGUF file; a key that is not here may change the network.
_GGUF_KEYS = {
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "block_count", "context_length", "embedding_length", "feed_forward_length"),
    *("rope.freq_base", "rope.scaling.factor", "rope.scaling.finetuned", "rope.scaling.original_context_length"),
    *("rope.scaling.type", "rope.dimension_count", "vocab_size"),
}


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json.

    Raises:
        ArchitectureError: an activation, a sliding window or an extra that the network does not describe.
    """
    if (activation := config.text("hidden_act", "silu")) != "silu":
        raise refused(NAME, config.where, "hidden_act", activation, "silu")
    if config.flag("use_sliding_window", False):
        raise refused(NAME, config.where, "use_sliding_window", True, False)
    llama.check_neutral(NAME, config, _NEUTRAL)  # the size of a window that is not used may be there
    kinds = config.values.get("layer_types", [])
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise refused(NAME, config.where, "layer_types", kinds, "full_attention in every layer")
    heads, head_dim = config.integer("num_attention_heads"), config.integer("head_dim", 128)
    max_context = config.integer("max_position_embeddings", 32768)
    bias = config.flag("attention_bias", False)
    attention = Attention(
        heads,
        config.integer("num_key_value_heads", heads),
        head_dim,
        rope.from_huggingface(config, head_dim, max_context),
        bias=bias,
        output_bias=bias,
    )
    return _network(
        attention,
        config.where,
        vocabulary=config.integer("vocab_size"),
        width=config.integer("hidden_size"),
        layers=config.integer("num_hidden_layers"),
        ffn_width=config.integer("intermediate_size"),
        epsilon=config.number("rms_norm_eps", 1e-6),
        max_context=max_context,
        tied_head=config.flag("tie_word_embeddings", False),
    )


def config_from_gguf(source: GgufSource) -> NetworkConfig:
    """Map the `qwen3.*` metadata.

    Raises:
        ArchitectureError: a key that the network does not describe.
    """
    meta = source.metadata
    own = [key for key in meta.values if key.startswith(f"{NAME}.")]
    if strange := sorted(key for key in own if key[len(NAME) + 1 :] not in _GGUF_KEYS):
        raise refused(NAME, meta.where, strange[0], meta.values[strange[0]], "absent")
    heads, width = meta.integer(f"{NAME}.attention.head_count"), meta.integer(f"{NAME}.embedding_length")
    head_dim = meta.integer(f"{NAME}.attention.key_length", 128)
    if (value_dim := meta.integer(f"{NAME}.attention.value_length", head_dim)) != head_dim:
        raise refused(NAME, meta.where, f"{NAME}.attention.value_length", value_dim, head_dim)
    max_context = meta.integer(f"{NAME}.context_length")
    attention = Attention(
        heads,
        meta.integer(f"{NAME}.attention.head_count_kv", heads),
        head_dim,
        rope.from_gguf(meta, NAME, head_dim, max_context, None),
    )
    rows = source.shapes["token_embd.weight"][0] if "token_embd.weight" in source.shapes else None
    return _network(
        attention,
        meta.where,
        vocabulary=meta.integer(f"{NAME}.vocab_size", rows),
        width=width,
        layers=meta.integer(f"{NAME}.block_count"),
        ffn_width=meta.integer(f"{NAME}.feed_forward_length"),
        epsilon=meta.number(f"{NAME}.attention.layer_norm_rms_epsilon"),
        max_context=max_context,
        tied_head="output.weight" not in source.shapes,
    )


def _network(
    attention: Attention,
    where: str,
    *,
    vocabulary: int,
    width: int,
    layers: int,
    ffn_width: int,
    epsilon: float,
    max_context: int,
    tied_head: bool,
) -> NetworkConfig:
    if attention.heads % attention.kv_heads:
        heads = f"a divisor of {attention.heads} heads"
        raise refused(NAME, where, "number of key-value heads", attention.kv_heads, heads)
    norm = Norm(epsilon)
    block = Block(replace(attention, qk_norm=norm), FeedForward(ffn_width), attention_norm=norm, ffn_norm=norm)
    return NetworkConfig(vocabulary, width, (block,) * layers, Head(tied_head, norm), max_context)


FAMILY = Family(
    NAME,
    "Qwen3 0.6B to 32B, without experts",
    HuggingFaceFormat(
        _HUGGINGFACE_NAMES,
        unused=(r"lm_head\.weight",),  # of a tied head, which the reader compares with the embedding
        model_type="qwen3",
        classes=("Qwen3ForCausalLM",),
        config=config_from_huggingface,
    ),
    GgufFormat(_GGUF_NAMES, architecture=NAME, config=config_from_gguf),
)
