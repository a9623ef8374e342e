"""Write tests/data/kernel_vectors/: model images of tiny networks, and what TFLite Micro computes at every call. Of
int4 weights in blocks, which it does not take, what numpy computes in whole numbers.

    .venv/bin/python scripts/kernel_vectors.py

A vector file says which tokens to feed, and for the last of them what lies in the arena after each call of the call
list: words of four bytes {tokens, token …, entries}, then for each entry {call, offset, bytes} and its bytes, filled up
to four. tests/device_runtime/micro/kernels/run_vectors.h reads it, on this machine and on emulated boards. A test that
has such a file needs neither TensorFlow Lite nor Python.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from converters.emit.c.calls import Buffer, Scratch
from converters.emit.c.model import ModelImage, write_model_image
from device_runtime.micro.library import CEngine
from tests.support.engine_cases import block_matmuls, reference_tensors, traced_buffers
from tests.support.micro_bundles import micro_bundle, random_network

OUT = Path(__file__).parents[1] / "tests" / "data" / "kernel_vectors"
CORPUS = Path(__file__).parents[1] / "tests" / "fuzz" / "corpus" / "image"
TOKENS = 19  # past one group of 16 positions, which attention reads at a time
NETWORKS = {
    "grouped": random_network(vocabulary=40, layers=1, width=48, heads=4, kv_heads=2, head_dim=16, ffn_width=288),
    "odd": random_network(
        vocabulary=37, layers=1, width=40, heads=3, kv_heads=1, head_dim=10, ffn_width=52, attention_bias=True,
        output_bias=True, ffn_bias=True, tied_head=False,
    ),
}  # fmt: skip


# rows that are no multiple of four, matmuls that keep 8 bits, and down in two ranges
BLOCKS = random_network(vocabulary=37, layers=1, width=32, heads=5, kv_heads=1, head_dim=6, ffn_width=288)
FUZZED = random_network(vocabulary=21, layers=1, width=32, heads=1, kv_heads=1, head_dim=32, ffn_width=32)


def vectors(image: ModelImage, tokens: list[int], expected: dict[str, np.ndarray]) -> bytes:
    """As `run_vectors.c` reads them."""
    names = {buffer: name for name, (buffer, _) in image.buffers.items()}
    last: dict[Buffer, int] = {}
    for i, call in enumerate(image.calls):
        last.update(dict.fromkeys(call.writes(), i))
    entries = []
    for buffer, call in sorted(last.items(), key=lambda item: item[1]):
        if isinstance(buffer, Scratch) or names.get(buffer) not in expected:
            continue
        data = np.ascontiguousarray(expected[names[buffer]]).astype(buffer.type).tobytes()
        entries.append(
            struct.pack("<3I", call, image.buffers[names[buffer]][1], len(data)) + data + bytes(-len(data) % 4)
        )
    return struct.pack(f"<{len(tokens) + 2}I", len(tokens), *tokens, len(entries)) + b"".join(entries)


def main() -> None:
    """Both files of each network."""
    OUT.mkdir(parents=True, exist_ok=True)
    for name, network in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            bundle = micro_bundle(Path(folder) / "bundle", network, context=24)
            image = write_model_image(bundle.model_path, OUT / f"{name}.image")
            tokens = [int(t) for t in np.random.default_rng(3).integers(0, network.config.vocabulary, TOKENS)]
            expected = reference_tensors(bundle, tokens, list(image.buffers))[-1]
            (OUT / f"{name}.vectors").write_bytes(vectors(image, tokens, expected))
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.tflite"
        FUZZED.write(graph, 4, fast=True, weights="int4")
        write_model_image(graph, CORPUS / "int4")
        BLOCKS.write(graph, 24, fast=True, weights="int4")
        image = write_model_image(graph, OUT / "blocks.image")

        tokens = [int(t) for t in np.random.default_rng(3).integers(0, BLOCKS.config.vocabulary, TOKENS)]
        engine = CEngine(OUT / "blocks.image")
        stored = [traced_buffers(engine, image, token) for token in tokens][-1]
        (OUT / "blocks.vectors").write_bytes(vectors(image, tokens, block_matmuls(graph, stored)))


if __name__ == "__main__":
    main()
