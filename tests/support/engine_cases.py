"""Networks as model images, and what TFLite Micro computes with the same graphs (tests only)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.emit.c.model import ModelImage
from converters.emit.tflite_read import TfliteFile
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends.tflm import TflmBackend
from device_runtime.micro.library import CEngine
from tests.support import micro_bundles
from tests.support.micro_bundles import random_network

__all__ = [
    "NETWORKS", "block_matmuls", "reference_logits", "reference_tensors", "stored_logits", "traced_buffers",
]  # fmt: skip

NETWORKS = {
    **micro_bundles.NETWORKS,
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


def block_matmuls(graph: Path, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What numpy computes in whole numbers for each matmul with int4 weights in blocks, by the result's name.

    Args:
        stored: what matmuls read, by the names of tensors in the graph.
    """
    (reader,) = TfliteFile(graph).subgraphs()
    made_by = {t.index: op for op in reader.operators() for t in op.results if not t.variable}
    found = {}
    for op in reader.operators():
        weight = op.operands[1] if op.name == "FULLY_CONNECTED" else None
        if weight is None or weight.block_scales is None:
            continue
        x, result, bias = op.operands[0], op.results[0], op.operands[2] if len(op.operands) > 2 else None
        assert x is not None and x.grid is not None and result.grid is not None
        source = x
        while source.name not in stored:
            assert made_by[source.index].name == "RESHAPE", source.name
            source = made_by[source.index].operands[0]  # type: ignore[assignment]
        scales = reader.values(reader.tensor(weight.block_scales)).astype(np.float64)
        multipliers = np.rint(scales / weight.scale[:, None]).astype(np.int64)
        whole = reader.values(weight).astype(np.int64) * np.repeat(multipliers, 32, axis=1)
        sums = whole @ (stored[source.name].astype(np.int64) - x.grid[1])
        if bias is not None:
            sums += reader.values(bias).astype(np.int64)
        factors = np.float64(x.grid[0]) * weight.scale.astype(np.float64) / np.float64(result.grid[0])
        scaled = _scaled_twice if result.type == "int8" else _scaled_once
        limits = np.iinfo(result.type)
        rows = [scaled(int(n), float(f)) + result.grid[1] for n, f in zip(sums, factors, strict=True)]
        found[result.name] = np.clip(rows, limits.min, limits.max).astype(result.type)
    return found


def _multiplier(factor: float) -> tuple[int, int]:
    """factor = multiplier * 2^(shift - 31), as TensorFlow Lite's QuantizeMultiplier."""
    fraction, shift = math.frexp(factor)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    return (multiplier // 2, shift + 1) if multiplier == 2**31 else (multiplier, shift)


def _scaled_twice(n: int, factor: float) -> int:
    """As TensorFlow Lite scales 32 bits: halves up after the product, halves away from zero after the shift."""
    multiplier, shift = _multiplier(factor)
    high = (n * 2 ** max(shift, 0) * multiplier + 2**30) >> 31
    right = max(-shift, 0)
    size = (abs(high) + (2**right >> 1)) >> right
    return size if high >= 0 else -size


def _scaled_once(n: int, factor: float) -> int:
    """As it scales 64 bits: a multiplier of 16 bits, halves up."""
    multiplier, shift = _multiplier(factor)
    short = 0x7FFF if multiplier >= 0x7FFF0000 else (multiplier + 2**15) >> 16
    return (n * short + 2 ** (14 - shift)) >> (15 - shift)


def image_path(bundle: Bundle) -> Path:
    """Where a bundle's image is."""
    return bundle.path / "model.image"
