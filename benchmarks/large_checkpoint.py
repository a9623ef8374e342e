"""Peak memory of converting a checkpoint of 1.1 or 3.8 billion parameters, and a few tokens of the result.

    python benchmarks/large_checkpoint.py [--shape tinyllama|phi3-mini] [--keep] [--run-only]

Writes a synthetic checkpoint with the shapes of TinyLlama (22 layers, width 2,048; 2.2 GB of bfloat16 noise) or of
Phi-3 mini 128k (32 layers, width 3,072, fused projections, LongRoPE; 7.6 GB) to build/, converts it with `--fast` in a
process of its own, runs the graph in LiteRT in another, and the float network in a third; prints the peak memory of
each, and how far the graph's logits are from the float ones. The int8 graph of Phi-3 mini is larger than 2 GiB.
Everything is removed at the end, without --keep; --run-only takes what an earlier --keep has left.
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
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
TOKENIZER_FROM = ROOT / "tests" / "data" / "checkpoints" / "mha-untied-sharded"
CONFIGS: dict[str, dict[str, Any]] = {
    "tinyllama": dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=2048, intermediate_size=5632,
        num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4, vocab_size=32000,
        max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu",
        tie_word_embeddings=False, torch_dtype="bfloat16", bos_token_id=1, eos_token_id=2,
    ),
    "phi3-mini": dict(
        architectures=["Phi3ForCausalLM"], model_type="phi3", hidden_size=3072, intermediate_size=8192,
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, vocab_size=32064,
        max_position_embeddings=131072, original_max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=10000.0,
        rope_scaling=dict(type="longrope", short_factor=[1.0 + 0.01 * i for i in range(48)],
                          long_factor=[1.0 + 1.3 * i for i in range(48)]),
        hidden_act="silu", sliding_window=262144, tie_word_embeddings=False, torch_dtype="bfloat16", bos_token_id=1,
        eos_token_id=2,
    ),
}  # fmt: skip
_RUN = """
import resource, sys, time
from pathlib import Path
from typing import Any
import numpy as np
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends import open_backend
backend = open_backend(Bundle.open(Path(sys.argv[1])))
backend.prefill(list(range(5, 37)))
started_s = time.monotonic()
logits = [backend.decode(token).copy() for token in range(40, 48)]
seconds = (time.monotonic() - started_s) / len(logits)
assert np.isfinite(logits).all() and np.std(logits[-1]) > 0.1 and not np.allclose(logits[0], logits[-1])
np.save(sys.argv[2], np.stack(logits))
peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(f"in LiteRT: {1 / seconds:.1f} tokens a second, peak {peak_gb:.2f} GB")
"""
_COMPARE = """
import resource, sys
from pathlib import Path
import numpy as np
from converters.checkpoints import open_checkpoint
from converters.network.decoder import head, hidden
from converters.network.weights import CanonicalWeights
from converters.ops.numpy import NumpyOps
from device_runtime.bundle.folder import Bundle
bundle, checkpoint = Bundle.open(Path(sys.argv[1])), open_checkpoint(Path(sys.argv[3]))
graph = np.load(sys.argv[2])
config = checkpoint.config.for_context(bundle.manifest.context)
read = CanonicalWeights(config, checkpoint.read)
ops = NumpyOps(config, read, np.array([[*bundle.manifest.prefix_tokens, *range(5, 37), *range(40, 48)]]))
float_ = head(ops, config, hidden(ops, config)[-len(graph):])
error = np.sqrt(np.square(graph - float_).sum(axis=1) / np.square(float_).sum(axis=1))
same = (graph.argmax(axis=1) == float_.argmax(axis=1)).sum()
peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(f"against the float network: the same likeliest token in {same} of {len(graph)} steps, logits "
      f"{error.mean():.1%} off (relative root mean square; {error.max():.1%} at most); peak {peak_gb:.2f} GB")
"""


def main() -> None:
    """Make, convert, print, clean up."""
    parser = argparse.ArgumentParser(description="peak memory of a large conversion")
    parser.add_argument("--shape", choices=CONFIGS, default="tinyllama")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoint and the bundle")
    parser.add_argument("--run-only", action="store_true", help="run and compare what was kept")
    args = parser.parse_args()
    checkpoint, bundle = BUILD / f"synthetic-{args.shape}", BUILD / f"synthetic-{args.shape}-pi"
    try:
        if args.run_only:
            run(bundle, checkpoint)
            return
        parameters = make_checkpoint(checkpoint, CONFIGS[args.shape])
        text = checkpoint / "calibration.txt"
        text.write_text("The pump in hall 3 is hot and the valve is closed.\n" * 6)  # noise has no large channels
        command = [sys.executable, "-m", "toolkit", "convert", str(checkpoint), "--profile", "pi", "--context", "512"]
        command += ["--calibrate", str(text)]
        started_s = time.monotonic()
        subprocess.run([*command, "--fast", "-o", str(bundle)], check=True, cwd=ROOT)
        seconds = time.monotonic() - started_s
        peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
        size_gb = sum(f.stat().st_size for f in bundle.iterdir()) / 1e9
        billions = parameters / 1e9
        print(f"{billions:.2f} billion parameters: peak {peak_gb:.2f} GB, {seconds:.0f} s, bundle {size_gb:.2f} GB")
        run(bundle, checkpoint)
    finally:
        if not args.keep:
            shutil.rmtree(checkpoint, ignore_errors=True)
            shutil.rmtree(bundle, ignore_errors=True)


def run(bundle: Path, checkpoint: Path) -> None:
    """In LiteRT, then in float: one process each, for the peaks."""
    logits = BUILD / f"{bundle.name}-logits.npy"
    subprocess.run([sys.executable, "-c", _RUN, str(bundle), str(logits)], check=True, cwd=ROOT)
    subprocess.run([sys.executable, "-c", _COMPARE, str(bundle), str(logits), str(checkpoint)], check=True, cwd=ROOT)
    logits.unlink()


def make_checkpoint(folder: Path, config: dict[str, Any]) -> int:
    """Write the folder, one tensor at a time; returns the number of parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (TOKENIZER_FROM / name).exists():
            shutil.copy(TOKENIZER_FROM / name, folder / name)
    shapes = tensor_shapes(config)
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * 2
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            if name.endswith("norm.weight"):
                values = np.ones(shape, np.float32)
            else:
                values = random.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())  # bfloat16 is the upper half
    return offset // 2


def tensor_shapes(c: dict[str, Any]) -> dict[str, list[int]]:
    """Names and shapes as transformers writes them."""
    width, ffn = c["hidden_size"], c["intermediate_size"]
    kv_width = width // c["num_attention_heads"] * c["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": [c["vocab_size"], width]}
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = [width]
        fused = c["model_type"] == "phi3"
        parts = [("q", width), ("k", kv_width), ("v", kv_width)]
        for name, rows in [("qkv", width + 2 * kv_width)] if fused else parts:
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = [rows, width]
        shapes[f"{layer}.self_attn.o_proj.weight"] = [width, width]
        shapes[f"{layer}.post_attention_layernorm.weight"] = [width]
        for name, rows in [("gate_up", 2 * ffn)] if fused else [("gate", ffn), ("up", ffn)]:
            shapes[f"{layer}.mlp.{name}_proj.weight"] = [rows, width]
        shapes[f"{layer}.mlp.down_proj.weight"] = [width, ffn]
    return shapes | {"model.norm.weight": [width], "lm_head.weight": [c["vocab_size"], width]}


if __name__ == "__main__":
    main()
