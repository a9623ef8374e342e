"""How keys and values are stored in int8."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from converters.network.config import Attention, NetworkConfig
from converters.network.decoder import hidden
from converters.network.weights import CanonicalWeights
from converters.ops.numpy import KvCache, NumpyOps
from converters.quantize.cache_ranges import CachePeaks, CacheRange, cache_ranges, stored_cache
from tests.support.random_checkpoint import random_checkpoint

CHECKPOINT = random_checkpoint()
CONFIG = CHECKPOINT.config
TOKENS = np.random.default_rng(3).integers(3, 384, (2, 40))


def read(config: NetworkConfig, tokens: np.ndarray, past: KvCache | None = None) -> tuple[CachePeaks, KvCache]:
    """What an observer has seen of a text, and the keys and values after it."""
    peaks = CachePeaks(config, rotated=False)
    ops = NumpyOps(config, CanonicalWeights(config, CHECKPOINT.read), tokens, past, peaks)
    hidden(ops, config)
    return peaks, ops.cache


def floats(stored: KvCache, ranges: tuple[CacheRange, ...]) -> KvCache:
    """What a graph reads of its cache, and what its weights undo."""
    return KvCache(
        [
            ((k * r.key_scale + r.key_offset) * r.key_factors, v * r.value_scale + r.value_offset)
            for (k, v), r in zip(stored.layers, ranges, strict=True)
        ]
    )


def test_the_first_position_is_stored_exactly_and_the_others_within_half_a_step() -> None:
    _, prefix = read(CONFIG, TOKENS[:1, :1])
    peaks, cache = read(CONFIG, TOKENS[:, 1:], prefix)
    ranges = cache_ranges(CONFIG, peaks.cache(), prefix, int4=False)
    for (keys, values), (found_keys, found_values), r in zip(
        cache.layers, floats(stored_cache(cache, ranges), ranges).layers, ranges, strict=True
    ):
        np.testing.assert_allclose(found_keys[0, 0], keys[0, 0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found_values[0, 0], values[0, 0], rtol=1e-4, atol=1e-6)
        assert (np.abs(found_keys - keys) / r.key_factors).max() < 0.51 * r.key_scale
        assert np.abs(found_values - values).max() < 0.51 * r.value_scale


def test_each_pair_of_keys_that_rope_turns_has_the_same_steps() -> None:
    peaks, cache = read(CONFIG, TOKENS)
    for r, (keys, _) in zip(cache_ranges(CONFIG, peaks.cache(), KvCache(), int4=False), cache.layers, strict=True):
        half = keys.shape[-1] // 2
        np.testing.assert_array_equal(r.key_factors[:, :half], r.key_factors[:, half:])
        lengths = np.hypot(keys[..., :half], keys[..., half:]).max(axis=(0, 1)) / r.key_factors[:, :half]
        np.testing.assert_allclose(lengths, lengths.max(), rtol=1e-5)


def test_what_calibration_has_not_seen_has_headroom_and_is_clipped_beyond() -> None:
    peaks, cache = read(CONFIG, TOKENS)
    ranges = cache_ranges(CONFIG, peaks.cache(), KvCache(), int4=False)
    larger = KvCache([(1.25 * keys, 1.25 * values) for keys, values in cache.layers])
    for (keys, values), (found_keys, found_values), r in zip(
        larger.layers, floats(stored_cache(larger, ranges), ranges).layers, ranges, strict=True
    ):
        assert (np.abs(found_keys - keys) / r.key_factors).max() < 0.51 * r.key_scale
        assert np.abs(found_values - values).max() < 0.51 * r.value_scale
    far = stored_cache(KvCache([(9 * keys, -9 * values) for keys, values in cache.layers]), ranges)
    assert all(keys.max() == 127 and values.min() == -127 for keys, values in far.layers)


def test_keys_with_a_norm_have_one_factor_for_all_heads() -> None:
    attention = replace(CONFIG.blocks[0].attention, qk_norm=CONFIG.blocks[0].attention_norm)
    sizes = np.random.default_rng(1).uniform(1, 9, (1, 1, attention.kv_heads, attention.head_dim))
    config = with_attention(attention)
    for r in cache_ranges(config, KvCache([(sizes, sizes)] * CONFIG.layers), KvCache(), int4=True):
        assert (r.key_factors == r.key_factors[0]).all()
        assert len(np.unique(r.key_factors)) > 1


@pytest.mark.parametrize(("int4", "norm", "even"), [(False, False, True), (True, False, False), (True, True, True)])
def test_a_pair_far_larger_than_the_others_takes_no_steps_of_theirs(int4: bool, norm: bool, even: bool) -> None:
    """As biases of k make it in Qwen2. Only the scales of int4 rows, which are float16, bound what it is divided by."""
    attention = replace(CONFIG.blocks[0].attention, qk_norm=CONFIG.blocks[0].attention_norm if norm else None)
    sizes = np.ones((1, 1, attention.kv_heads, attention.head_dim), np.float32)
    sizes[..., 1] = sizes[..., 5] = 400.0
    peaks = KvCache([(sizes, sizes)] * CONFIG.layers)
    for r in cache_ranges(with_attention(attention), peaks, KvCache(), int4=int4):
        stored = sizes[0, 0] / r.key_factors
        assert (stored.max() < 1.01 * stored.min()) == even
        assert r.key_factors.max() <= 16 or even


def test_scores_that_are_capped_keep_their_keys_where_they_are() -> None:
    """They would show it if all of them were moved."""
    config = with_attention(replace(CONFIG.blocks[0].attention, softcap=30.0))
    _, prefix = read(CONFIG, TOKENS[:1, :1])
    peaks, _ = read(CONFIG, TOKENS[:, 1:], prefix)
    for r in cache_ranges(config, peaks.cache(), prefix, int4=False):
        assert not r.key_offset.any()
        assert r.value_offset.any()


def with_attention(attention: Attention) -> NetworkConfig:
    return replace(CONFIG, blocks=tuple(replace(block, attention=attention) for block in CONFIG.blocks))
