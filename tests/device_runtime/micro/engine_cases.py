"""Networks as model images, and what TFLite Micro computes with the same graphs (tests only)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from micro_bundles import random_network

from converters.emit.c.model import ModelImage
from converters.emit.tflite_read import TfliteFile
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends.tflm import TflmBackend
from device_runtime.micro.library import CEngine

__all__ = ["NETWORKS", "reference_logits", "reference_tensors", "stored_logits", "traced_buffers"]

NETWORKS = {
    "tied": random_network(),
    "down in two ranges": random_network(ffn_width=288),
    "untied": random_network(tied_head=False, prefix_tokens=(7, 3, 11)),
    "attention bias": random_network(attention_bias=True, prefix_tokens=(5, 9)),
    "every bias, no prefix": random_network(
        attention_bias=True, output_bias=True, ffn_bias=True, tied_head=False, prefix_tokens=()
    ),
    "odd sizes": random_network(width=40, heads=3, kv_heads=1, head_dim=10, ffn_width=52, vocabulary=77),
    "more than ten key heads": random_network(heads=12, kv_heads=12, head_dim=8, layers=1),
}


def stored_logits(engine: CEngine, tokens: Sequence[int]) -> np.ndarray:
    """As the engine stores them after each token, from where it stands."""
    rows = []
    for token in tokens:
        engine.feed(token)
        rows.append(engine.logits.astype(np.int32))
    return np.stack(rows)


def reference_logits(bundle: Bundle, tokens: Sequence[int]) -> np.ndarray:
    """The same of TFLite Micro's interpreter."""
    backend = TflmBackend(bundle)
    rows = []
    for token in tokens:
        backend.decode(token)
        rows.append(backend._interpreter.get_output(0).reshape(-1).astype(np.int32))
    backend.close()
    return np.stack(rows)


def reference_tensors(bundle: Bundle, tokens: Sequence[int], names: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """Tensors of the graph after each token, in TFLite Micro's interpreter."""
    from tflite_micro.python.tflite_micro import runtime

    (graph,) = TfliteFile(bundle.model_path).subgraphs()
    index = {graph.tensor(i).name: i for i in range(graph.tensor_count)}  # the last of several, as in `lower`
    keep: Any = runtime.InterpreterConfig.kPreserveAllTensors
    interpreter = runtime.Interpreter.from_bytes(
        bundle.model_path.read_bytes(), arena_size=16 << 20, intrepreter_config=keep
    )
    found = []
    for position, token in enumerate(tokens, len(bundle.manifest.prefix_tokens)):
        interpreter.set_input(np.array([token], np.int32), 0)
        interpreter.set_input(np.array([position], np.int32), 1)
        interpreter.invoke()
        found.append(
            {name: np.array(interpreter.GetTensor(index[name], 0)["tensor_data"]).reshape(-1) for name in names}
        )
    return found


def traced_buffers(engine: CEngine, image: ModelImage, token: int) -> dict[str, np.ndarray]:
    """Every buffer of the arena as it is right after the last call that writes it."""
    found: dict[str, np.ndarray] = {}
    names = {buffer: name for name, (buffer, _) in image.buffers.items()}

    def after(call: int, arena: int) -> None:
        for buffer in image.calls[call].writes():
            if buffer in names:
                _, offset = image.buffers[names[buffer]]
                stored = ctypes.string_at(arena + offset, buffer.bytes)
                found[names[buffer]] = np.frombuffer(stored, buffer.type)[: buffer.elements].copy()

    engine.feed_watched(token, after)
    return found


def image_path(bundle: Bundle) -> Path:
    """Where a bundle's image is."""
    return bundle.path / "model.image"
