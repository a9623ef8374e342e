"""Make tests/data/adapters: small LoRA adapters as PEFT saves them, and the logits that PEFT computes with them.

Run by hand, in an environment with torch, transformers and peft 0.21:

    PYTHONPATH=.:tests:tests/converters python tests/converters/make_adapters.py

The base models are those of family_checkpoints.py.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from family_checkpoints import COLUMNS, DATA, golden, write_folder
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

FOLDER = DATA / "adapters"
# name -> (base, arguments of LoraConfig)
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"])),
    "rslora": ("llama", dict(r=4, lora_alpha=3, use_rslora=True, target_modules=["o_proj", "gate_proj"])),
    "patterns": ("qwen2", dict(
        r=2, lora_alpha=4, target_modules=["q_proj", "k_proj", "up_proj"],
        alpha_pattern={"k_proj": 9, "layers.0.mlp.up_proj": 1},
        rank_pattern={"layers.1.self_attn.q_proj": 3})),
    "dora": ("llama", dict(r=2, lora_alpha=4, use_dora=True, target_modules=["q_proj", "down_proj"])),
    "modules-to-save": ("llama", dict(r=2, lora_alpha=4, target_modules=["q_proj"], modules_to_save=["lm_head"])),
    "tied-head": ("qwen2", dict(r=2, lora_alpha=4, target_modules=["lm_head", "v_proj"])),
    "tied-embedding": ("qwen2", dict(r=2, lora_alpha=4, target_modules=["embed_tokens", "v_proj"])),
    "tied-saved": ("qwen2", dict(r=2, lora_alpha=4, target_modules=["v_proj"], modules_to_save=["embed_tokens"])),
    "fused": ("phi3", dict(r=2, lora_alpha=4, target_modules=["qkv_proj", "gate_up_proj"])),
    "conv1d": ("gpt2", dict(r=2, lora_alpha=4, fan_in_fan_out=True, target_modules=["c_attn", "c_fc"])),
    "conv1d-dora": ("gpt2", dict(
        r=2, lora_alpha=4, fan_in_fan_out=True, use_dora=True, target_modules=["c_attn", "c_proj"])),
    "neox": ("gpt_neox", dict(r=2, lora_alpha=4, target_modules=["query_key_value"])),
}  # fmt: skip


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    logits = {}
    for name, (base, keys) in ADAPTERS.items():
        torch.manual_seed(5)
        tokens, plain = golden(base)
        with tempfile.TemporaryDirectory() as folder:
            path = write_folder(Path(folder) / "base", base)
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **keys))
        for key, parameter in model.named_parameters():
            if "lora_B" in key or "lora_embedding" in key or "lora_magnitude" in key or "modules_to_save" in key:
                scale = 0.1 if "lora_magnitude" in key else 0.3
                parameter.data += scale * torch.randn_like(parameter)
        model.eval()
        with torch.no_grad():
            found = model(torch.tensor([tokens])).logits[0].numpy()[:, ::COLUMNS]
        model.save_pretrained(FOLDER / name, save_embedding_layers=False)
        (FOLDER / name / "README.md").unlink(missing_ok=True)
        path = FOLDER / name / "adapter_config.json"
        config = json.loads(path.read_text()) | {"base_model_name_or_path": "base"}
        path.write_text(json.dumps(config | {"target_modules": sorted(config["target_modules"])}, indent=1) + "\n")
        logits[name] = found.astype(np.float32)
        merged = model.merge_and_unload()
        with torch.no_grad():
            after = merged(torch.tensor([tokens])).logits[0].numpy()[:, ::COLUMNS]
        change, differs = np.abs(found - plain).mean(), np.abs(found - after).max()
        print(f"{name}: changes logits by {change:.2f}; merged by PEFT they differ by {differs:.6f}")
    np.savez_compressed(FOLDER / "logits.npz", **logits)


if __name__ == "__main__":
    main()
