"""A Llama-shaped decoder in JAX: the network of converters/network/decoder.py, written once more to be differentiated.

tests/toolkit/train/test_network.py holds the two to the same logits. Tensors have the names and shapes of a Hugging
Face checkpoint, (out, in), except that those of all layers are stacked: (layers, out, in).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from device_runtime.tasks.file import Network

__all__ = ["EPSILON", "ROPE_BASE", "Parameters", "forward", "initial", "logits", "with_map", "without_map"]

Parameters = dict[str, jax.Array]
EPSILON = 1e-5
ROPE_BASE = 10_000.0
_LAYER = ("q", "k", "v", "o", "gate", "up", "down")


def initial(shape: Network, vocabulary: int, seed: int) -> Parameters:
    """Weights to begin with, drawn with numpy: the same on every machine."""
    rng = np.random.default_rng(seed)
    width, ffn, layers = shape.width, shape.ffn, shape.layers

    def normal(*size: int, scale: float) -> jax.Array:
        return jnp.asarray(rng.normal(0, scale, size).astype(np.float32))

    depth = 1 / np.sqrt(2 * layers)  # what goes into the residual sum begins small
    sizes = {"q": (width, width), "k": (width, width), "v": (width, width), "o": (width, width)}
    sizes |= {"gate": (ffn, width), "up": (ffn, width), "down": (width, ffn)}
    parameters = {"embed": normal(vocabulary, width, scale=0.1)}
    for name in _LAYER:
        rows, columns = sizes[name]
        scale = (depth if name in ("o", "down") else 1.0) / np.sqrt(columns)
        parameters[name] = normal(layers, rows, columns, scale=scale)
    parameters["attention_norm"] = jnp.ones((layers, width))
    parameters["ffn_norm"] = jnp.ones((layers, width))
    parameters["final_norm"] = jnp.ones((width,))
    if not shape.tied:
        parameters["head"] = normal(vocabulary, width, scale=0.3 / np.sqrt(width))
    return parameters


def with_map(parameters: Parameters, table: npt.NDArray[np.float32]) -> Parameters:
    """The same, whose tokens are read by the rows of `table` (vocabulary, size), mapped to the width.

    What is trained is the map, so that words which no case has move with those that the cases have. Tokens whose row is
    nothing but zeros (all come first) keep rows of their own. The map begins with the table's principal components.
    """
    own = int(np.argmax(table.any(axis=1)))
    _, sizes, directions = np.linalg.svd(table[own:], full_matrices=False)
    width = parameters["embed"].shape[1]
    scale = 0.2 * np.sqrt(len(table) - own) / np.sqrt(sizes[:width] * sizes[:width].mean())  # half way to equal sizes
    mapped = (directions[:width] * scale[:, None]).T  # (size, width)
    return {**parameters, "embed": parameters["embed"][:own], "map": jnp.asarray(mapped.astype(np.float32))}


def without_map(
    weights: dict[str, npt.NDArray[np.float32]], table: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.float32]]:
    """An ordinary network with one row for each token, which answers alike."""
    own = len(weights["embed"])
    rows = np.concatenate([weights["embed"], table[own:] @ weights["map"]])
    return {name: rows if name == "embed" else tensor for name, tensor in weights.items() if name != "map"}


def _embedded(parameters: Parameters, tokens: jax.Array, table: jax.Array | None) -> jax.Array:
    """(batch, time, width)."""
    if table is None:
        return parameters["embed"][tokens]
    own = len(parameters["embed"])
    rows = parameters["embed"][jnp.minimum(tokens, own - 1)]
    return jnp.where((tokens < own)[..., None], rows, table[tokens] @ parameters["map"])


def forward(
    parameters: Parameters,
    tokens: jax.Array,
    shape: Network,
    drop: jax.Array | None = None,
    table: jax.Array | None = None,
) -> jax.Array:
    """What the final norm gives, (batch, time, width), for (batch, time) tokens that begin at position 0.

    Args:
        drop: (layers, 2, batch, 1, 1) factors of what each block adds, for training; None adds all of it.
        table: what `with_map` had.
    """
    batch, time = tokens.shape
    heads, head_dim = shape.heads, shape.width // shape.heads
    cos, sin = _rope(time, head_dim)
    causal = jnp.where(jnp.tril(jnp.ones((time, time), bool)), 0.0, -1e9)
    x = _embedded(parameters, tokens, table)  # (B, T, C)

    def split(values: jax.Array) -> jax.Array:
        return values.reshape(batch, time, heads, head_dim).transpose(0, 2, 1, 3)  # (B, H, T, D)

    for i in range(shape.layers):
        w = {name: parameters[name][i] for name in (*_LAYER, "attention_norm", "ffn_norm")}
        h = _rms_norm(x, w["attention_norm"])
        q, k, v = (split(h @ w[name].T) for name in ("q", "k", "v"))
        q, k = q * cos + _half_turned(q) * sin, k * cos + _half_turned(k) * sin
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(head_dim) + causal  # (B, H, T, T)
        mixed = jax.nn.softmax(scores, axis=-1) @ v  # (B, H, T, D)
        mixed = mixed.transpose(0, 2, 1, 3).reshape(batch, time, -1) @ w["o"].T
        x = x + (mixed if drop is None else mixed * drop[i, 0])
        h = _rms_norm(x, w["ffn_norm"])
        added = (jax.nn.silu(h @ w["gate"].T) * (h @ w["up"].T)) @ w["down"].T
        x = x + (added if drop is None else added * drop[i, 1])
    return _rms_norm(x, parameters["final_norm"])


def logits(parameters: Parameters, hidden: jax.Array, tokens: Sequence[int] | None = None) -> jax.Array:
    """(…, vocabulary) for (…, width); or of these tokens only."""
    rows = parameters.get("head", parameters["embed"])
    return hidden @ (rows if tokens is None else rows[jnp.array(tokens)]).T


def _rms_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON) * gain


def _rope(time: int, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    frequencies = ROPE_BASE ** -(np.arange(0, head_dim, 2) / head_dim)
    angles = np.outer(np.arange(time), np.concatenate([frequencies, frequencies]))  # (T, D)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _half_turned(x: jax.Array) -> jax.Array:
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-second, first], axis=-1)
