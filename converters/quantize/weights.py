"""Weights as int8, symmetric and per channel (per row)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from converters.ops_numpy import FloatArray

__all__ = ["quantize_rows"]


def quantize_rows(weight: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Round each row to the grid of its largest magnitude.

    Args:
        weight: (rows, columns).

    Returns:
        int8 of the same shape, in -127 … 127, and float32 scales of shape (rows,): weight ≈ int8 * scale.
    """
    quantized = np.empty(weight.shape, np.int8)
    scales = np.empty(weight.shape[0], np.float32)
    for start in range(0, weight.shape[0], 4096):  # in blocks: the quotient is a second float copy
        block = weight[start : start + 4096]
        scale = np.maximum(block.max(axis=1), -block.min(axis=1)) / np.float32(127)
        scale[scale == 0] = 1.0  # a row of zeros
        quantized[start : start + 4096] = np.rint(block / scale[:, None])
        scales[start : start + 4096] = scale
    return quantized, scales
