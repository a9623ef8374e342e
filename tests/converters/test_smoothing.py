"""Smoothing changes what is easy to quantize and nothing that is computed."""

from __future__ import annotations

import numpy as np
import pytest
from random_checkpoint import CHECKPOINTS, random_checkpoint

from converters.checkpoints import Checkpoint, open_checkpoint
from converters.network import decoder
from converters.ops_numpy import KvCache, NumpyOps, ReadTensor, with_head
from converters.quantize.smoothing import ChannelPeaks, Smoothing, choose_smoothing, matmul_groups, observe_windows

TOKENS = np.random.default_rng(5).integers(0, 384, (2, 48))
FOLDERS = ["gqa-tied", "mha-untied-sharded", "llama3-rope", "yarn-biases", "linear-rope"]
BIASED = {"attention_bias": True, "output_bias": True, "ffn_bias": True}


def smoothed(checkpoint: Checkpoint, alpha: float = 0.5) -> tuple[Smoothing, ReadTensor]:
    """The smoothing of a checkpoint, and its tensors before it."""
    read = with_head(checkpoint.config, checkpoint.read)
    peaks = ChannelPeaks()
    observe_windows(checkpoint.config, read, TOKENS, KvCache(), peaks)
    return choose_smoothing(checkpoint.config, read, peaks.peaks, alpha), read


def logits(checkpoint: Checkpoint, read: ReadTensor, past: KvCache | None = None) -> np.ndarray:
    return decoder(NumpyOps(checkpoint.config, read, TOKENS, past), checkpoint.config)


def assert_unchanged(checkpoint: Checkpoint, alpha: float = 0.5) -> None:
    """Logits are of order 1 to 10; float32 with factors on it differs in the fifth digit."""
    smoothing, read = smoothed(checkpoint, alpha)
    np.testing.assert_allclose(logits(checkpoint, smoothing.apply(read)), logits(checkpoint, read), atol=2e-3)


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_stay_what_they_were(name: str) -> None:
    assert_unchanged(open_checkpoint(CHECKPOINTS / name))


@pytest.mark.parametrize("changes", [{}, {"tied_head": False}, {"kv_heads": 4}, {"kv_heads": 1}, BIASED], ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_also_for_every_shape_and_strength(changes: dict, alpha: float) -> None:
    assert_unchanged(random_checkpoint(**changes), alpha)


def test_an_activation_that_is_always_zero_does_no_harm() -> None:
    checkpoint = random_checkpoint(**BIASED)
    read = checkpoint.read

    def dead(name: str) -> np.ndarray:
        tensor = read(name)
        if name in ("layers.0.attention_norm.weight", "layers.1.down.weight"):
            tensor[..., 3] = 0  # a channel that nothing writes, and one that nothing reads
        return tensor

    assert_unchanged(Checkpoint(**{**vars(checkpoint), "read": dead}))


def test_a_cache_is_smoothed_as_the_smoothed_network_would_fill_it() -> None:
    checkpoint = random_checkpoint(kv_heads=2, **BIASED)
    smoothing, read = smoothed(checkpoint)
    ops, smooth_ops = (NumpyOps(checkpoint.config, r, TOKENS[:1, :9]) for r in (read, smoothing.apply(read)))
    decoder(ops, checkpoint.config)
    decoder(smooth_ops, checkpoint.config)
    moved = smoothing.apply_to_cache(ops.cache)
    for (k, v), (expected_k, expected_v) in zip(moved.layers, smooth_ops.cache.layers, strict=True):
        np.testing.assert_allclose(k, expected_k, atol=1e-4)
        np.testing.assert_allclose(v, expected_v, atol=1e-4)
    after = logits(checkpoint, smoothing.apply(read), moved)
    np.testing.assert_allclose(after, logits(checkpoint, read, ops.cache), atol=2e-3)


def test_the_tensors_that_were_read_are_not_changed_for_others() -> None:
    """`apply` scales in place, so `read` has to hand out a copy each time, and does."""
    checkpoint = random_checkpoint()
    smoothing, read = smoothed(checkpoint)
    apply = smoothing.apply(read)
    for group in matmul_groups(checkpoint.config):
        name = f"{group[0]}.weight"
        np.testing.assert_array_equal(apply(name), apply(name))


def test_a_channel_that_is_large_is_made_smaller() -> None:
    checkpoint = random_checkpoint()
    read = checkpoint.read

    def loud(name: str) -> np.ndarray:
        tensor = read(name)
        if name == "layers.0.ffn_norm.weight":
            tensor[7] *= 100
        return tensor

    checkpoint = Checkpoint(**{**vars(checkpoint), "read": loud})
    smoothing, plain = smoothed(checkpoint)
    before, after = ChannelPeaks(), ChannelPeaks()
    observe_windows(checkpoint.config, plain, TOKENS, KvCache(), before)
    observe_windows(checkpoint.config, smoothing.apply(plain), TOKENS, KvCache(), after)
    spread = [p.peaks["layers.0.gate.in"].max() / np.median(p.peaks["layers.0.gate.in"]) for p in (before, after)]
    assert spread[1] < spread[0] / 5
