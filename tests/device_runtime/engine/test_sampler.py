"""Greedy takes the likeliest token; drawing follows temperature, top-k and top-p."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from device_runtime.engine.sampler import Sampler, Sampling
from device_runtime.errors import ConfigurationError

some_logits = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-50, 50, width=32))
LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))


def draws(sampling: Sampling, count: int = 4000) -> np.ndarray:
    """How often each of the four tokens was drawn, as a share."""
    sampler = Sampler(sampling)
    return np.bincount([sampler.choose(LOGITS) for _ in range(count)], minlength=4) / count


@given(some_logits)
def test_greedy_is_argmax(logits: np.ndarray) -> None:
    assert Sampler(Sampling()).choose(logits) == logits.argmax()


@given(some_logits, st.floats(0.001, 10), st.integers(0, 50), st.floats(0.001, 1), st.integers(0, 2**32))
def test_what_is_drawn_is_among_the_top_k(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    token = Sampler(Sampling(temperature, top_k, top_p, seed)).choose(logits)
    assert 0 <= token < logits.size
    if top_k:
        assert (logits > logits[token]).sum() < top_k


@given(some_logits, st.integers(0, 2**32))
def test_a_tiny_top_p_keeps_the_likeliest_token(logits: np.ndarray, seed: int) -> None:
    token = Sampler(Sampling(1.0, top_p=1e-9, seed=seed)).choose(logits)
    assert logits[token] == pytest.approx(logits.max())  # of two that differ by 1e-40, either


@given(some_logits, st.integers(0, 2**32))
def test_a_top_k_of_one_is_greedy(logits: np.ndarray, seed: int) -> None:
    token = Sampler(Sampling(5.0, top_k=1, seed=seed)).choose(logits)
    assert logits[token] == logits.max()


@given(some_logits, st.integers(0, 2**32))
def test_the_same_seed_draws_the_same_tokens(logits: np.ndarray, seed: int) -> None:
    one, other = Sampler(Sampling(1.5, seed=seed)), Sampler(Sampling(1.5, seed=seed))
    assert [one.choose(logits) for _ in range(5)] == [other.choose(logits) for _ in range(5)]


def test_logits_are_not_changed() -> None:
    before = LOGITS.copy()
    draws(Sampling(0.7, 2, 0.5, 1), 3)
    np.testing.assert_array_equal(LOGITS, before)


# 4,000 draws: the standard deviation of a share is at most 0.8 %, the tolerance four of them.
def test_draws_follow_the_probabilities() -> None:
    np.testing.assert_allclose(draws(Sampling(1.0, seed=1)), [0.5, 0.25, 0.15, 0.1], atol=0.032)


def test_temperature_sharpens_and_flattens() -> None:
    cold = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    np.testing.assert_allclose(draws(Sampling(0.5, seed=2)), cold / cold.sum(), atol=0.032)
    assert draws(Sampling(10.0, seed=2)).min() > 0.2


def test_top_k_keeps_proportions() -> None:
    np.testing.assert_allclose(draws(Sampling(1.0, top_k=2, seed=3)), [2 / 3, 1 / 3, 0, 0], atol=0.032)


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    np.testing.assert_allclose(draws(Sampling(1.0, top_p=0.6, seed=4)), [2 / 3, 1 / 3, 0, 0], atol=0.032)
    np.testing.assert_allclose(draws(Sampling(1.0, top_p=0.8, seed=4)), np.array([50, 25, 15, 0]) / 90, atol=0.032)


def test_without_a_seed_answers_differ() -> None:
    logits = np.zeros(100_000, np.float32)
    assert Sampler(Sampling(1.0)).choose(logits) != Sampler(Sampling(1.0)).choose(logits)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": 11.0}, "from 0 .* to 10"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "above 0 and at most 1"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Sampling(**wrong)
