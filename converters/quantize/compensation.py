"""Rounding with error compensation: each column's rounding error is made up for in the columns still to come.

The error that counts is that of the matmul's result on real inputs, E|x (W - Q)ᵀ|², not that of the weights.
Given H = E[x xᵀ], rounding column j and moving its error into the later columns along the inverse of H is the
best that can be done column by column (GPTQ, Frantar et al. 2022, after Hassibi and Stork's optimal brain
surgeon of 1993).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from converters.ops_numpy import FloatArray

__all__ = ["input_products", "quantize_rows_compensated"]

_BLOCK = 128  # columns whose errors are spread among themselves before they reach the rest
_ROWS = 8192  # rows at a time: a vocabulary head would need a float copy of itself
_DAMPING = 0.01  # of H's mean diagonal; keeps the inverse sane where calibration saw too few directions


def input_products(x: FloatArray) -> npt.NDArray[np.float64]:
    """H = xᵀ x of calibration inputs (tokens, width): (width, width)."""
    return np.asarray((x.T @ x).astype(np.float64))


def quantize_rows_compensated(
    weight: FloatArray, products: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """As `quantize_rows`, with compensation.

    Args:
        weight: (rows, columns).
        products: `input_products` of what the matmul reads, (columns, columns).
    """
    spread = _spread(products)
    quantized = np.empty(weight.shape, np.int8)
    scales = np.empty(weight.shape[0], np.float32)
    for start in range(0, weight.shape[0], _ROWS):
        rows = weight[start : start + _ROWS]
        scale = np.abs(rows).max(axis=1) / np.float32(127)
        scale[scale == 0] = 1.0
        quantized[start : start + _ROWS] = _sweep(rows.T.copy(), scale, spread).T
        scales[start : start + _ROWS] = scale
    return quantized, scales


def _spread(products: npt.NDArray[np.float64]) -> FloatArray:
    """The upper Cholesky factor of H⁻¹: row j says how the error of column j goes to the columns after it."""
    damped = products + np.eye(len(products)) * max(_DAMPING * float(np.diag(products).mean()), 1e-12)
    inverse = np.linalg.inv(damped)
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T, np.float32)


def _sweep(columns: FloatArray, scale: FloatArray, spread: FloatArray) -> npt.NDArray[np.int8]:
    """Round `columns`, (columns, rows), one after the other; changes them in place."""
    out = np.empty(columns.shape, np.int8)
    for start in range(0, len(columns), _BLOCK):
        stop = min(start + _BLOCK, len(columns))
        errors = np.empty((stop - start, columns.shape[1]), np.float32)
        for j in range(start, stop):
            rounded = np.clip(np.rint(columns[j] / scale), -127, 127)
            out[j] = rounded
            errors[j - start] = (columns[j] - rounded * scale) / spread[j, j]
            columns[j + 1 : stop] -= spread[j, j + 1 : stop, None] * errors[j - start]
        columns[stop:] -= spread[start:stop, stop:].T @ errors
    return out
