"""Activation ranges: what a calibration run saw, and the integer grids that follow from it.

A `RangeObserver` watches the float reference and freezes into `Ranges`, the only thing that an emitter asks.
Ranges are from minimum to maximum; another way to choose them is another observer that gives `Ranges`.
The prefix is never seen, because a calibration run starts behind it.

The channels of the results of `up` and of `down` differ in size a hundredfold, too much for one int8 grid, and
smoothing cannot help: it owns the way into `down`, and the residual sum has no weights. So these results are
stored divided by a factor for each channel. The division is free, in the weights' scales; undoing it is one
float multiplication. On SmolLM2-135M it took the perplexity from 55.0 to 36.0, where float32 has 33.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from converters.flatbuffer import Quantization
from converters.network import NetworkConfig, head, hidden
from converters.ops_numpy import FloatArray, KvCache, NumpyOps, ReadTensor

__all__ = ["RangeObserver", "Ranges", "calibrate"]

# A score this far below the largest of its row weighs e^-14 = 1e-6, far less than a step of the int8
# probabilities: the range of scores need not reach down to it.
_SCORE_SPAN = 14.0
# What attention's products read has zero point 0, so that their kernels need no sums of rows.
_SYMMETRIC = ("queries", "keys", "values")
_UNEVEN = ("up", "down")  # results whose channels get factors
# 1 would make all channels equally large. Less leaves room in those that calibration has seen to be small.
_EVENING = 0.75
_INT16_HEADROOM = 2.0  # one bit of sixteen, against values that calibration did not meet
_HEAD_ROWS = 256  # positions whose logits are held at once


@dataclass(frozen=True)
class Ranges:
    """The range of every named activation (see `NumpyOps`)."""

    limits: Mapping[str, tuple[float, float]]  # smallest and largest value, after division by the factors
    factors: Mapping[str, FloatArray]  # by which the channels of some matmuls' results are divided, (out,)

    def quantization(self, name: str, dtype: npt.DTypeLike = np.int8) -> Quantization:
        """The grid for an activation: int8, or int16, which is symmetric and has headroom.

        Raises:
            KeyError: calibration has not seen this name.
        """
        low, high = self.limits[name]
        peak = max(-low, high, 1e-6)
        if np.dtype(dtype) == np.int16:
            return Quantization.per_tensor(peak * _INT16_HEADROOM / 32767)
        if name.rsplit(".", 1)[-1] in _SYMMETRIC:
            return Quantization.per_tensor(peak / 127)
        low, high = min(low, 0.0), max(high, 0.0)  # 0 must be on the grid
        scale = max(high - low, 1e-6) / 255
        return Quantization.per_tensor(scale, round(np.clip(-128 - low / scale, -128, 127)))


class RangeObserver:
    """Keeps the smallest and the largest value of each activation, of some for each channel."""

    def __init__(self) -> None:
        self._limits: dict[str, tuple[FloatArray, FloatArray]] = {}  # arrays of (), or of (channels,)

    def __call__(self, name: str, values: FloatArray) -> None:
        """Take in the values of one activation; hidden scores are -inf."""
        kind = name.rsplit(".", 1)[-1]
        if kind == "scores":
            values = np.maximum(values, values.max(axis=-1, keepdims=True) - np.float32(_SCORE_SPAN))
        axis = 0 if kind in _UNEVEN else None
        low, high = np.asarray(values.min(axis=axis)), np.asarray(values.max(axis=axis))
        known = self._limits.get(name, (low, high))
        self._limits[name] = np.minimum(low, known[0]), np.maximum(high, known[1])

    def freeze(self) -> Ranges:
        """What was seen so far."""
        factors = {name: _channel_factors(low, high) for name, (low, high) in self._limits.items() if low.ndim}
        limits = {}
        for name, (low, high) in self._limits.items():
            factor = factors.get(name, np.float32(1))
            limits[name] = float((low / factor).min()), float((high / factor).max())
        return Ranges(limits, factors)


def _channel_factors(low: FloatArray, high: FloatArray) -> FloatArray:
    """Factors around 1, from each channel's smallest and largest value."""
    peaks = np.maximum(-low, high)
    peaks = np.maximum(peaks, max(float(peaks.max()) * 1e-4, 1e-6)) ** np.float32(_EVENING)
    return np.asarray(peaks / np.exp(np.log(peaks).mean()), np.float32)


def calibrate(config: NetworkConfig, read: ReadTensor, windows: npt.NDArray[np.integer], prefix: KvCache) -> Ranges:
    """Ranges of the float network over some text.

    Args:
        read: the tensors that will be quantized, smoothed if they are, `head.weight` among them.
        windows: (windows, length) tokens; each window starts right behind the prefix.
        prefix: keys and values of the prefix, smoothed like `read`. They share the cache's grid with what
            follows them, so they belong to its range.
    """
    observer = RangeObserver()
    ops = NumpyOps(config, read, windows, prefix, observer)
    x = hidden(ops, config)  # (windows * length, width)
    kept = {"head.weight": read("head.weight")}  # read once, not once per block of rows
    head_ops = NumpyOps(
        config, lambda name: kept[name] if name in kept else read(name), windows[:, :1], observe=observer
    )
    for start in range(0, len(x), _HEAD_ROWS):
        head(head_ops, x[start : start + _HEAD_ROWS])
    for i, (keys, values) in enumerate(prefix.layers):
        observer(f"layers.{i}.keys", keys)
        observer(f"layers.{i}.values", values)
    return observer.freeze()
