"""Weights as int8, symmetric and per channel (per row), with or without compensation of the rounding error.

The error that counts is that of the matmul's result on real inputs, E|x (W - Q)ᵀ|², not that of the weights. Given the
Hessian of that error, H = E[xᵀ x] from calibration, the columns are rounded one after the other, and each column's
error is made up for in the columns still to come, along the inverse of H (GPTQ, Frantar et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from converters.network.weights import FloatArray

__all__ = ["Hessian", "QuantizedRows", "quantize_rows"]

_BLOCK = 64  # columns whose errors are spread among themselves before they reach the rest
_ROWS = 4096  # rows at a time: each needs a float copy of itself
# Of H's mean diagonal. Calibration sees a few thousand tokens; with 0.01 the errors went to where it had not looked.
_DAMPING = 0.1


@dataclass(frozen=True)
class QuantizedRows:
    """weight ≈ values * scale[:, None]"""

    values: npt.NDArray[np.int8]  # (rows, columns), in -127 … 127
    scale: FloatArray  # (rows,)


class Hessian:
    """Of a matmul's squared error by its weights, up to a factor: xᵀ x of calibration inputs x, (tokens, width)."""

    def __init__(self, x: FloatArray) -> None:
        self._products = x.T @ x
        self._inverse: FloatArray | None = None

    def inverse_cholesky(self) -> FloatArray:
        """The upper Cholesky factor of H⁻¹, (width, width): row j says how column j's error goes to those after it."""
        if self._inverse is None:
            damped = self._products.astype(np.float64)
            mean = float(np.diag(damped).mean())
            damped[np.diag_indices_from(damped)] += max(_DAMPING * mean, 1e-12)
            # With H = U Uᵀ, U upper, H⁻¹ is (U⁻¹)ᵀ U⁻¹: U⁻¹ is the factor, and H itself is never inverted.
            upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
            self._inverse = _invert_upper(upper.astype(np.float32))
        return self._inverse


def quantize_rows(weight: FloatArray, cuts: Sequence[int] = (), hessian: Hessian | None = None) -> list[QuantizedRows]:
    """Quantize each row by its largest magnitude.

    Args:
        weight: (rows, columns).
        cuts: columns at which a new range begins; each range of columns has scales of its own.
        hessian: of what the matmul reads; None rounds every weight to the nearest.

    Returns:
        One result for each range of columns.
    """
    bounds = [0, *cuts, weight.shape[1]]
    values = np.empty(weight.shape, np.int8)
    scales = np.empty((len(bounds) - 1, weight.shape[0]), np.float32)
    range_of = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))  # column -> range
    for start in range(0, weight.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        block = weight[rows]
        for i, (left, right) in enumerate(pairwise(bounds)):
            part = block[:, left:right]
            scales[i, rows] = np.maximum(part.max(axis=1), -part.min(axis=1)) / np.float32(127)
        scales[:, rows][scales[:, rows] == 0] = 1.0  # rows of zeros
        if hessian is None:
            values[rows] = np.rint(block / scales[range_of, rows].T)
        else:
            values[rows] = _gptq(block.T.copy(), scales[:, rows], range_of, hessian.inverse_cholesky()).T
    return [
        QuantizedRows(np.ascontiguousarray(values[:, left:right]), scales[i])
        for i, (left, right) in enumerate(pairwise(bounds))
    ]


def _invert_upper(u: FloatArray) -> FloatArray:
    """Inverse of an upper triangular matrix, by halves: a sixth of the work of a general inverse."""
    half = len(u) // 2
    if half < 32:
        return np.triu(np.linalg.inv(u))
    first, second = _invert_upper(u[:half, :half]), _invert_upper(u[half:, half:])
    inverse = np.zeros_like(u)
    inverse[:half, :half], inverse[half:, half:] = first, second
    inverse[:half, half:] = -first @ (u[:half, half:] @ second)
    return inverse


def _gptq(
    columns: FloatArray, scales: FloatArray, range_of: npt.NDArray[np.integer], inverse: FloatArray
) -> npt.NDArray[np.int8]:
    """Round `columns`, (columns, rows), one after the other; changes them in place."""
    out = np.empty(columns.shape, np.int8)
    for start in range(0, len(columns), _BLOCK):
        stop = min(start + _BLOCK, len(columns))
        errors = np.empty((stop - start, columns.shape[1]), np.float32)
        for j in range(start, stop):
            scale = scales[range_of[j]]
            rounded = np.clip(np.rint(columns[j] / scale), -127, 127)
            out[j] = rounded
            errors[j - start] = (columns[j] - rounded * scale) / inverse[j, j]
            columns[j + 1 : stop] -= inverse[j, j + 1 : stop, None] * errors[j - start]
        columns[stop:] -= inverse[start:stop, stop:].T @ errors
    return out
