"""Make tests/data/families.json and families.npz: small random checkpoints of every family, and transformers' logits.

Run by hand, in an environment with torch 2.13 and transformers 5.24:

    PYTHONPATH=.:tests:tests/converters python tests/converters/make_families.py

Weights follow from the tensors' names (family_checkpoints.py), so that only configurations, shapes and logits are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from family_checkpoints import COLUMNS, DATA, weights_of

LENGTH = 20
BASE: dict[str, Any] = dict(
    vocab_size=384, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=None,
)  # fmt: skip
LONG = [1.0 + 0.5 * i for i in range(6)]
SHORT = [1.0 + 0.1 * i for i in range(6)]


def longrope(long: list[float], short: list[float], **more: Any) -> dict[str, Any]:
    return dict(rope_type="longrope", rope_theta=1000.0, long_factor=long, short_factor=short, **more)


LLAMA3 = dict(
    rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
# name -> (class of transformers, its configuration)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", BASE | dict(tie_word_embeddings=False)),
    "mistral": ("Mistral", BASE | dict(sliding_window=6, head_dim=16)),
    "smollm3": ("SmolLM3", BASE | dict(num_hidden_layers=4)),
    "smollm3 with a window": (
        "SmolLM3", BASE | dict(no_rope_layer_interval=2, use_sliding_window=True, sliding_window=5)),
    "stablelm": ("StableLm", BASE | dict(use_qkv_bias=True, partial_rotary_factor=0.5)),
    "stablelm, parallel": ("StableLm", BASE | dict(use_parallel_residual=True,
                                                  partial_rotary_factor=0.5)),
    "granite": ("Granite", BASE | dict(
        embedding_multiplier=6.0, residual_multiplier=0.4, logits_scaling=2.0, attention_multiplier=0.2,
        tie_word_embeddings=True)),
    "granite4": ("GraniteMoeHybrid", BASE | dict(
        embedding_multiplier=6.0, residual_multiplier=0.4, logits_scaling=2.0, attention_multiplier=0.2,
        num_local_experts=0, num_experts_per_tok=0, shared_intermediate_size=80, position_embedding_type="rope",
        layer_types=["full_attention"] * 2, mamba_n_heads=4, mamba_expand=2, tie_word_embeddings=True)),
    "granite4 without RoPE": ("GraniteMoeHybrid", BASE | dict(
        num_local_experts=0, num_experts_per_tok=0, shared_intermediate_size=80, position_embedding_type=None,
        layer_types=["full_attention"] * 2, mamba_n_heads=4, mamba_expand=2, attention_multiplier=0.3)),
    "qwen2": ("Qwen2", BASE | dict(tie_word_embeddings=True)),
    "qwen2 with a window": ("Qwen2", BASE | dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)),
    "qwen3": ("Qwen3", BASE | dict(head_dim=16, tie_word_embeddings=True)),
    "qwen3 with a window": ("Qwen3", BASE | dict(
        head_dim=16, use_sliding_window=True, sliding_window=5, max_window_layers=1)),
    "phi3": ("Phi3", BASE | dict(sliding_window=7)),
    "phi3, LongRoPE, short": ("Phi3", BASE | dict(
        original_max_position_embeddings=32, rope_parameters=longrope(LONG, SHORT))),
    "phi3, LongRoPE, long": ("Phi3", BASE | dict(
        original_max_position_embeddings=16, rope_parameters=longrope(LONG, SHORT))),
    "phi4-mini": ("Phi3", BASE | dict(
        hidden_size=64, original_max_position_embeddings=32, tie_word_embeddings=True, partial_rotary_factor=0.75,
        rope_parameters=longrope(LONG, SHORT, partial_rotary_factor=0.75))),
    "phi": ("Phi", BASE | dict(num_key_value_heads=4, partial_rotary_factor=0.5)),
    "gemma": ("Gemma", BASE | dict(head_dim=16)),
    "gemma2": ("Gemma2", BASE | dict(
        head_dim=16, sliding_window=5, query_pre_attn_scalar=16, attn_logit_softcapping=5.0,
        final_logit_softcapping=8.0)),
    "gemma2 with a scale of its own": ("Gemma2", BASE | dict(
        head_dim=16, sliding_window=5, query_pre_attn_scalar=12, attn_logit_softcapping=None,
        final_logit_softcapping=None)),
    "gemma3": ("Gemma3", BASE | dict(
        num_hidden_layers=7, head_dim=16, sliding_window=5, query_pre_attn_scalar=16, rope_parameters={
            "full_attention": dict(rope_type="linear", factor=4.0, rope_theta=5000.0),
            "sliding_attention": dict(rope_type="default", rope_theta=300.0)})),
    "exaone4": ("Exaone4", BASE | dict(
        sliding_window=None, layer_types=["full_attention"] * 2, rope_parameters=LLAMA3, tie_word_embeddings=True)),
    "exaone4 with windows": ("Exaone4", BASE | dict(num_hidden_layers=4, sliding_window=5, sliding_window_pattern=4)),
    "gpt2": ("GPT2", dict(vocab_size=384, n_embd=48, n_layer=2, n_head=4, n_positions=64, bos_token_id=0,
                          eos_token_id=1)),
    "gpt_neox": ("GPTNeoX", BASE | dict(rotary_pct=0.5)),
    "gpt_neox, one after the other": ("GPTNeoX", BASE | dict(rotary_pct=0.5, use_parallel_residual=False)),
    "opt": ("OPT", dict(vocab_size=384, hidden_size=48, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
                        max_position_embeddings=64, word_embed_proj_dim=48, bos_token_id=0, eos_token_id=1)),
}  # fmt: skip


def minicpm(granite: dict[str, Any]) -> dict[str, Any]:
    """MiniCPM's own spelling of a Granite network whose scores have the usual scale."""
    drop = ("attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier")
    config = {key: value for key, value in granite.items() if key not in drop}
    return config | dict(
        model_type="minicpm", architectures=["MiniCPMForCausalLM"], scale_emb=6.0, scale_depth=0.4 * 2**0.5,
        dim_model_base=24,
    )  # fmt: skip


def old_gemma3(config: dict[str, Any]) -> dict[str, Any]:
    """As checkpoints of transformers 4 have it."""
    drop = ("rope_parameters", "layer_types", "dtype")
    config = {key: value for key, value in config.items() if key not in drop}
    return config | dict(
        rope_theta=5000.0, rope_local_base_freq=300.0, rope_scaling=dict(rope_type="linear", factor=4.0),
        sliding_window_pattern=6, torch_dtype="float32",
    )  # fmt: skip


# name -> (whose tensors and logits these are, the other spelling)
SPELLINGS: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "minicpm": ("granite, the usual scale", minicpm),
    "gemma3, older": ("gemma3", old_gemma3),
}
MODELS["granite, the usual scale"] = (
    "Granite", BASE | dict(embedding_multiplier=6.0, residual_multiplier=0.4, logits_scaling=2.0,
                           attention_multiplier=12**-0.5, tie_word_embeddings=True))  # fmt: skip


def main() -> None:
    tokens = np.random.default_rng(17).integers(2, 384, LENGTH)
    variants, logits = {}, {"tokens": tokens}
    for name, (model_name, keys) in MODELS.items():
        config_class = getattr(transformers, f"{model_name}{'TextConfig' if model_name == 'Gemma3' else 'Config'}")
        head = {"GPT2": "GPT2LMHeadModel"}.get(model_name, f"{model_name}ForCausalLM")
        config = config_class(**keys)
        config._attn_implementation = "eager"  # sdpa leaves out Gemma 2's caps
        model = getattr(transformers, head)(config).eval().float()
        state = model.state_dict()
        tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
        shapes = {
            key: list(value.shape) for key, value in state.items() if key not in tied and value.is_floating_point()
        }
        shapes = {key: shape for key, shape in shapes.items() if "inv_freq" not in key}
        made = {key: torch.from_numpy(value) for key, value in weights_of(shapes).items()}
        missing, unexpected = model.load_state_dict(made, strict=False)
        assert not unexpected and set(missing) <= tied, (missing, unexpected)
        model.tie_weights()
        with torch.no_grad():
            found = model(torch.from_numpy(tokens)[None]).logits[0].numpy().astype(np.float32)
        config.architectures = [head]
        written = json.loads(config.to_json_string(use_diff=True))
        variants[name] = {"config": written | {"dtype": "float32"}, "shapes": shapes}
        logits[name] = found[:, ::COLUMNS]
        print(f"{name}: logits of order {np.sqrt((found**2).mean()):.2f}")
    for name, (of, spell) in SPELLINGS.items():
        variants[name] = {**variants[of], "config": spell(variants[of]["config"]), "logits_of": of}
    lines = [f"{json.dumps(name)}: {json.dumps(variant)}" for name, variant in variants.items()]
    (DATA / "families.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    np.savez_compressed(DATA / "families.npz", **logits)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
