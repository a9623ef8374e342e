"""Perplexity, of the float network and of a graph, on the same windows of the same text."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from converters.network import NetworkConfig, head, hidden
from converters.ops_numpy import KvCache, NumpyOps, ReadTensor
from device_runtime.backends import Backend

__all__ = ["float_losses", "graph_losses", "text_windows"]

Losses = npt.NDArray[np.float64]  # (windows, length - 1): -log p of each token but the first of a window
_HEAD_ROWS = 256  # positions whose logits are held at once


def text_windows(tokens: list[int], length: int, count: int | None = None) -> npt.NDArray[np.int64]:
    """Cut tokens into (windows, length); what is left over is dropped. A text shorter than `length` is one window."""
    length = min(length, len(tokens))
    windows = len(tokens) // max(length, 1)
    windows = windows if count is None else min(count, windows)
    return np.array(tokens[: windows * length], np.int64).reshape(windows, length)


def float_losses(
    config: NetworkConfig, read: ReadTensor, windows: npt.NDArray[np.integer], prefix: KvCache | None
) -> Losses:
    """Losses of the float reference; each window starts right behind the prefix.

    Args:
        read: tensors by canonical name, `head.weight` among them.
    """
    ops = NumpyOps(config, read, windows, prefix)
    x = hidden(ops, config)  # (windows * length, width)
    kept = {"head.weight": read("head.weight")}  # read once, not once per block of rows
    head_ops = NumpyOps(config, lambda name: kept[name] if name in kept else read(name), windows[:, :1])
    targets = windows.reshape(-1)
    losses = np.zeros(len(targets))
    for start in range(0, len(targets) - 1, _HEAD_ROWS):
        stop = min(start + _HEAD_ROWS, len(targets) - 1)
        logits = head(head_ops, x[start:stop])
        losses[start:stop] = _losses(logits, targets[start + 1 : stop + 1])
    return losses.reshape(windows.shape)[:, :-1]


def graph_losses(
    backend: Backend, windows: npt.NDArray[np.integer], progress: Callable[[], None] = lambda: None
) -> Losses:
    """Losses of a graph, token by token, as it answers; each window starts right behind the prefix."""
    rows = []
    for window in windows:
        backend.rewind(0)
        losses = []
        for token, target in pairwise(window):
            logits = backend.decode(int(token))
            losses.append(_losses(logits[None], np.array([target]))[0])
            progress()
        rows.append(losses)
    return np.array(rows)


def _losses(logits: npt.NDArray[np.float32], targets: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """-log softmax(logits)[target] for each row of (rows, vocabulary)."""
    peak = logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(logits - peak, dtype=np.float32).sum(axis=1, dtype=np.float64))
    return np.asarray(total + peak[:, 0] - logits[np.arange(len(targets)), targets])
