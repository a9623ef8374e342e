"""int4 weights in blocks."""

import numpy as np
import pytest

from converters.quantize.blocks import (
    BLOCK,
    own_grid,
    packed_int4,
    quantize_blocks,
    quantize_steps,
    rounded_scale,
    unpacked_int4,
)  # fmt: skip
from converters.quantize.weights import Hessian

_SCALE_ROUNDING = 2.0**-8 * 15  # half a step of a bfloat16, which counts once for each of 15 steps of the grid


def _weights(rows: int = 24, columns: int = 128) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((rows, columns)).astype(np.float32) * np.float32(0.1)


def test_two_columns_share_a_byte_and_the_even_one_has_the_low_half() -> None:
    packed = packed_int4(np.array([[1, -8, 7, -1]], np.int8))
    assert packed.tolist() == [[0x81, 0xF7]]
    values = np.random.default_rng(0).integers(-8, 8, (5, 64)).astype(np.int8)
    assert (unpacked_int4(packed_int4(values)) == values).all()


def test_a_scale_is_a_bfloat16_and_a_normal_float16() -> None:
    scale = rounded_scale(np.array([0.0, 1e-9, 0.0123456, 3.0, 1e9], np.float32))
    assert (scale.view(np.uint32) & 0xFFFF == 0).all()
    assert (scale.astype(np.float16).astype(np.float32) == scale).all()
    assert (scale >= 2.0**-14).all()


@pytest.mark.parametrize("lowest", [0, 5], ids=["the whole grid", "a part of it"])
def test_weights_that_lie_on_a_grid_keep_their_integers(lowest: int) -> None:
    random = np.random.default_rng(1)
    stored = random.integers(lowest, 16, (20, 4, 32))
    stored[..., :4] = np.array([lowest, lowest + 1, lowest + 1, 15])  # so no coarser grid holds a block
    scale = random.uniform(0.01, 0.5, (20, 4, 1)).astype(np.float16).astype(np.float32)
    least = random.uniform(-3, 0, (20, 4, 1)).astype(np.float16).astype(np.float32)
    weight = (stored * scale + least).astype(np.float32).reshape(20, -1)
    rows = own_grid(weight)
    assert rows is not None
    assert (rows.values.reshape(stored.shape) - stored == rows.values[0, 0] - stored[0, 0, 0]).all()
    step = np.repeat(scale[..., 0], 32, axis=1)
    assert (np.abs(rows.floats() - weight) <= step * _SCALE_ROUNDING).all()


def test_a_block_of_equal_weights_lies_on_a_grid() -> None:
    weight = np.full((2, 64), 0.25, np.float32)
    rows = own_grid(weight)
    assert rows is not None
    np.testing.assert_allclose(rows.floats(), weight, atol=1e-3)  # eight times the smallest scale's rounding


def test_weights_on_no_grid_have_none() -> None:
    assert own_grid(_weights()) is None
    assert own_grid(_weights(columns=48)) is None


def test_offsets_leave_less_error_than_a_symmetric_grid() -> None:
    weight = _weights() + np.float32(0.05)
    errors = [np.square(quantize_blocks(weight, offsets=offsets).floats() - weight).mean() for offsets in (True, False)]
    assert errors[0] < 0.6 * errors[1]


def test_compensation_lowers_the_error_of_the_result_and_not_of_the_weights() -> None:
    weight, random = _weights(), np.random.default_rng(5)
    x = (random.standard_normal((600, 16)) @ random.standard_normal((16, 128))).astype(np.float32)  # few directions
    nearest, compensated = quantize_blocks(weight), quantize_blocks(weight, hessian=Hessian(x))
    of_result = [np.square(x @ (rows.floats() - weight).T).mean() for rows in (nearest, compensated)]
    of_weights = [np.square(rows.floats() - weight).mean() for rows in (nearest, compensated)]
    assert of_result[1] < 0.5 * of_result[0]
    assert of_weights[1] > of_weights[0]


def test_blocks_can_be_multiplied_without_new_integers() -> None:
    rows = quantize_blocks(_weights())
    factor = np.random.default_rng(6).uniform(0.2, 5, (24, 4)).astype(np.float32)
    scaled = rows.times(factor)
    wanted = rows.floats() * np.repeat(factor, 32, axis=1)
    assert (scaled.values == rows.values).all()
    step = np.repeat(rows.scale * factor, 32, axis=1)
    assert (np.abs(scaled.floats() - wanted) <= step * _SCALE_ROUNDING).all()


def test_scales_that_are_multiples_of_a_step_cost_next_to_nothing() -> None:
    """They are within half of 255 steps of the best ones, and the weights are rounded to what they are."""
    weight = _weights()
    (steps,) = quantize_steps(weight)
    assert steps.values.min() >= -8 and steps.values.max() <= 7 and steps.multipliers.min() >= 1
    whole = np.repeat(steps.multipliers, BLOCK, axis=1).astype(np.int64) * steps.values
    np.testing.assert_array_equal(steps.floats(), (whole * steps.step[:, None]).astype(np.float32))
    errors = [np.square(q.floats() - weight).mean() for q in (steps, quantize_blocks(weight, offsets=False))]
    assert errors[0] < 1.01 * errors[1]


def test_steps_change_where_a_row_is_cut() -> None:
    weight = _weights(columns=96)
    weight[:, 64:] *= 1000
    (whole,) = quantize_steps(weight)
    parts = quantize_steps(weight, (64,))
    assert [part.values.shape[1] for part in parts] == [64, 32]
    errors = [np.square(q.floats()[:, :64] - weight[:, :64]).mean() for q in (parts[0], whole)]
    assert errors[0] < 0.5 * errors[1]  # with one step, blocks of small weights have one scale: the smallest


def test_compensation_keeps_the_product_with_steps_too() -> None:
    weight, random = _weights(), np.random.default_rng(5)
    x = (random.standard_normal((400, 8)) @ random.standard_normal((8, weight.shape[1]))).astype(np.float32)
    errors = [
        np.square(x @ (quantize_steps(weight, hessian=hessian)[0].floats() - weight).T).mean()
        for hessian in (Hessian(x), None)
    ]
    assert errors[0] < 0.7 * errors[1]
