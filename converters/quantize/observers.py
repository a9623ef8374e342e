"""What watches the float network while it reads a text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from converters.network.decoder import NetworkConfig, hidden
from converters.ops.numpy import FloatArray, KvCache, NumpyOps, Observe, ReadTensor

__all__ = ["ChannelPeaks", "observe_windows"]


class ChannelPeaks:
    """An observer that keeps the largest magnitude of each channel of every matmul's input."""

    def __init__(self) -> None:
        self.peaks: dict[str, FloatArray] = {}

    def __call__(self, name: str, values: FloatArray) -> None:
        """Take in values of shape (tokens, width)."""
        if name.endswith(".in"):
            peak = np.abs(values).max(axis=0)
            known = self.peaks.get(name)
            self.peaks[name] = peak if known is None else np.maximum(known, peak)


def observe_windows(
    config: NetworkConfig,
    read: ReadTensor,
    windows: npt.NDArray[np.integer],
    past: KvCache,
    observe: Observe,
) -> None:
    """One pass for an observer, over (windows, length) tokens that stand behind `past`.

    The head's result is not computed, only what it reads: `head.in`.
    """
    ops = NumpyOps(config, read, windows, past, observe)
    observe("head.in", ops.rms_norm(hidden(ops, config), "final_norm"))
