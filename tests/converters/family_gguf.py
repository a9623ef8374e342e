"""The random checkpoints of family_checkpoints.py as GGUF files, laid out as llama.cpp's converter does (tests only).

What it does to each family: q and k of Llama's kin become pairs, Gemma's gains get their 1, GPT-2's matrices are
transposed, GPT-NeoX's q, k and v are sorted, Phi-3's stay fused, and frequencies of RoPE become divisors.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from family_checkpoints import VARIANTS, weights_of

from tests.support.gguf_files import add_tokenizer, permuted
from tests.support.random_checkpoint import CHECKPOINTS

__all__ = ["ARCHITECTURES", "NOT_IN_GGUF", "write_family_gguf"]

# model_type -> general.architecture
ARCHITECTURES = {
    "llama": "llama", "smollm3": "smollm3", "stablelm": "stablelm", "granite": "granite",
    "granitemoehybrid": "granite", "minicpm": "minicpm", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3",
    "phi": "phi2", "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3", "exaone4": "exaone4",
    "gpt2": "gpt2", "gpt_neox": "gptneox",
}  # fmt: skip
# Variants that a GGUF file cannot describe, or that llama.cpp does not have.
NOT_IN_GGUF = {
    "mistral", "smollm3 with a window", "qwen2 with a window", "qwen3 with a window", "opt", "gemma3, older",
    "gemma2 with a scale of its own",
}  # fmt: skip
_PERMUTED = {"llama", "smollm3", "granite", "granitemoehybrid", "minicpm"}
_POST_NORMS = {"gemma2", "gemma3_text", "exaone4"}
# part of a name in Hugging Face's checkpoint -> in GGUF
_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.dense": "attn_output",
    "self_attn.qkv_proj": "attn_qkv", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "mlp.gate_up_proj": "ffn_up", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
    "shared_mlp.output_linear": "ffn_down", "ln_1": "attn_norm", "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    "attention.query_key_value": "attn_qkv", "attention.dense": "attn_output", "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}  # fmt: skip
_OUTSIDE = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "model.final_layernorm": "output_norm",
    "lm_head": "output", "transformer.wte": "token_embd", "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm", "gpt_neox.embed_in": "token_embd", "gpt_neox.final_layer_norm": "output_norm",
    "embed_out": "output",
}  # fmt: skip


def write_family_gguf(path: Path, variant: str, *, name: str = "random") -> Path:
    """One of VARIANTS, in float32.

    Args:
        name: `general.name`; llama.cpp knows some models by it.
    """
    config, kind = VARIANTS[variant]["config"], VARIANTS[variant]["config"]["model_type"]
    writer = gguf.GGUFWriter(path, ARCHITECTURES[kind])
    writer.add_name(name)
    _metadata(writer, config, kind)
    add_tokenizer(writer, CHECKPOINTS / "gqa-tied" / "tokenizer.json", "smollm", {"bos": 0, "eos": 1})
    for stored, values in weights_of(VARIANTS[variant]["shapes"]).items():
        for new, part in _converted(stored, values, config, kind):
            writer.add_tensor(new, np.ascontiguousarray(part, np.float32))
    for new, part in _rope_tensors(config):
        writer.add_tensor(new, part)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _metadata(writer: gguf.GGUFWriter, c: dict[str, Any], kind: str) -> None:
    if kind == "gpt2":
        writer.add_block_count(c["n_layer"])
        writer.add_context_length(c["n_positions"])
        writer.add_embedding_length(c["n_embd"])
        writer.add_feed_forward_length(4 * c["n_embd"])
        writer.add_head_count(c["n_head"])
        writer.add_layer_norm_eps(c["layer_norm_epsilon"])
        return
    heads, width = c["num_attention_heads"], c["hidden_size"]
    head_dim, parameters = c.get("head_dim") or width // heads, c.get("rope_parameters") or {}
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(
        c["shared_intermediate_size"] if kind == "granitemoehybrid" else c["intermediate_size"]
    )
    writer.add_head_count(heads)
    if kind != "gpt_neox":
        writer.add_head_count_kv(c["num_key_value_heads"])
    if "rms_norm_eps" in c:
        writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    else:
        writer.add_layer_norm_eps(c["layer_norm_eps"])
    if kind in ("qwen3", "gemma", "gemma2", "gemma3_text"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    full = parameters.get("full_attention", parameters)
    writer.add_rope_freq_base(full.get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(int(head_dim * full.get("partial_rotary_factor", 1.0)))
    if "sliding_attention" in parameters:
        writer.add_float32(f"{ARCHITECTURES[kind]}.rope.freq_base_swa", parameters["sliding_attention"]["rope_theta"])
    if full.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])
    if kind == "phi3":
        writer.add_sliding_window(c["sliding_window"] or 0)
        original = c["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
        if "long_factor" in parameters:
            scale = c["max_position_embeddings"] / original
            writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
    elif kind in ("gemma2", "gemma3_text") or (kind == "exaone4" and c["sliding_window"]):
        writer.add_sliding_window(c["sliding_window"])
        if kind == "exaone4":
            writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in c["layer_types"]])
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(c["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(c["final_logit_softcapping"])
    if kind in ("granite", "granitemoehybrid"):
        writer.add_attention_scale(c["attention_multiplier"])
        writer.add_embedding_scale(c["embedding_multiplier"])
        writer.add_residual_scale(c["residual_multiplier"])
        writer.add_logit_scale(c["logits_scaling"])
        if kind == "granitemoehybrid" and c["position_embedding_type"] != "rope":
            writer.add_rope_scaling_finetuned(False)
    if kind == "minicpm":
        writer.add_embedding_scale(c["scale_emb"])
        writer.add_residual_scale(c["scale_depth"] / c["num_hidden_layers"] ** 0.5)
        writer.add_logit_scale(width / c["dim_model_base"])
    if kind == "gpt_neox" or (kind == "stablelm" and c["use_parallel_residual"]):
        writer.add_parallel_residual(c["use_parallel_residual"])


def _converted(name: str, values: np.ndarray, c: dict[str, Any], kind: str) -> list[tuple[str, np.ndarray]]:
    stem, _, part = name.rpartition(".")
    layer = re.fullmatch(r"(?:model|transformer|gpt_neox)\.(?:layers|h)\.(\d+)\.(.*)", stem)
    if kind.startswith("gemma") and "norm" in stem:
        values = values + 1
    if layer is None:
        return [(f"{_OUTSIDE[stem]}.{part}", values)]
    inner, heads = layer[2], c.get("num_attention_heads", c.get("n_head"))
    if inner == "post_attention_layernorm" and kind in _POST_NORMS:
        return [(f"blk.{layer[1]}.post_attention_norm.{part}", values)]
    if inner == "shared_mlp.input_linear":
        gate, up = np.split(values, 2)
        return [(f"blk.{layer[1]}.ffn_gate.{part}", gate), (f"blk.{layer[1]}.ffn_up.{part}", up)]
    if kind in _PERMUTED and inner in ("self_attn.q_proj", "self_attn.k_proj"):
        values = permuted(values, heads if "q_proj" in inner else c["num_key_value_heads"])
    if kind == "gpt2" and values.ndim == 2:
        values = values.T
    if inner == "attention.query_key_value":
        split = values.reshape(heads, 3, -1, *values.shape[1:])
        values = np.concatenate([split[:, i].reshape(-1, *values.shape[1:]) for i in range(3)])
    return [(f"blk.{layer[1]}.{_LAYER[inner]}.{part}", values)]


def _rope_tensors(c: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    parameters = c.get("rope_parameters") or {}
    if "long_factor" in parameters:
        return [
            (f"rope_factors_{length}.weight", np.array(parameters[f"{length}_factor"], np.float32))
            for length in ("long", "short")
        ]
    if parameters.get("rope_type") != "llama3":
        return []
    dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    low, high, factor = parameters["low_freq_factor"], parameters["high_freq_factor"], parameters["factor"]
    original = parameters["original_max_position_embeddings"]
    divisors = []
    for j in range(0, dim, 2):
        wave = 2 * math.pi * parameters["rope_theta"] ** (j / dim)
        smooth = (original / wave - low) / (high - low)
        if wave < original / high:
            divisors.append(1.0)
        elif wave > original / low:
            divisors.append(factor)
        else:
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return [("rope_freqs.weight", np.array(divisors, np.float32))]
