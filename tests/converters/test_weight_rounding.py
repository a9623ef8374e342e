"""int8 weights: the scale of each row, and compensation of what rounding loses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.quantize.weights import Hessian, quantize_rows


def correlated_inputs(width: int, tokens: int = 600) -> np.ndarray:
    """(tokens, width) whose channels go together, as a network's do."""
    random = np.random.default_rng(1)
    mixing = random.standard_normal((width // 4, width))
    return (random.standard_normal((tokens, width // 4)) @ mixing).astype(np.float32)


@given(rows=st.integers(1, 20), columns=st.integers(1, 70), seed=st.integers(0, 99), data=st.data())
def test_nearest_rounding_is_off_by_at_most_half_a_step(rows, columns, seed, data):
    weight = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    cuts = sorted(data.draw(st.sets(st.integers(1, columns - 1), max_size=3))) if columns > 1 else []
    parts = quantize_rows(weight, cuts)
    restored = np.hstack([part.values * part.scale[:, None] for part in parts])
    steps = np.hstack([np.broadcast_to(part.scale[:, None], part.values.shape) for part in parts])
    assert restored.shape == weight.shape
    assert (np.abs(restored - weight) <= steps * 0.5001).all()


def test_a_row_of_zeros_stays_zero():
    (part,) = quantize_rows(np.zeros((2, 8), np.float32))
    assert not part.values.any()
    assert np.isfinite(part.scale).all()


@pytest.mark.parametrize("cuts", [(), (64, 160)])
def test_compensation_makes_the_matmul_closer_though_the_weights_are_not(cuts):
    random = np.random.default_rng(2)
    x, weight = correlated_inputs(256), random.standard_normal((96, 256)).astype(np.float32)
    exact = x @ weight.T

    def error(hessian: Hessian | None) -> float:
        parts = quantize_rows(weight, cuts, hessian)
        restored = np.hstack([part.values * part.scale[:, None] for part in parts])
        return float(np.square(x @ restored.T - exact).mean())

    # With a quarter of the directions in use, rounding has three quarters of them to hide its errors in.
    assert error(Hessian(x)) < 0.5 * error(None)


def test_without_any_pattern_in_the_inputs_compensation_does_no_harm():
    x = np.random.default_rng(3).standard_normal((4000, 64)).astype(np.float32)
    weight = np.random.default_rng(4).standard_normal((32, 64)).astype(np.float32)
    exact = x @ weight.T
    errors = []
    for hessian in (None, Hessian(x)):
        (part,) = quantize_rows(weight, (), hessian)
        errors.append(float(np.square(x @ (part.values * part.scale[:, None]).T - exact).mean()))
    assert errors[1] < 1.05 * errors[0]
