"""Draw random adapters of PEFT on the small checkpoints of every family, and hold the merge against PEFT's logits.

Run by hand, in an environment with torch 2.13, transformers 5.24 and peft 0.21:

    PYTHONPATH=.:tests:tests/converters python tests/converters/draw_adapters.py [--count 60] [--seed 0]

A refusal by name is printed, and is no fault; another exception or other logits are.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from draw_families import Draw, flag, pick
from family_checkpoints import COLUMNS, golden, write_folder
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from converters.checkpoints import open_checkpoint
from converters.checkpoints.lora import merge_adapter
from device_runtime.errors import StonechatError
from tests.support.random_checkpoint import float_logits

_LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODULES = {
    "llama": _LLAMA, "mistral": _LLAMA, "smollm3": _LLAMA, "stablelm": _LLAMA, "granite": _LLAMA, "qwen2": _LLAMA,
    "qwen3": _LLAMA, "gemma": _LLAMA, "gemma2": _LLAMA, "gemma3": _LLAMA, "exaone4": _LLAMA,
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], "phi": ["q_proj", "v_proj", "dense", "fc1", "fc2"],
    "granite4": ["q_proj", "v_proj", "o_proj", "input_linear", "output_linear"],
    "gpt2": ["c_attn", "c_proj", "c_fc", "lm_head"], "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
}  # fmt: skip
NORMS = {"gpt2": "ln_1", "gpt_neox": "input_layernorm", "opt": "self_attn_layer_norm", "exaone4": "q_norm"}


def keys_of(draw: Draw, base: str) -> dict[str, Any]:
    modules = MODULES[base]
    chosen = sorted({str(m) for m in draw.choice(modules, int(draw.integers(1, len(modules) + 1)))})
    keys: dict[str, Any] = dict(r=int(draw.integers(1, 6)), lora_alpha=int(draw.integers(1, 20)), target_modules=chosen)
    keys |= pick(draw, {}, dict(use_rslora=True))
    keys |= pick(draw, {}, {}, dict(use_dora=True))
    if flag(draw):
        keys["rank_pattern"] = {chosen[0]: int(draw.integers(1, 7))}
    if flag(draw):
        keys["alpha_pattern"] = {pick(draw, chosen[-1], rf".*\.1\..*{chosen[-1]}"): int(draw.integers(1, 30))}
    if draw.integers(4) == 0:
        keys["layers_to_transform"] = [1]
    if draw.integers(4) == 0:
        keys["target_modules"] = "all-linear"
    if draw.integers(4) == 0:
        keys["modules_to_save"] = [pick(draw, "lm_head", NORMS.get(base, "input_layernorm"))]
    plain = "use_dora" not in keys and keys["target_modules"] != "all-linear"
    if base in ("llama", "qwen2", "gemma", "gemma3") and plain and draw.integers(4) == 0:
        keys["target_modules"] = [*chosen, pick(draw, "embed_tokens", "lm_head")]
    keys["init_lora_weights"] = pick(draw, True, True, "gaussian", "pissa", "olora")
    return keys


def tried(number: int, seed: int) -> str:
    draw = np.random.default_rng([seed, number])
    base = pick(draw, *MODULES)
    keys = keys_of(draw, base)
    tokens, plain = golden(base)
    torch.manual_seed(number)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = write_folder(folder / "base", base)
        try:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **keys))
            for key, parameter in model.named_parameters():
                if any(part in key for part in ("lora_B", "lora_embedding", "lora_magnitude", "modules_to_save")):
                    parameter.data += (0.1 if "lora_magnitude" in key else 0.3) * torch.randn_like(parameter)
            model.eval()
            with torch.no_grad():
                expected = model(torch.tensor([tokens])).logits[0].numpy()[:, ::COLUMNS]
            model.save_pretrained(folder / "adapter", save_embedding_layers=False)
        except Exception as error:
            print(f"{number} {base}: peft: {type(error).__name__} {str(error)[:120]}", flush=True)
            return "not made"
        try:
            merged = merge_adapter(open_checkpoint(path), folder / "adapter")
            found = float_logits(merged, [], tokens)[:, ::COLUMNS]
        except StonechatError as error:
            print(f"{number} {base}: refused: {str(error).replace(temporary, '')[:230]}; {keys}", flush=True)
            return "refused"
        except Exception as error:
            print(f"{number} {base}: ERROR {type(error).__name__} {str(error)[:200]}; {keys}", flush=True)
            traceback.print_exc(limit=-2)
            return "ERROR"
        size, far = max(1.0, float(np.sqrt((expected**2).mean()))), float(np.abs(found - expected).max())
        if not far < 1e-3 * size:
            print(f"{number} {base}: LOGITS {far:.4f} off, of order {size:.2f}; {keys}", flush=True)
            return "LOGITS"
        return "same" if np.abs(expected - plain).max() > 1e-3 else "changes nothing"


def main() -> int:
    parser = argparse.ArgumentParser(description="random adapters against PEFT")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    results = collections.Counter(tried(number, args.seed) for number in range(args.count))
    print(dict(results))
    return 1 if results["LOGITS"] + results["ERROR"] else 0


if __name__ == "__main__":
    sys.exit(main())
