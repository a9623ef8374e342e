"""Small random networks and micro bundles of them (tests only)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.architectures import llama
from converters.convert import graph_counts, graph_shape
from converters.emit.c.model import write_model_image
from converters.network.config import NetworkConfig, Rope
from converters.network.decoder import decoder, hidden
from converters.network.tensors import tensors as tensors_of
from converters.network.weights import CanonicalWeights, FloatArray
from converters.ops.numpy import KvCache, NumpyOps
from converters.profiles import GraphJob, WeightType, profile_of
from converters.quantize.calibrate import ActivationParams
from converters.quantize.rotation import RotatedWeights
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import (
    FORMAT,
    IMAGE,
    MANIFEST,
    MODEL,
    PREFIX,
    FileEntry,
    Manifest,
    TokenizerInfo,
)

__all__ = ["NETWORKS", "Network", "micro_bundle", "random_network", "relative_error"]


@dataclass(frozen=True)
class Network:
    """A network in float, and a prefix."""

    config: NetworkConfig
    read: CanonicalWeights
    prefix_tokens: tuple[int, ...]

    @property
    def prefix(self) -> KvCache:
        """Keys and values of the prefix."""
        if not self.prefix_tokens:
            return KvCache()
        ops = NumpyOps(self.config, self.read, np.array([self.prefix_tokens]))
        hidden(ops, self.config)
        return ops.cache

    def logits(self, tokens: Sequence[int]) -> FloatArray:
        """After each of `tokens`, which stand behind the prefix: (tokens, vocabulary)."""
        return decoder(NumpyOps(self.config, self.read, np.array([tokens]), self.prefix), self.config)

    def write(self, path: Path, context: int, fast: bool = False, weights: WeightType = "int8") -> ActivationParams:
        """The micro graph, calibrated on random tokens."""
        windows = np.random.default_rng(5).integers(0, self.config.vocabulary, (16, 24))
        read = RotatedWeights(self.read, {})
        job = GraphJob(read, read.rotate_cache(self.prefix), windows, context, fast)
        return profile_of("micro", weights).write(path, job).activations


def random_network(seed: int = 1, prefix_tokens: Sequence[int] = (0,), **changes: Any) -> Network:
    """`changes` are arguments of `llama.network`. Query heads share key heads; the logits are of order 10."""
    shape: dict[str, Any] = dict(
        vocabulary=160, width=64, layers=3, heads=6, kv_heads=2, head_dim=16, ffn_width=96, norm_epsilon=1e-5,
        max_context=512, tied_head=True,
    )  # fmt: skip
    shape |= changes
    frequencies = tuple((1000.0 ** -(np.arange(0, shape["head_dim"], 2) / shape["head_dim"])).tolist())
    config = llama.network(**shape, rope=Rope(frequencies))
    random = np.random.default_rng(seed)
    tensors: dict[str, FloatArray] = {}
    for tensor in tensors_of(config):
        name, size = tensor.name, tensor.shape
        noise = random.standard_normal(size).astype(np.float32)
        if tensor.kind == "gain":
            tensors[name] = 1 + np.float32(0.2) * noise
        elif tensor.kind in ("bias", "norm bias"):
            tensors[name] = np.float32(0.5) * noise
        else:
            tensors[name] = noise * np.float32(1 if name in ("embed.weight", "head.weight") else size[1] ** -0.5)
    return Network(config, CanonicalWeights(config, lambda name: tensors[name].copy()), tuple(prefix_tokens))


def micro_bundle(folder: Path, network: Network, context: int = 40, weights: WeightType = "int8") -> Bundle:
    """A bundle without a tokenizer."""
    profile = profile_of("micro", weights)
    folder.mkdir()
    config = network.config
    network.write(folder / MODEL, context, weights=weights)
    write_model_image(folder / MODEL, folder / IMAGE)
    (folder / "tokenizer.json").write_text("{}")
    if network.prefix_tokens:
        keys, values = (np.concatenate([layer[part] for layer in network.prefix.layers]) for part in (0, 1))
        np.savez(folder / PREFIX, k=keys, v=values, logits=np.zeros(config.vocabulary, np.float32))
    manifest = Manifest(
        format=FORMAT, name="small", version="1", task="generate", architecture="llama",
        weight_bits=profile.weight_bits,
        profile="micro", context=context,
        graph=graph_shape(config, profile, context), counts=graph_counts(config, context),
        tokenizer=TokenizerInfo("tokenizer.json", None, (1,), False, {}),
        chat_template=None, prefix_tokens=network.prefix_tokens, quality={}, source={}, converter="test",
        security_counter=0, files={path.name: _entry(path) for path in sorted(folder.iterdir())},
    )  # fmt: skip
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(folder)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference, as a share of what was expected."""
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


def _entry(path: Path) -> FileEntry:
    content = path.read_bytes()
    return FileEntry(hashlib.sha256(content).hexdigest(), len(content))


# Every form that a micro graph has.
NETWORKS = {
    "tied": random_network(),
    "down in two ranges": random_network(ffn_width=288),
    "untied": random_network(tied_head=False, prefix_tokens=(7, 3, 11)),
    "attention bias": random_network(attention_bias=True, prefix_tokens=(5, 9)),
    "every bias, no prefix": random_network(
        attention_bias=True, output_bias=True, ffn_bias=True, tied_head=False, prefix_tokens=()
    ),
}
