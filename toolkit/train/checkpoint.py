"""Trained weights as a Hugging Face folder, which the ordinary converter reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from device_runtime.tasks.file import Network
from toolkit.train.network import EPSILON, ROPE_BASE
from toolkit.train.vocabulary import BOS, EOS

__all__ = ["write_folder"]

_LAYER_NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_OTHER_NAMES = {"embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
_CHAT = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"  # prompts as they are


def write_folder(
    folder: Path, shape: Network, weights: Mapping[str, npt.NDArray[np.float32]], vocabulary: bytes, context: int
) -> None:
    """Write config.json, the weights and the tokenizer.

    Args:
        context: positions that the network was trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for name, theirs in _OTHER_NAMES.items():
        if name in weights:  # a tied head has no rows of its own
            tensors[f"{theirs}.weight"] = np.ascontiguousarray(weights[name])
    for name, theirs in _LAYER_NAMES.items():
        for i, tensor in enumerate(weights[name]):
            tensors[f"model.layers.{i}.{theirs}.weight"] = np.ascontiguousarray(tensor)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "tokenizer.model").write_bytes(vocabulary)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(weights["embed"]),
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": context,
        "rms_norm_eps": EPSILON,
        "rope_theta": ROPE_BASE,
        "hidden_act": "silu",
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    settings = {
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": "<unk>",
        "add_bos_token": True,
        "chat_template": _CHAT,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
