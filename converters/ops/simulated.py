"""Ops that compute in float what the `micro` graph computes in integers: every activation is quantized and taken back.

Faster than the graph, since many tokens are read at once, and any part can be left in float: that is how quantizing a
tensor in one way or another, or int16 instead of int8, shows what it costs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from converters.network.config import NetworkConfig
from converters.network.tensors import activations
from converters.network.weights import FloatArray, ReadTensor
from converters.ops.numpy import KvCache, NumpyOps
from converters.quantize.params import ParamsByName

__all__ = ["SimulatedOps"]


class SimulatedOps(NumpyOps):
    """See `NumpyOps`. An activation whose name is not in `params` stays float."""

    def __init__(
        self,
        config: NetworkConfig,
        read: ReadTensor,
        tokens: npt.NDArray[np.integer],
        past: KvCache | None,
        params: ParamsByName,
    ) -> None:
        super().__init__(config, read, tokens, _quantized_cache(past or KvCache(), params))
        self._params, self._activations = params, activations(config)

    def _named(self, name: str, values: FloatArray) -> FloatArray:
        params = self._params.get(name)
        if params is None:
            return values
        quantized = params.fake_quantize(values)
        if self._activations[name].kind == "scores":  # which are -inf where a position is hidden
            return np.where(np.isneginf(values), values, quantized)
        return quantized


def _quantized_cache(cache: KvCache, params: ParamsByName) -> KvCache:
    """Keys and values as an int8 kv_cache holds them."""
    layers = []
    for i, pair in enumerate(cache.layers):
        names = (f"layers.{i}.keys", f"layers.{i}.v")
        keys, values = (
            params[name].fake_quantize(t.reshape(*t.shape[:-2], -1)).reshape(t.shape) if name in params else t
            for name, t in zip(names, pair, strict=True)
        )
        layers.append((keys, values))
    return KvCache(layers)
