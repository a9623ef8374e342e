"""What watches the float network while it reads a text, and the passes in which it reads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from converters.network.config import NetworkConfig
from converters.network.decoder import block, head, head_input, hidden
from converters.network.tensors import activations
from converters.network.weights import CanonicalWeights, FloatArray, ReadTensor
from converters.ops.numpy import KvCache, NumpyOps
from converters.ops.numpy_parts import Observe

__all__ = ["ChannelPeaks", "observe_windows", "read_prefix_and_windows"]


class ChannelPeaks:
    """An observer that keeps the largest magnitudes of every matmul's input.

    Args:
        block: channels of which the largest magnitude is kept for each token, too.
    """

    def __init__(self, config: NetworkConfig, block: int | None = None) -> None:
        self.peaks: dict[str, FloatArray] = {}  # by channel
        self.of_blocks: dict[str, FloatArray] = {}  # (tokens, channels / block), of what was seen last
        self._activations, self._block = activations(config), block

    def __call__(self, name: str, values: FloatArray) -> None:
        """Take in values of shape (tokens, width)."""
        if self._activations[name].kind == "input":
            sizes = np.abs(values)
            peak = sizes.max(axis=0)
            known = self.peaks.get(name)
            self.peaks[name] = peak if known is None else np.maximum(known, peak)
            if self._block and values.shape[1] % self._block == 0:
                self.of_blocks[name] = sizes.reshape(len(values), -1, self._block).max(axis=2)


def observe_windows(
    config: NetworkConfig,
    read: ReadTensor,
    windows: npt.NDArray[np.integer],
    past: KvCache,
    observe: Observe,
) -> None:
    """One pass for an observer, over (windows, length) tokens that come after `past`.

    The head's result is not computed, only what it reads: `head.in`.
    """
    ops = NumpyOps(config, read, windows, past, observe)
    observe("head.in", head_input(ops, config, hidden(ops, config)))


def read_prefix_and_windows(
    weights: CanonicalWeights,
    prefix: npt.NDArray[np.integer],
    windows: npt.NDArray[np.integer],
    observe: Observe,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[KvCache, FloatArray | None]:
    """Read the prefix, and windows after it, in one pass: each layer's weights are read once for both.

    Args:
        prefix: (positions,) tokens; may be empty.
        windows: (windows, length) tokens, for the observer.
        progress: called with the share of the layers that is done.

    Returns:
        The keys and values of the prefix, and the logits after it, (vocabulary,); None without one.
    """
    config = weights.config
    first = NumpyOps(config, weights, prefix[None]) if len(prefix) else None
    cache = KvCache() if first is None else first.cache
    second = NumpyOps(config, weights, windows, cache, observe, start=len(prefix))
    x = None if first is None else first.embed()  # (positions, width)
    y = second.embed()  # (windows * length, width)
    for i in range(config.layers):
        if first is not None and x is not None:
            x = block(first, config, i, x)
        y = block(second, config, i, y)
        progress((i + 1) / config.layers)
    observe("head.in", head_input(second, config, y))
    return cache, None if first is None or x is None else head(first, config, x[-1:])[0]
