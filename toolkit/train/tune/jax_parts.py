"""What decoders and encoders have in common when JAX reads them: norms, matmuls and what is done by element."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from converters.network.config import ActivationKind, Norm
from converters.network.tensors import Linear

__all__ = ["HIDDEN", "JaxParts", "Tensors"]

Tensors = Mapping[str, jax.Array]
HIDDEN = -1e30  # the score of a position that is not seen; -inf has no gradient


class JaxParts:
    """Part of `Ops` and of `StackOps`, on JAX arrays.

    Args:
        weights: the checkpoint's tensors by canonical name, as far as they are asked for.
        trained: what takes the place of a weight, by its name, or is added to it: `<matmul>.a` (rank, in) and
            `<matmul>.b` (out, rank), times `scale`.
    """

    def __init__(self, weights: Tensors, trained: Tensors | None = None, scale: float = 1.0) -> None:
        self._weights = weights
        self._trained: Tensors = trained or {}
        self._scale = scale

    def _read(self, name: str) -> jax.Array:
        return self._trained[name] if name in self._trained else self._weights[name]

    def norm(self, x: jax.Array, norm: Norm, name: str, heads: int = 1) -> jax.Array:
        """As in `Ops`."""
        rows = x.reshape(len(x), heads, -1)
        if norm.kind == "layer":
            rows = rows - rows.mean(axis=-1, keepdims=True)
        rows = rows * jax.lax.rsqrt(jnp.mean(rows * rows, axis=-1, keepdims=True) + norm.epsilon)
        if norm.gain:
            rows = rows * self._read(f"{name}.weight")
        if norm.bias:
            rows = rows + self._read(f"{name}.bias")
        return rows.reshape(x.shape)

    def linear(self, x: jax.Array, *matmuls: Linear) -> tuple[jax.Array, ...]:
        """As in `Ops`."""
        return tuple(self._matmul(x, matmul) for matmul in matmuls)

    def _matmul(self, x: jax.Array, matmul: Linear) -> jax.Array:
        y = x @ self._read(matmul.weight).T
        if f"{matmul.name}.a" in self._trained:
            y = y + (x @ self._trained[f"{matmul.name}.a"].T) @ self._trained[f"{matmul.name}.b"].T * self._scale
        return y + self._read(f"{matmul.name}.bias") if matmul.bias else y

    def activate(self, x: jax.Array, kind: ActivationKind) -> jax.Array:
        """As in `Ops`."""
        if kind == "silu":
            return jax.nn.silu(x)
        if kind in ("gelu", "gelu_tanh"):
            return jax.nn.gelu(x, approximate=kind == "gelu_tanh")
        return jax.nn.relu(x) if kind == "relu" else jnp.square(jax.nn.relu(x))

    def gated(self, gate: jax.Array, up: jax.Array, kind: ActivationKind) -> jax.Array:
        """As in `Ops`."""
        return self.activate(gate, kind) * up

    def add(self, x: jax.Array, y: jax.Array, name: str) -> jax.Array:
        """As in `Ops`."""
        return x + y

    def scaled(self, x: jax.Array, factor: float) -> jax.Array:
        """As in `Ops`."""
        return x * factor
