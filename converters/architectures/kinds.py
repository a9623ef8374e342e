"""What kind of model a configuration is of, where no family has it: said in the refusal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["kind_of"]

# What it is -> keys of config.json, or of GGUF metadata without the architecture's name before them, that say so.
_KINDS: Mapping[str, tuple[str, ...]] = {
    "a model that sees pictures": (
        *("vision_config", "image_token_id", "image_token_index", "mm_vision_tower", "has_vision_encoder"),
        *("img_processor", "vision.block_count"),
    ),
    "a model that listens": ("audio_config", "audio_token_id", "num_mel_bins", "has_audio_encoder"),
    "a mixture of experts": (
        *("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size", "num_experts_per_tok"),
        "expert_count",
    ),
    "a model with state-space layers": ("ssm_cfg", "state_size", "mamba_d_state", "ssm.state_size", "mamba_expand"),
    "a model with linear attention": ("linear_num_key_heads", "linear_conv_kernel_dim"),
    "a model with short convolutions": ("conv_L_cache", "shortconv.l_cache"),
    "a model with latent attention": ("kv_lora_rank", "attention.kv_lora_rank"),
    "a model with embeddings in every layer": ("hidden_size_per_layer_input", "embedding_length_per_layer_input"),
    "a recurrent model": ("head_size_divisor", "wkv.head_size"),
}


def kind_of(values: Mapping[str, Any]) -> str:
    """In words, with the key that says so and its value; empty where nothing says it."""
    text = values.get("text_config")  # of models that see or listen as well
    for kind, keys in _KINDS.items():
        for key in keys:
            value = values.get(key, text.get(key) if isinstance(text, Mapping) else None)
            if value is None or value is False or value in (0, "", [], {}):
                continue
            shown = f" {value}" if isinstance(value, int | float | str) and not isinstance(value, bool) else ""
            return f"{kind}: it has {key}{shown}"
    return ""
