"""Integer grids of activations: how a tensor's values are stored, and what storing them loses.

A grid has one scale for the whole tensor, as TFLite's kernels want it. Where channels differ in size, each is divided
by a factor of its own before it is stored, so that one scale serves all (smoothing). Every tensor that has factors is
made or read by float32 operators, so they cost one multiplication per channel, or nothing where they fold into the
scales of the weights that make it. Where a channel lies to one side of zero, its middle is taken away first (centers);
the matmul that makes or reads the tensor does that in its bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from converters.emit.tflite_write import Quantization
from converters.ops.numpy import FloatArray

__all__ = ["METHODS", "Choice", "Grid", "Grids", "Method", "fit_grid", "int16_grid"]

Method = Literal["min-max", "headroom", "percentile", "mse"]
METHODS: tuple[Method, ...] = ("min-max", "headroom", "percentile", "mse")
_HEADROOM = 1.25  # beyond what calibration saw; the next text's extremes are seldom the same
_INT16_HEADROOM = 2.0  # one bit of sixteen
_PERCENTILE = 0.01  # of the values lie outside, on either side
_MSE_RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4)
_SAMPLE = 400_000  # values that percentile and mse look at


@dataclass(frozen=True)
class Grid:
    """value = (stored - zero_point) * scale * factor of its channel + center of its channel"""

    scale: float
    zero_point: int
    dtype: np.dtype[Any]  # int8 or int16
    factors: FloatArray | None = None  # (channels,)
    centers: FloatArray | None = None  # (channels,)

    @property
    def quantization(self) -> Quantization:
        """For the tensor in the graph, which holds value / factor."""
        return Quantization.per_tensor(self.scale, self.zero_point)

    def stored(self, values: FloatArray) -> FloatArray:
        """The integers, as floats, that stand for `values`, (..., channels)."""
        limits = np.iinfo(self.dtype)
        step = np.float32(self.scale) if self.factors is None else np.float32(self.scale) * self.factors
        steps = values / step if self.centers is None else (values - self.centers) / step
        np.rint(steps, out=steps)
        steps += np.float32(self.zero_point)
        return np.clip(steps, limits.min, limits.max, out=steps)

    def rounded(self, values: FloatArray) -> FloatArray:
        """What is left of `values`, (..., channels), after they were stored."""
        step = np.float32(self.scale) if self.factors is None else np.float32(self.scale) * self.factors
        real = self.stored(values)
        real -= np.float32(self.zero_point)
        real *= step
        return real if self.centers is None else real + self.centers


Grids = Mapping[str, Grid]  # by the name of the activation, see `NumpyOps`


@dataclass(frozen=True)
class Choice:
    """One way to fit a grid."""

    evening: float  # 0 leaves the channels as they are, 1 divides each by its peak
    method: Method
    centered: bool = False  # take the middle of each channel away before it is stored


def fit_grid(values: FloatArray, choice: Choice, *, symmetric: bool = False) -> Grid:
    """An int8 grid for what calibration saw.

    Args:
        values: (tokens, channels).
        symmetric: zero point 0, as for what serves as weights in a matmul (the kv_cache).
    """
    low, high = values.min(axis=0), values.max(axis=0)
    centers = None
    if choice.centered:
        centers = (low + high) / 2
        values, low, high = values - centers, low - centers, high - centers
    factors = _factors(np.maximum(-low, high), choice.evening)
    if factors is not None:
        low, high = low / factors, high / factors
    limits = min(float(low.min()), 0.0), max(float(high.max()), 0.0)
    if choice.method == "headroom":
        limits = limits[0] * _HEADROOM, limits[1] * _HEADROOM
    elif choice.method == "percentile":
        cut = np.percentile(_sample(values, factors), [_PERCENTILE, 100 - _PERCENTILE])
        limits = max(limits[0], min(float(cut[0]), 0.0)), min(limits[1], max(float(cut[1]), 0.0))
    grid = _int8_grid(limits, symmetric)
    if choice.method == "mse":
        sample = _sample(values, factors)
        tried = [_int8_grid((limits[0] * ratio, limits[1] * ratio), symmetric) for ratio in _MSE_RATIOS]
        grid = min(tried, key=lambda g: float(np.square(g.rounded(sample) - sample).mean()))
    return Grid(grid.scale, grid.zero_point, grid.dtype, factors, centers)


def int16_grid(values: FloatArray, factors: FloatArray | None = None) -> Grid:
    """Symmetric, with room for twice the largest value that calibration saw."""
    peak = max(float(values.max()), -float(values.min()), 1e-6)
    return Grid(peak * _INT16_HEADROOM / 32767, 0, np.dtype(np.int16), factors)


def _int8_grid(limits: tuple[float, float], symmetric: bool) -> Grid:
    low, high = limits
    if symmetric:
        return Grid(max(-low, high, 1e-6) / 127, 0, np.dtype(np.int8))
    scale = max(high - low, 1e-6) / 255
    return Grid(scale, round(np.clip(-128 - low / scale, -128, 127)), np.dtype(np.int8))


def _factors(peaks: FloatArray, evening: float) -> FloatArray | None:
    """Around 1, so that the scale keeps its meaning; a channel that was never used gets no extreme one."""
    if evening == 0:
        return None
    evened = np.maximum(peaks, max(float(peaks.max()) * 1e-3, 1e-6)) ** np.float32(evening)
    return np.asarray(evened / np.exp(np.log(evened).mean()), np.float32)


def _sample(values: FloatArray, factors: FloatArray | None) -> npt.NDArray[np.float32]:
    rows = values[:: -(-values.size // _SAMPLE)]
    return rows if factors is None else rows / factors
