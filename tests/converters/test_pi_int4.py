"""int4 weights in the pi profile: the graph in LiteRT against numpy's reading of the same integers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters.checkpoints import Checkpoint
from converters.convert import Options, convert
from converters.network.decoder import decoder
from converters.network.weights import CanonicalWeights
from converters.ops.numpy import NumpyOps
from converters.quantize.blocks import quantize_blocks
from converters.quantize.observers import ChannelPeaks
from converters.quantize.own_grid import GridWeights, has_own_grid
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends import open_backend
from tests.support.random_checkpoint import float_logits, random_checkpoint

TOKENS = [int(token) for token in np.random.default_rng(2).integers(3, 384, 90)]
# int8 rounding of the activations, as in test_pi_graph.py; weights are the same integers in both readings.
TOLERANCE = 0.12


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


def of_blocks(checkpoint: Checkpoint, offsets: bool) -> Checkpoint:
    """The same network with weights on a grid of 16 values a block, and a few channels that are far larger."""
    names = [f"layers.{i}.{role}.weight" for i in range(2) for role in ("q", "k", "v", "o", "gate", "up", "down")]
    kept = {name: quantize_blocks(checkpoint.read(name), offsets=offsets).floats() for name in names}
    gains = {f"layers.{i}.{norm}.weight" for i in range(2) for norm in ("attention_norm", "ffn_norm")}

    def read(name: str) -> np.ndarray:
        values = kept[name].copy() if name in kept else checkpoint.read(name)
        if name in gains:
            values[5] *= 12
        return values

    return replace(checkpoint, read=read)


@pytest.fixture(scope="module")
def plain() -> Checkpoint:
    return random_checkpoint(width=64, ffn_width=128, head_dim=32, heads=2, kv_heads=1)


@pytest.fixture(scope="module", params=[True, False], ids=["offsets", "symmetric"])
def gridded(request: pytest.FixtureRequest, plain: Checkpoint) -> Checkpoint:
    return of_blocks(plain, request.param)


def logits_of(bundle: Bundle, chunked: bool = False) -> np.ndarray:
    backend = open_backend(bundle)
    try:
        if chunked:
            return backend.prefill(TOKENS)[None].copy()
        return np.stack([backend.decode(token).copy() for token in TOKENS])
    finally:
        backend.close()


def test_a_checkpoint_on_a_grid_keeps_it(gridded: Checkpoint, tmp_path: Path) -> None:
    """So all that is left of the error is that of int8 activations, head and embedding."""
    bundle = convert(gridded, tmp_path / "b", Options("pi", 128, weights="int4", fast=True))
    expected = float_logits(gridded, bundle.manifest.prefix_tokens, TOKENS)
    assert relative_error(logits_of(bundle), expected) < TOLERANCE
    assert relative_error(logits_of(bundle, chunked=True), expected[-1:]) < TOLERANCE
    assert bundle.manifest.weight_bits == 4
    assert not bundle.manifest.graph.rotated


def test_other_weights_are_rounded_to_blocks(plain: Checkpoint, tmp_path: Path) -> None:
    """Beside the activations' error there is that of 4 bits: a step of a fifteenth of four standard deviations, over
    √12, is 8 % of each weight; a dozen matmuls add up in quadrature."""
    bundle = convert(plain, tmp_path / "b", Options("pi", 128, weights="int4", fast=True))
    expected = float_logits(plain, bundle.manifest.prefix_tokens, TOKENS)
    assert relative_error(logits_of(bundle), expected) < 0.3
    assert bundle.manifest.graph.rotated
    int8 = convert(plain, tmp_path / "c", Options("pi", 128, fast=True))
    assert bundle.model_path.stat().st_size < int8.model_path.stat().st_size


def test_dividing_channels_leaves_the_network_what_it_is(gridded: Checkpoint) -> None:
    canonical = CanonicalWeights(gridded.config, gridded.read)
    assert has_own_grid(canonical)
    peaks = ChannelPeaks(gridded.config, 32)
    observed = NumpyOps(gridded.config, canonical, np.array([TOKENS]), observe=lambda n, v: _seen(peaks, n, v))
    decoder(observed, gridded.config)
    weights = GridWeights(canonical, peaks)
    tokens = np.array([TOKENS])
    divided = NumpyOps(weights.config, weights, tokens)
    rows = weights("head.weight")
    assert weights.embedding_map is not None
    np.testing.assert_allclose(rows * weights.embedding_map, canonical("embed.weight"), rtol=1e-5)
    np.testing.assert_allclose(
        decoder(divided, weights.config), decoder(NumpyOps(gridded.config, canonical, tokens), gridded.config),
        atol=2e-3,
    )  # fmt: skip
    scaled = [np.abs(weights(f"layers.{i}.up.weight")).sum(axis=1) for i in (0, 1)]
    before = [np.abs(gridded.read(f"layers.{i}.up.weight")).sum(axis=1) for i in (0, 1)]
    assert max(float(np.abs(a / b - 1).max()) for a, b in zip(scaled, before, strict=True)) > 0.1


def _seen(peaks: ChannelPeaks, name: str, values: np.ndarray) -> None:
    if name.endswith(".in"):
        peaks(name, values)


def test_weights_on_no_grid_have_no_own_grid(plain: Checkpoint) -> None:
    assert not has_own_grid(CanonicalWeights(plain.config, plain.read))


@pytest.mark.slow  # two conversions of one checkpoint with their comparison: 10 s
def test_of_two_ways_the_closer_one_is_kept(gridded: Checkpoint, tmp_path: Path) -> None:
    bundle = convert(gridded, tmp_path / "b", Options("pi", 128, weights="int4"))
    assert not bundle.manifest.graph.rotated
    assert bundle.manifest.quality["kl_divergence"] < 0.1
