"""The Llama family: Llama 2 and 3, SmolLM, SmolLM2, TinyLlama and others of the same layers."""

from __future__ import annotations

from converters.architectures.family import Family, GgufFormat, GgufSource, HuggingFaceFormat, Source, refused
from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.config import Attention, Block, FeedForward, Head, NetworkConfig, Norm, Rope
from converters.network.tensors import Role, Tensor
from converters.network.weights import FloatArray
from device_runtime.errors import ArchitectureError

__all__ = ["FAMILY", "GGUF_NAMES", "HUGGINGFACE_NAMES", "check_neutral", "divided", "network", "pairs_to_halves"]

NAME = "llama"
GGUF_ARCHITECTURE = "llama"
HUGGINGFACE_NAMES = {
    "embed": "model.embed_tokens",
    "attention_norm": "model.layers.{i}.input_layernorm",
    "q": "model.layers.{i}.self_attn.q_proj",
    "k": "model.layers.{i}.self_attn.k_proj",
    "v": "model.layers.{i}.self_attn.v_proj",
    "o": "model.layers.{i}.self_attn.o_proj",
    "ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "gate": "model.layers.{i}.mlp.gate_proj",
    "up": "model.layers.{i}.mlp.up_proj",
    "down": "model.layers.{i}.mlp.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}
GGUF_NAMES = {
    "embed": "token_embd",
    "attention_norm": "blk.{i}.attn_norm",
    "q": "blk.{i}.attn_q",
    "k": "blk.{i}.attn_k",
    "v": "blk.{i}.attn_v",
    "o": "blk.{i}.attn_output",
    "ffn_norm": "blk.{i}.ffn_norm",
    "gate": "blk.{i}.ffn_gate",
    "up": "blk.{i}.ffn_up",
    "down": "blk.{i}.ffn_down",
    "final_norm": "output_norm",
    "head": "output",
}

# Keys of other families that turn up in converted checkpoints, and the values that leave the network as it is.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "attention_multiplier": (),
    "attn_logit_softcapping": (),
    "clip_qkv": (),
    "embedding_multiplier": (1,),
    "final_logit_softcapping": (),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "no_rope_layers": ([],),
    "num_experts": (0,),
    "num_local_experts": (0, 1),
    "qk_norm": (False,),
    "quantization_config": (),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1,),
    "scale_emb": (1,),
    "sliding_window": (),
    "use_qk_norm": (False,),
    "use_sliding_window": (False,),
}
# All that may come under "llama." in a GGUF file; a key that is not here may change the network.
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
_GGUF_NEUTRAL: dict[str, tuple[object, ...]] = {
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


def network(
    *,
    vocabulary: int,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    ffn_width: int,
    norm_epsilon: float,
    rope: Rope,
    max_context: int,
    tied_head: bool,
    attention_bias: bool = False,
    output_bias: bool = False,
    ffn_bias: bool = False,
) -> NetworkConfig:
    """A network whose layers are all Llama's. The arguments are fields of the parts in `network.config`."""
    norm = Norm(norm_epsilon)
    block = Block(
        attention=Attention(heads, kv_heads, head_dim, rope, bias=attention_bias, output_bias=output_bias),
        feed_forward=FeedForward(ffn_width, bias=ffn_bias),
        attention_norm=norm,
        ffn_norm=norm,
    )
    return NetworkConfig(vocabulary, width, (block,) * layers, Head(tied_head, norm), max_context)


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json (transformers 4 and 5).

    Raises:
        ArchitectureError: an activation, scaling or extra that the network does not describe.
    """
    activation = config.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise refused(NAME, config.where, "hidden_act", activation, "silu")
    check_neutral(NAME, config, _NEUTRAL)
    kinds = config.values.get("layer_types", [])
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise refused(NAME, config.where, "layer_types", kinds, "full_attention in every layer")
    width, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim = config.integer("head_dim") if "head_dim" in config else divided(width, heads, config.where)
    max_context = config.integer("max_position_embeddings", 2048)
    rotary = rope.from_huggingface(config, head_dim, max_context)
    bias = config.flag("attention_bias", False)
    return _checked(
        network(
            vocabulary=config.integer("vocab_size"),
            width=width,
            layers=config.integer("num_hidden_layers"),
            heads=heads,
            kv_heads=config.integer("num_key_value_heads", heads),
            head_dim=head_dim,
            ffn_width=config.integer("intermediate_size"),
            norm_epsilon=config.number("rms_norm_eps", 1e-6),
            rope=rotary,
            max_context=max_context,
            tied_head=config.flag("tie_word_embeddings", False),
            attention_bias=bias,
            output_bias=bias,
            ffn_bias=config.flag("mlp_bias", False),
        ),
        config.where,
    )


def config_from_gguf(source: GgufSource) -> NetworkConfig:
    """Map the `llama.*` metadata; biases and a separate head are there when their tensors are.

    Raises:
        ArchitectureError: experts, a partial RoPE or any key that the network does not describe.
    """
    meta = source.metadata
    prefix = f"{GGUF_ARCHITECTURE}."
    own = {key.removeprefix(prefix) for key in meta.values if key.startswith(prefix)}
    neutral = {k for k, values in _GGUF_NEUTRAL.items() if k in own and meta.values[prefix + k] in values}
    if strange := sorted(own - _GGUF_KEYS - neutral):
        raise refused(NAME, meta.where, prefix + strange[0], meta.values[prefix + strange[0]], "absent")
    if experts := meta.integer("llama.expert_count", 0, least=0):
        raise refused(NAME, meta.where, "llama.expert_count", experts, 0)
    if "token_embd.weight" not in source.shapes:
        vocabulary = meta.integer("llama.vocab_size")  # `bind` will name the missing tensor
    else:
        vocabulary = meta.integer("llama.vocab_size", source.shapes["token_embd.weight"][0])
    width, heads = meta.integer("llama.embedding_length"), meta.integer("llama.attention.head_count")
    if "llama.attention.key_length" in meta:
        head_dim = meta.integer("llama.attention.key_length")
    else:
        head_dim = divided(width, heads, meta.where)
    if meta.integer("llama.attention.value_length", head_dim) != head_dim:
        raise refused(
            NAME, meta.where, "llama.attention.value_length", meta.values["llama.attention.value_length"], head_dim
        )
    max_context = meta.integer("llama.context_length")
    divisors = None
    if "rope_freqs.weight" in source.shapes and source.shapes["rope_freqs.weight"] == (head_dim // 2,):
        divisors = source.read("rope_freqs.weight")
    elif "rope_freqs.weight" in source.shapes:
        raise refused(
            NAME, meta.where, "shape of rope_freqs.weight", source.shapes["rope_freqs.weight"], (head_dim // 2,)
        )
    rotary = rope.from_gguf(meta, GGUF_ARCHITECTURE, head_dim, max_context, divisors)
    return _checked(
        network(
            vocabulary=vocabulary,
            width=width,
            layers=meta.integer("llama.block_count"),
            heads=heads,
            kv_heads=meta.integer("llama.attention.head_count_kv", heads),
            head_dim=head_dim,
            ffn_width=meta.integer("llama.feed_forward_length"),
            norm_epsilon=meta.number("llama.attention.layer_norm_rms_epsilon"),
            rope=rotary,
            max_context=max_context,
            tied_head="output.weight" not in source.shapes,
            attention_bias="blk.0.attn_q.bias" in source.shapes,
            output_bias="blk.0.attn_output.bias" in source.shapes,
            ffn_bias="blk.0.ffn_gate.bias" in source.shapes,
        ),
        meta.where,
    )


def _find_gguf(tensor: Tensor, config: NetworkConfig) -> Source | None:
    """GGUF keeps the rows of q and k as pairs (j, j + head_dim / 2)."""
    if tensor.matmul is None or tensor.matmul.layer is None or tensor.matmul.role not in (Role.Q, Role.K):
        return None
    head_dim = config.blocks[tensor.matmul.layer].attention.head_dim
    name = f"{GGUF_NAMES[tensor.stem].format(i=tensor.layer)}.{tensor.part}"
    return Source(name, part=lambda stored: pairs_to_halves(stored, head_dim))


def pairs_to_halves(tensor: FloatArray, head_dim: int) -> FloatArray:
    """Rows of q or k in pairs (j, j + head_dim / 2) -> in half-split order; (rows, columns), or (rows,) of a bias."""
    rows = tensor.reshape(-1, head_dim // 2, 2, *tensor.shape[1:])  # (heads, pair, which half, columns)
    return rows.swapaxes(1, 2).reshape(tensor.shape)


def check_neutral(family: str, config: Fields, neutral: dict[str, tuple[object, ...]]) -> None:
    """Raise an `ArchitectureError` if a key has a value that would change the network."""
    for key, values in neutral.items():
        value = config.values.get(key)
        if value is not None and value not in values:
            raise refused(family, config.where, key, value, " or ".join(map(repr, values)) or "none")


def divided(width: int, heads: int, where: str) -> int:
    """The head dimension where none is given."""
    if width % heads:
        raise ArchitectureError(
            f"{where}: width {width} does not divide into {heads} heads and no head dimension is given. "
            "The configuration is damaged, or of a variant that is not supported."
        )
    return width // heads


def _checked(config: NetworkConfig, where: str) -> NetworkConfig:
    attention = config.blocks[0].attention
    if attention.heads % attention.kv_heads:
        heads = f"a divisor of {attention.heads} heads"
        raise refused(NAME, where, "number of key-value heads", attention.kv_heads, heads)
    return config


FAMILY = Family(
    NAME,
    "Llama 2 and 3, SmolLM, SmolLM2, TinyLlama",
    HuggingFaceFormat(
        HUGGINGFACE_NAMES,
        # frequencies that old checkpoints carry, and a tied head, which the reader compares with the embedding
        unused=(r".*\.rotary_emb\.inv_freq", r"lm_head\.weight"),
        model_type="llama",
        classes=("LlamaForCausalLM",),
        config=config_from_huggingface,
    ),
    GgufFormat(
        GGUF_NAMES,
        unused=(r"rope_freqs\.weight",),  # `config_from_gguf` has read it
        find=_find_gguf,
        architecture=GGUF_ARCHITECTURE,
        config=config_from_gguf,
    ),
)
