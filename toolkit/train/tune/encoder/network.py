"""A sentence encoder with heads, on JAX: what stays as it is, what is tuned, and the logits of texts.

The layers are alike, so one is compiled, and runs in a loop (`jax.lax.scan`) over the stacked weights. The table of
words stays as it is: words that no case has are read as before, and mean what those like them have come to mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from converters.encoders.network import EncoderConfig, SentenceHead, tensor_shapes
from converters.encoders.transformer import embedded, encoder_layer, sentence_of
from converters.network.weights import ReadTensor
from toolkit.train.tune.encoder.ops_jax import JaxSentences

__all__ = ["LOOKING", "Parts", "logits", "parts_of", "tensor_of", "with_heads"]

Array = npt.NDArray[np.float32]
Trained = dict[str, jax.Array]  # `layers.<name within a layer>`, stacked; `head.weight`, `head.bias`, `LOOKING`
_SPREAD = 0.02  # of the heads' first weights
_LAYER = "encoder.layers.0."
LOOKING = "head.look.weight", "head.near.weight"  # by which a field finds its own rows


def with_heads(config: EncoderConfig, sizes: Sequence[int]) -> EncoderConfig:
    """The same encoder with a head of so many values for each field, in place of its vector."""
    return replace(config, head=SentenceHead(config.head.pooling, None, sum(sizes), False, tuple(sizes)))


@dataclass(frozen=True)
class Parts:
    """An encoder's weights."""

    fixed: Mapping[str, jax.Array]  # by canonical name, those outside of the layers
    below: Mapping[str, jax.Array]  # of the layers that stay as they are, stacked, by the name within a layer
    trained: Trained


def parts_of(config: EncoderConfig, read: ReadTensor, layers: int, seed: int) -> Parts:
    """The weights that tuning begins with.

    Args:
        config: with heads, see `with_heads`.
        read: tensors of the encoder without heads.
        layers: how many of the upper ones are tuned.
    """
    rng = np.random.default_rng(seed)
    shapes, all_layers = tensor_shapes(config), config.encoder.layers
    names = [name.removeprefix(_LAYER) for name in shapes if name.startswith(_LAYER)]

    def stacked(numbers: Sequence[int]) -> dict[str, jax.Array]:
        rows = {name: [read(f"encoder.layers.{i}.{name}") for i in numbers] for name in names}
        return {name: jnp.asarray(np.stack(found)) for name, found in rows.items() if found}

    outside = [name for name in shapes if not name.startswith(("encoder.layers.", "head."))]
    trained = {f"layers.{name}": value for name, value in stacked(range(all_layers - layers, all_layers)).items()}
    trained["head.weight"] = jnp.asarray(rng.normal(0, _SPREAD, shapes["head.weight"]).astype(np.float32))
    trained["head.bias"] = jnp.zeros(shapes["head.bias"])
    trained |= {name: jnp.zeros(shapes[name]) for name in LOOKING}  # which weighs all rows alike: their mean
    return Parts({name: jnp.asarray(read(name)) for name in outside}, stacked(range(all_layers - layers)), trained)


def logits(
    config: EncoderConfig,
    fixed: Mapping[str, jax.Array],
    below: Mapping[str, jax.Array],
    trained: Trained,
    tokens: jax.Array,
    lengths: jax.Array,
    key: jax.Array | None = None,
    drop: float = 0.0,
) -> jax.Array:
    """Of all values of all fields: (texts, values); see `JaxSentences`."""
    upper = {name.removeprefix("layers."): value for name, value in trained.items() if name.startswith("layers.")}
    outer = {**fixed, **{name: value for name, value in trained.items() if name.startswith("head.")}}
    shared = {name: value for name, value in fixed.items() if ".relative." in name}  # every layer reads it
    keys = [None, None] if key is None else list(jax.random.split(key, 2))
    ops = JaxSentences(outer, tokens, lengths, keys[0], drop)
    x = embedded(ops, config.encoder)
    streams = [x[None]]  # and after each layer

    def one(x: jax.Array, layer: Any) -> tuple[jax.Array, jax.Array]:
        weights, own_key = layer
        within = {**shared, **{_LAYER + name: value for name, value in weights.items()}}
        x = encoder_layer(JaxSentences(within, tokens, lengths, own_key, drop), config, 0, x)
        return x, x

    if below:  # without dropout: nothing here is learnt
        x, rows = jax.lax.scan(lambda x, weights: one(x, (weights, None)), x, dict(below))
        streams.append(rows)
    if keys[1] is None:
        x, rows = jax.lax.scan(lambda x, weights: one(x, (weights, None)), x, upper)
    else:
        count = len(next(iter(upper.values())))
        x, rows = jax.lax.scan(one, x, (upper, jax.random.split(keys[1], count)))
    return sentence_of(ops, config, x, jnp.concatenate([*streams, rows])[config.middle])


def tensor_of(config: EncoderConfig, trained: Mapping[str, Array], name: str) -> Array | None:
    """What tuning made of a tensor; None of one that stayed as it is."""
    if name.startswith("head."):
        return trained[name]
    if not name.startswith("encoder.layers."):
        return None
    number, within = name.removeprefix("encoder.layers.").split(".", 1)
    rows = trained[f"layers.{within}"]
    place = int(number) - (config.encoder.layers - len(rows))
    return None if place < 0 else rows[place]
