"""The parts of a network that compute row by row, in float32: what the readings of decoders and of encoders share."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from converters.network.config import ActivationKind, Norm
from converters.network.tensors import Linear
from converters.network.weights import FloatArray, ReadTensor

__all__ = ["NumpyParts", "Observe", "activation"]

Observe = Callable[[str, FloatArray], None]  # (canonical name of an activation, its values)

_TANH_GELU = np.float32(math.sqrt(2 / math.pi))


def _erf(x: FloatArray) -> FloatArray:
    """The error function, at most 2e-7 off: Abramowitz and Stegun, formula 7.1.26."""
    size = np.abs(x)
    t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * size)
    series = np.zeros_like(t)
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(factor)) * t
    return np.asarray(np.copysign(np.float32(1) - series * np.exp(-size * size), x), np.float32)


def activation(x: FloatArray, kind: ActivationKind) -> FloatArray:
    """The activation function, by element."""
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "relu_squared":
        return np.square(np.maximum(x, 0))
    if kind == "gelu":
        return np.asarray(np.float32(0.5) * x * (1 + _erf(x * np.float32(math.sqrt(0.5)))))
    if kind == "gelu_tanh":
        return np.asarray(np.float32(0.5) * x * (1 + np.tanh(_TANH_GELU * (x + np.float32(0.044715) * x**3))))
    with np.errstate(over="ignore"):  # exp of a large negative gate overflows to inf: sigmoid is 0
        return np.asarray(x / (np.float32(1) + np.exp(-x)))


class NumpyParts:
    """Everything of `Ops` that knows neither positions nor a kv_cache.

    Args:
        read: where weights come from.
        observe: called with every named activation; it must not change the values.
    """

    def __init__(self, read: ReadTensor, observe: Observe | None = None) -> None:
        self._read = read
        self._observe = observe or (lambda name, values: None)

    def norm(self, x: FloatArray, norm: Norm, name: str, heads: int = 1) -> FloatArray:
        """As in `Ops`."""
        rows = x if heads == 1 else x.reshape(-1, x.shape[1] // heads)
        if norm.kind == "layer":
            rows = rows - rows.mean(axis=1, keepdims=True)
        mean = np.einsum("tw,tw->t", rows, rows, dtype=np.float32)[:, None] / np.float32(rows.shape[1])
        rows = rows / np.sqrt(mean + np.float32(norm.epsilon))
        if norm.gain:
            rows = rows * self._read(f"{name}.weight")
        if norm.bias:
            rows = rows + self._read(f"{name}.bias")
        return np.asarray(rows).reshape(x.shape)

    def linear(self, x: FloatArray, *matmuls: Linear) -> tuple[FloatArray, ...]:
        """As in `Ops`."""
        x = self._named(matmuls[0].input, x)
        return tuple(self._named(matmul.name, self._matmul(x, matmul)) for matmul in matmuls)

    def _named(self, name: str, values: FloatArray) -> FloatArray:
        """Every named activation comes through here; a reading that stores them in integers overrides it."""
        self._observe(name, values)
        return values

    def _matmul(self, x: FloatArray, matmul: Linear) -> FloatArray:
        y = x @ self._read(matmul.weight).T
        if matmul.bias:
            y += self._read(f"{matmul.name}.bias")
        return y

    def activate(self, x: FloatArray, kind: ActivationKind) -> FloatArray:
        """As in `Ops`."""
        return activation(x, kind)

    def gated(self, gate: FloatArray, up: FloatArray, kind: ActivationKind) -> FloatArray:
        """As in `Ops`."""
        return activation(gate, kind) * up

    def add(self, x: FloatArray, y: FloatArray, name: str) -> FloatArray:
        """As in `Ops`."""
        return self._named(name, x + y)

    def scaled(self, x: FloatArray, factor: float) -> FloatArray:
        """As in `Ops`."""
        return x * np.float32(factor)

    def turn(self, x: FloatArray, name: str) -> FloatArray:
        """As in `Ops`."""
        return np.asarray(x @ self._read(f"{name}.weight").T)

    def softcap(self, x: FloatArray, cap: float) -> FloatArray:
        """As in `Ops`."""
        return np.asarray(np.float32(cap) * np.tanh(x / np.float32(cap)))
