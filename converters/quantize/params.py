"""How activations of the `micro` profile become integers, and what that loses.

A tensor has one scale, as TFLite's kernels want it. Where channels differ in size, each is divided by a scale of its
own before it is quantized, so that one scale serves all (smoothing, after SmoothQuant, Xiao et al. 2023). Every tensor
that has channel scales is made or read by float32 operators, so they cost one multiplication per channel, or nothing
where they fold into the scales of the weights that make it. Where a channel lies to one side of zero, its middle is
taken away first (the channel offset); the matmul that makes or reads the tensor does that in its bias.

Which activations are int16: the inputs of `down`, whose largest values are a hundred times the others, and of the head,
because int8 logits would tie; the rows that attention multiplies with the int8 kv_cache; and so what follows, the
input of `o`.

The few channels of `down`'s input that are a thousand times larger than the rest are too much even for int16. The
channels are sorted by size (see rotation.py), and the last 24th of them has a scale of its own (`down_ranges`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from converters.network.tensors import Role
from converters.network.weights import FloatArray

__all__ = [
    "INT16_ROLES",
    "METHODS",
    "SMALL_FFN_WIDTH",
    "Choice",
    "Method",
    "ParamsByName",
    "QuantParams",
    "down_ranges",
    "fit_int8",
    "fit_int16",
]

INT16_ROLES = (Role.O, Role.DOWN, Role.HEAD)  # whose inputs and results are int16
SMALL_FFN_WIDTH = 256  # below it, the columns of `down` are one range in every profile

Method = Literal["min-max", "headroom", "percentile", "mse"]
METHODS: tuple[Method, ...] = ("min-max", "headroom", "percentile", "mse")
_HEADROOM = 1.25  # beyond what calibration saw; the next text's extremes are seldom the same
_INT16_HEADROOM = 2.0  # one bit of sixteen
_PERCENTILE = 0.01  # of the values lie outside, on either side
_MSE_RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4)
_SAMPLE = 400_000  # values that percentile and mse look at


@dataclass(frozen=True)
class QuantParams:
    """value = (integer - zero_point) * scale * scale of its channel + offset of its channel"""

    scale: float
    zero_point: int
    dtype: np.dtype[Any]  # int8 or int16
    scales: FloatArray | None = None  # (channels,)
    offsets: FloatArray | None = None  # (channels,)

    def quantize(self, values: FloatArray) -> FloatArray:
        """The integers for `values`, (..., channels), as floats."""
        limits = np.iinfo(self.dtype)
        step = np.float32(self.scale) if self.scales is None else np.float32(self.scale) * self.scales
        steps = values / step if self.offsets is None else (values - self.offsets) / step
        np.rint(steps, out=steps)
        steps += np.float32(self.zero_point)
        return np.clip(steps, limits.min, limits.max, out=steps)

    def fake_quantize(self, values: FloatArray) -> FloatArray:
        """`values`, (..., channels), as they are after they were integers."""
        step = np.float32(self.scale) if self.scales is None else np.float32(self.scale) * self.scales
        real = self.quantize(values)
        real -= np.float32(self.zero_point)
        real *= step
        return real if self.offsets is None else real + self.offsets


ParamsByName = Mapping[str, QuantParams]  # by the name of the activation, see `network.tensors.activations`


def down_ranges(ffn_width: int) -> list[tuple[int, int]]:
    """(start, stop) of the ranges of `down`'s columns, each of which is quantized by itself in the `micro` profile."""
    if ffn_width < SMALL_FFN_WIDTH:
        return [(0, ffn_width)]
    cut = ffn_width * 23 // 24 // 32 * 32
    return [(0, cut), (cut, ffn_width)]


@dataclass(frozen=True)
class Choice:
    """One way to fit parameters."""

    alpha: float  # smoothing: 0 leaves the channels as they are, 1 divides each by its peak
    method: Method
    centered: bool = False  # take the middle of each channel away before it is quantized


def fit_int8(values: FloatArray, choice: Choice, *, symmetric: bool = False) -> QuantParams:
    """int8 for what calibration saw.

    Args:
        values: (tokens, channels).
        symmetric: zero point 0, as for what serves as weights in a matmul (the kv_cache).
    """
    low, high = values.min(axis=0), values.max(axis=0)
    offsets = None
    if choice.centered:
        offsets = (low + high) / 2
        values, low, high = values - offsets, low - offsets, high - offsets
    scales = _channel_scales(np.maximum(-low, high), choice.alpha)
    if scales is not None:
        low, high = low / scales, high / scales
    limits = min(float(low.min()), 0.0), max(float(high.max()), 0.0)
    if choice.method == "headroom":
        limits = limits[0] * _HEADROOM, limits[1] * _HEADROOM
    elif choice.method == "percentile":
        cut = np.percentile(_sample(values, scales), [_PERCENTILE, 100 - _PERCENTILE])
        limits = max(limits[0], min(float(cut[0]), 0.0)), min(limits[1], max(float(cut[1]), 0.0))
    params = _int8(limits, symmetric)
    if choice.method == "mse":
        sample = _sample(values, scales)
        tried = [_int8((limits[0] * ratio, limits[1] * ratio), symmetric) for ratio in _MSE_RATIOS]
        params = min(tried, key=lambda p: float(np.square(p.fake_quantize(sample) - sample).mean()))
    return QuantParams(params.scale, params.zero_point, params.dtype, scales, offsets)


def fit_int16(values: FloatArray, scales: FloatArray | None = None) -> QuantParams:
    """Symmetric, with room for twice the largest value that calibration saw."""
    peak = max(float(values.max()), -float(values.min()), 1e-6)
    return QuantParams(peak * _INT16_HEADROOM / 32767, 0, np.dtype(np.int16), scales)


def _int8(limits: tuple[float, float], symmetric: bool) -> QuantParams:
    low, high = limits
    if symmetric:
        return QuantParams(max(-low, high, 1e-6) / 127, 0, np.dtype(np.int8))
    scale = max(high - low, 1e-6) / 255
    return QuantParams(scale, round(np.clip(-128 - low / scale, -128, 127)), np.dtype(np.int8))


def _channel_scales(peaks: FloatArray, alpha: float) -> FloatArray | None:
    """Around 1, so that the scale keeps its meaning; a channel that was never used gets no extreme one."""
    if alpha == 0:
        return None
    scales = np.maximum(peaks, max(float(peaks.max()) * 1e-3, 1e-6)) ** np.float32(alpha)
    return np.asarray(scales / np.exp(np.log(scales).mean()), np.float32)


def _sample(values: FloatArray, scales: FloatArray | None) -> npt.NDArray[np.float32]:
    rows = values[:: -(-values.size // _SAMPLE)]
    return rows if scales is None else rows / scales
