"""Ops that compute in float what the `micro` graph computes in integers: every activation goes through its grid.

Faster than the graph, since many tokens are read at once, and any part can be left in float: that is how a grid, or
int16 instead of int8, shows what it costs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from converters.network.decoder import NetworkConfig
from converters.ops.numpy import FloatArray, KvCache, NumpyOps, ReadTensor
from converters.quantize.grids import Grids

__all__ = ["SimulatedOps"]


class SimulatedOps(NumpyOps):
    """See `NumpyOps`. An activation whose name is not in `grids` stays float."""

    def __init__(
        self,
        config: NetworkConfig,
        read: ReadTensor,
        tokens: npt.NDArray[np.integer],
        past: KvCache | None,
        grids: Grids,
    ) -> None:
        super().__init__(config, read, tokens, rounded_cache(past or KvCache(), grids))
        self._grids = grids

    def _named(self, name: str, values: FloatArray) -> FloatArray:
        grid = self._grids.get(name)
        if grid is None:
            return values
        rounded = grid.rounded(values)
        return np.where(np.isneginf(values), values, rounded) if name.endswith(".scores") else rounded


def rounded_cache(cache: KvCache, grids: Grids) -> KvCache:
    """Keys and values as an int8 kv_cache holds them."""
    layers = []
    for i, pair in enumerate(cache.layers):
        names = (f"layers.{i}.keys", f"layers.{i}.v")
        keys, values = (
            grids[name].rounded(t.reshape(*t.shape[:-2], -1)).reshape(t.shape) if name in grids else t
            for name, t in zip(names, pair, strict=True)
        )
        layers.append((keys, values))
    return KvCache(layers)
