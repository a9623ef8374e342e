"""Peak memory of converting a checkpoint of 1.1 billion parameters.

    python benchmarks/large_checkpoint.py [--keep]

Writes a synthetic checkpoint with TinyLlama's shapes (22 layers, width 2,048, vocabulary 32,000; 2.2 GB of bfloat16
noise) to build/, converts it with `--fast` in a process of its own and prints that process's peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "build" / "synthetic-1.1b"
TOKENIZER_FROM = ROOT / "tests" / "data" / "checkpoints" / "mha-untied-sharded"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def main() -> None:
    """Make, convert, print, clean up."""
    parser = argparse.ArgumentParser(description="peak memory of a large conversion")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoint and the bundle")
    args = parser.parse_args()
    parameters = make_checkpoint()
    bundle = ROOT / "build" / "synthetic-1.1b-pi"
    command = [sys.executable, "-m", "toolkit", "convert", str(CHECKPOINT), "--profile", "pi", "--context", "512"]
    started_s = time.monotonic()
    subprocess.run([*command, "--fast", "-o", str(bundle)], check=True, cwd=ROOT)
    seconds = time.monotonic() - started_s
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    size_gb = sum(f.stat().st_size for f in bundle.iterdir()) / 1e9
    print(f"{parameters / 1e9:.2f} billion parameters: peak {peak_gb:.2f} GB, {seconds:.0f} s, bundle {size_gb:.2f} GB")
    if not args.keep:
        shutil.rmtree(CHECKPOINT)
        shutil.rmtree(bundle)


def make_checkpoint() -> int:
    """Write the folder, one tensor at a time; returns the number of parameters."""
    CHECKPOINT.mkdir(parents=True, exist_ok=True)
    (CHECKPOINT / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (TOKENIZER_FROM / name).exists():
            shutil.copy(TOKENIZER_FROM / name, CHECKPOINT / name)
    shapes = tensor_shapes()
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * 2
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    with open(CHECKPOINT / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            if name.endswith("norm.weight"):
                values = np.ones(shape, np.float32)
            else:
                values = random.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())  # bfloat16 is the upper half
    return offset // 2


def tensor_shapes() -> dict[str, list[int]]:
    """Names and shapes as transformers writes them."""
    c = CONFIG
    width, ffn = c["hidden_size"], c["intermediate_size"]
    kv_width = width // c["num_attention_heads"] * c["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": [c["vocab_size"], width]}
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = [width]
        for name, rows in (("q", width), ("k", kv_width), ("v", kv_width), ("o", width)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = [rows, width]
        shapes[f"{layer}.post_attention_layernorm.weight"] = [width]
        shapes[f"{layer}.mlp.gate_proj.weight"] = [ffn, width]
        shapes[f"{layer}.mlp.up_proj.weight"] = [ffn, width]
        shapes[f"{layer}.mlp.down_proj.weight"] = [width, ffn]
    return shapes | {"model.norm.weight": [width], "lm_head.weight": [c["vocab_size"], width]}


if __name__ == "__main__":
    main()
