"""The Llama family: Llama 2 and 3, SmolLM, SmolLM2, TinyLlama and others of the same layers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from converters.checkpoints.fields import Fields
from converters.network import rope
from converters.network.decoder import NetworkConfig
from device_runtime.errors import ArchitectureError

if TYPE_CHECKING:
    from converters.architectures import GgufSource

__all__ = [
    "GGUF_ARCHITECTURE",
    "GGUF_UNUSED",
    "HUGGINGFACE_CLASSES",
    "HUGGINGFACE_MODEL_TYPE",
    "NAME",
    "config_from_gguf",
    "config_from_huggingface",
    "from_gguf",
    "gguf_name",
    "huggingface_name",
    "huggingface_unused",
]

FloatArray = npt.NDArray[np.float32]

NAME = "llama"
HUGGINGFACE_MODEL_TYPE = "llama"
HUGGINGFACE_CLASSES = ("LlamaForCausalLM",)
GGUF_ARCHITECTURE = "llama"
GGUF_UNUSED = ("rope_freqs.weight",)

# canonical -> (Hugging Face, GGUF), outside the layers and inside them
_NAMES = {
    "embed": ("model.embed_tokens", "token_embd"),
    "final_norm": ("model.norm", "output_norm"),
    "head": ("lm_head", "output"),
}
_LAYER_NAMES = {
    "attention_norm": ("input_layernorm", "attn_norm"),
    "q": ("self_attn.q_proj", "attn_q"),
    "k": ("self_attn.k_proj", "attn_k"),
    "v": ("self_attn.v_proj", "attn_v"),
    "o": ("self_attn.o_proj", "attn_output"),
    "ffn_norm": ("post_attention_layernorm", "ffn_norm"),
    "gate": ("mlp.gate_proj", "ffn_gate"),
    "up": ("mlp.up_proj", "ffn_up"),
    "down": ("mlp.down_proj", "ffn_down"),
}
_IN_LAYER = re.compile(r"layers\.(\d+)\.(\w+)\.(weight|bias)")

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
# All that may stand under "llama." in a GGUF file; a key that is not here may change the network.
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


def config_from_huggingface(config: Fields) -> NetworkConfig:
    """Map config.json (transformers 4 and 5).

    Raises:
        ArchitectureError: an activation, scaling or extra that the network does not describe.
    """
    activation = config.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise _refused(config.where, "hidden_act", activation, "silu")
    for key, neutral in _NEUTRAL.items():
        value = config.values.get(key)
        if value is not None and value not in neutral:
            raise _refused(config.where, key, value, " or ".join(map(repr, neutral)) or "none")
    kinds = config.values.get("layer_types", [])
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise _refused(config.where, "layer_types", kinds, "full_attention in every layer")
    width, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim = config.integer("head_dim") if "head_dim" in config else _divided(width, heads, config.where)
    max_context = config.integer("max_position_embeddings", 2048)
    rotary = rope.from_huggingface(config, head_dim, max_context)
    bias = config.flag("attention_bias", False)
    return _checked(
        NetworkConfig(
            vocabulary=config.integer("vocab_size"),
            width=width,
            layers=config.integer("num_hidden_layers"),
            heads=heads,
            kv_heads=config.integer("num_key_value_heads", heads),
            head_dim=head_dim,
            ffn_width=config.integer("intermediate_size"),
            norm_epsilon=config.number("rms_norm_eps", 1e-6),
            rope_frequencies=rotary.frequencies,
            rope_magnitude=rotary.magnitude,
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
        raise _refused(meta.where, prefix + strange[0], meta.values[prefix + strange[0]], "absent")
    if experts := meta.integer("llama.expert_count", 0, least=0):
        raise _refused(meta.where, "llama.expert_count", experts, 0)
    if "token_embd.weight" not in source.shapes:
        vocabulary = meta.integer("llama.vocab_size")  # `bind` will name the missing tensor
    else:
        vocabulary = meta.integer("llama.vocab_size", source.shapes["token_embd.weight"][0])
    width, heads = meta.integer("llama.embedding_length"), meta.integer("llama.attention.head_count")
    if "llama.attention.key_length" in meta:
        head_dim = meta.integer("llama.attention.key_length")
    else:
        head_dim = _divided(width, heads, meta.where)
    if meta.integer("llama.attention.value_length", head_dim) != head_dim:
        raise _refused(
            meta.where, "llama.attention.value_length", meta.values["llama.attention.value_length"], head_dim
        )
    max_context = meta.integer("llama.context_length")
    divisors = None
    if "rope_freqs.weight" in source.shapes and source.shapes["rope_freqs.weight"] == (head_dim // 2,):
        divisors = source.read("rope_freqs.weight")
    elif "rope_freqs.weight" in source.shapes:
        raise _refused(meta.where, "shape of rope_freqs.weight", source.shapes["rope_freqs.weight"], (head_dim // 2,))
    rotary = rope.from_gguf(meta, GGUF_ARCHITECTURE, head_dim, max_context, divisors)
    return _checked(
        NetworkConfig(
            vocabulary=vocabulary,
            width=width,
            layers=meta.integer("llama.block_count"),
            heads=heads,
            kv_heads=meta.integer("llama.attention.head_count_kv", heads),
            head_dim=head_dim,
            ffn_width=meta.integer("llama.feed_forward_length"),
            norm_epsilon=meta.number("llama.attention.layer_norm_rms_epsilon"),
            rope_frequencies=rotary.frequencies,
            rope_magnitude=rotary.magnitude,
            max_context=max_context,
            tied_head="output.weight" not in source.shapes,
            attention_bias="blk.0.attn_q.bias" in source.shapes,
            output_bias="blk.0.attn_output.bias" in source.shapes,
            ffn_bias="blk.0.ffn_gate.bias" in source.shapes,
        ),
        meta.where,
    )


def huggingface_name(canonical: str) -> str:
    """`layers.0.q.weight` -> `model.layers.0.self_attn.q_proj.weight`."""
    return _name(canonical, 0, "model.layers")


def huggingface_unused(name: str, config: NetworkConfig) -> bool:
    """Frequencies that old checkpoints carry, and a tied head (which the reader compares with the embedding)."""
    return name.endswith(".rotary_emb.inv_freq") or (config.tied_head and name == huggingface_name("head.weight"))


def gguf_name(canonical: str) -> str:
    """`layers.0.q.weight` -> `blk.0.attn_q.weight`."""
    return _name(canonical, 1, "blk")


def from_gguf(canonical: str, tensor: FloatArray, config: NetworkConfig) -> FloatArray:
    """GGUF keeps the rows of q and k as pairs (j, j + head_dim / 2); back to half-split order."""
    match = _IN_LAYER.fullmatch(canonical)
    if match is None or match[2] not in ("q", "k"):
        return tensor
    heads = config.heads if match[2] == "q" else config.kv_heads
    rows = tensor.reshape(heads, config.head_dim // 2, 2, -1)  # (heads, pair, which half, columns)
    return rows.swapaxes(1, 2).reshape(tensor.shape)


def _name(canonical: str, column: int, layers: str) -> str:
    match = _IN_LAYER.fullmatch(canonical)
    if match is not None:
        return f"{layers}.{match[1]}.{_LAYER_NAMES[match[2]][column]}.{match[3]}"
    stem, _, kind = canonical.rpartition(".")
    return f"{_NAMES[stem][column]}.{kind}"


def _divided(width: int, heads: int, where: str) -> int:
    if width % heads:
        raise ArchitectureError(
            f"{where}: width {width} does not divide into {heads} heads and no head dimension is given. "
            "The configuration is damaged, or of a variant that is not supported."
        )
    return width // heads


def _checked(config: NetworkConfig, where: str) -> NetworkConfig:
    if config.heads % config.kv_heads:
        raise _refused(where, "number of key-value heads", config.kv_heads, f"a divisor of {config.heads} heads")
    return config


def _refused(where: str, key: str, found: object, expected: object) -> ArchitectureError:
    shown = str(found)[:80]
    return ArchitectureError(
        f"{where}: {key} is {shown}; the {NAME} network is described for {expected} only. "
        "Ignoring it would change what the model computes: use a checkpoint without it."
    )
