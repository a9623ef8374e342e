"""Networks with norms after their parts, and channels of the residual stream that are larger than all the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters.checkpoints import Checkpoint
from converters.convert import Options, convert
from converters.network.config import Norm
from converters.network.decoder import decoder
from converters.network.tensors import tensors
from converters.network.weights import CanonicalWeights, FloatArray
from converters.ops.numpy import NumpyOps
from converters.quantize.observers import ChannelPeaks
from converters.quantize.rotation import RotatedWeights, folded
from converters.quantize.smoothing import norm_factors
from device_runtime.engine.backends import open_backend
from tests.support.random_checkpoint import checkpoint_of, float_logits, random_checkpoint

LARGE, TIMES = slice(0, 8), 300.0  # channels, and how much larger they are
TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, 384, 24)]


def planted(tied: bool = True) -> Checkpoint:
    """As in Gemma 3: the first post-norm makes some channels large, and the gains before the parts hide it."""
    config = random_checkpoint(tied_head=tied).config
    norm = Norm(1e-5)
    blocks = tuple(replace(b, attention_post_norm=norm, ffn_post_norm=norm) for b in config.blocks)
    plain = checkpoint_of(replace(config, blocks=blocks))
    of_stream = {f"layers.{i}.{name}.weight" for i in range(2) for name in ("attention_norm", "ffn_norm")}
    of_stream = (of_stream | {"final_norm.weight"}) - {"layers.0.attention_norm.weight"}  # which reads the embedding

    def read(name: str) -> FloatArray:
        values = plain.read(name)
        if name == "layers.0.attention_post_norm.weight":
            values[LARGE] *= TIMES
        if name in of_stream:  # the others have become small beside it
            values *= TIMES / 2  # a quarter of the channels is large
            values[LARGE] = 1e-3
        return values

    return replace(plain, read=read)


def factors_of(checkpoint: Checkpoint) -> dict[str, FloatArray]:
    canonical = CanonicalWeights(checkpoint.config, checkpoint.read)
    peaks = ChannelPeaks(checkpoint.config)
    decoder(NumpyOps(checkpoint.config, canonical, np.array([TOKENS]), observe=peaks), checkpoint.config)
    return norm_factors(checkpoint.config, peaks.peaks, canonical)


@pytest.mark.parametrize("tied", [True, False])
def test_smoothing_changes_no_logit(tied: bool) -> None:
    checkpoint = planted(tied)
    canonical = CanonicalWeights(checkpoint.config, checkpoint.read)
    factors = factors_of(checkpoint)
    assert ("final_norm" in factors) is not tied
    weights = RotatedWeights(canonical, {}, {}, factors)
    ops = NumpyOps(weights.config, weights, np.array([TOKENS]))
    # float32 products in another order: the logits are of the order of 3
    np.testing.assert_allclose(decoder(ops, weights.config), float_logits(checkpoint, [], TOKENS), atol=2e-3)
    if tied:
        mapped = weights.embedding_map
        assert mapped is not None
        np.testing.assert_allclose(weights("head.weight") @ mapped, weights("embed.weight"), atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_in_a_basis_of_its_own_changes_no_logit_and_reads_no_large_channel(tied: bool) -> None:
    checkpoint = planted(tied)
    canonical = CanonicalWeights(checkpoint.config, checkpoint.read)
    weights = RotatedWeights(canonical, {}, turn_head=True)
    seen: dict[str, FloatArray] = {}
    ops = NumpyOps(weights.config, weights, np.array([TOKENS]), observe=seen.__setitem__)
    np.testing.assert_allclose(decoder(ops, weights.config), float_logits(checkpoint, [], TOKENS), atol=2e-3)
    row = np.abs(seen["head.in"])
    assert row.max() / row.mean() < 8  # of normal numbers it would be about 4
    if tied:
        mapped = weights.embedding_map
        assert mapped is not None
        np.testing.assert_allclose(weights("head.weight") @ mapped, weights("embed.weight"), atol=1e-4)


def test_only_a_residual_stream_that_keeps_its_basis_turns_its_head() -> None:
    assert folded(planted().config, turn_head=True).head.turned
    assert not folded(planted().config).head.turned
    assert not folded(random_checkpoint().config, turn_head=True).head.turned


def test_a_rotated_network_needs_no_factors() -> None:
    checkpoint = random_checkpoint()
    assert factors_of(checkpoint) == {}
    gains = {
        tensor.name
        for tensor in tensors(RotatedWeights(CanonicalWeights(checkpoint.config, checkpoint.read), {}).config)
    }
    assert not any("norm" in name for name in gains)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("profile", ["pi", "micro"])
def test_large_channels_that_gains_hide_leave_the_graph_close_to_float(
    profile: str, tied: bool, tmp_path: Path
) -> None:
    """As close as graphs of a network without such channels (see test_network.py)."""
    checkpoint = planted(tied)
    backend = open_backend(convert(checkpoint, tmp_path / "bundle", Options(profile, 40, fast=True)))  # type: ignore[arg-type]
    found = np.stack([backend.decode(token).copy() for token in TOKENS])
    backend.close()
    expected = float_logits(checkpoint, [0], TOKENS)
    assert np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()) < 0.12
