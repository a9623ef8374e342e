"""Smoothing: move each channel's size between an activation and the weights that read it.

A matmul's result does not change when column j of its weight is multiplied by s[j] and channel j of its
input is divided by s[j]. The division costs nothing at run time, because it folds into whatever made the
input:

    norm gain   -> q, k, v   and gate, up
    up rows     -> down        (the gate's half of the product is left alone)
    v rows      -> o           (all query heads of a group share the scale of their value head)
    final gain  -> head        (a graph in which `embed` shares the head's rows divides them by s again)

After SmoothQuant (Xiao et al. 2022): s[j] = max|x[j]|^alpha / max|W[:, j]|^(1 - alpha).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from converters.network import NetworkConfig, hidden
from converters.ops_numpy import FloatArray, KvCache, NumpyOps, Observe, ReadTensor

__all__ = ["ChannelPeaks", "Smoothing", "choose_smoothing", "matmul_groups", "observe_windows"]


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


@dataclass(frozen=True)
class Smoothing:
    """The scales s, by the name of the first matmul of each group that reads one input."""

    config: NetworkConfig
    scales: Mapping[str, FloatArray]

    def apply(self, read: ReadTensor) -> ReadTensor:
        """The same network with smoothed weights; `head.weight` differs from `embed.weight` even if tied."""
        columns: dict[str, FloatArray] = {}  # tensor -> factor of its columns
        rows: dict[str, FloatArray] = {}  # tensor -> divisor of its rows (or of its elements, for a gain)
        for group in matmul_groups(self.config):
            scale = self.scales.get(group[0])
            if scale is None:
                continue
            for name in group:
                columns[f"{name}.weight"] = scale
            rows.update(dict.fromkeys(_sources(group[0]), self._source_scale(group[0], scale)))

        def smoothed(name: str) -> FloatArray:
            tensor = read(name)
            if name in columns:
                tensor *= columns[name]
            if name in rows:
                tensor /= rows[name].reshape(-1, *[1] * (tensor.ndim - 1))
            return tensor

        return smoothed

    def apply_to_cache(self, cache: KvCache) -> KvCache:
        """A cache of the same network as the smoothed one would fill it: values divided, keys as they are."""
        c = self.config
        layers = []
        for i, (keys, values) in enumerate(cache.layers):
            scale = self.scales.get(f"layers.{i}.o")
            if scale is not None:
                values = values / self._source_scale(f"layers.{i}.o", scale).reshape(c.kv_heads, c.head_dim)
            layers.append((keys, values))
        return KvCache(layers)

    def _source_scale(self, first: str, scale: FloatArray) -> FloatArray:
        if not first.endswith(".o"):
            return scale
        c = self.config  # value head -> one scale for all its query heads
        return scale.reshape(c.kv_heads, c.heads // c.kv_heads, c.head_dim)[:, 0].reshape(-1)


def matmul_groups(config: NetworkConfig) -> list[tuple[str, ...]]:
    """The names of the matmuls that read one input, in the order in which `decoder` calls `linear`."""
    groups: list[tuple[str, ...]] = []
    for i in range(config.layers):
        p = f"layers.{i}"
        groups += [(f"{p}.q", f"{p}.k", f"{p}.v"), (f"{p}.o",), (f"{p}.gate", f"{p}.up"), (f"{p}.down",)]
    return [*groups, ("head",)]


def _sources(first: str) -> list[str]:
    """The tensors whose rows make the input of the group whose first matmul is `first`."""
    if first == "head":
        return ["final_norm.weight"]
    layer, kind = first.rsplit(".", 1)
    return {
        "q": [f"{layer}.attention_norm.weight"],
        "o": [f"{layer}.v.weight", f"{layer}.v.bias"],
        "gate": [f"{layer}.ffn_norm.weight"],
        "down": [f"{layer}.up.weight", f"{layer}.up.bias"],
    }[kind]


def choose_smoothing(
    config: NetworkConfig, read: ReadTensor, peaks: Mapping[str, FloatArray], alpha: float = 0.5
) -> Smoothing:
    """Scales from the peaks of a calibration run.

    Args:
        read: tensors by canonical name, `head.weight` among them (see `with_head`).
        peaks: `ChannelPeaks.peaks`.
        alpha: 0 leaves activations as they are, 1 makes all their channels equally large.
    """
    scales: dict[str, FloatArray] = {}
    for group in matmul_groups(config):
        activation = peaks[f"{group[0]}.in"].astype(np.float32)
        if group[0].endswith(".o"):
            shape = (config.kv_heads, config.heads // config.kv_heads, config.head_dim)
            shared = activation.reshape(shape).max(axis=1, keepdims=True)
            activation = np.broadcast_to(shared, shape).reshape(-1)
        weight = np.zeros_like(activation)
        for name in group:
            weight = np.maximum(weight, _column_peaks(read(f"{name}.weight")))
        if group[0].endswith(".o"):
            shared = weight.reshape(shape).max(axis=1, keepdims=True)
            weight = np.broadcast_to(shared, shape).reshape(-1)
        usable = (activation > 0) & (weight > 0)
        scale = np.ones_like(activation)
        scale[usable] = activation[usable] ** alpha / weight[usable] ** (1 - alpha)
        # Only ratios matter: a mean of 1 keeps gains and weights near the size they had.
        scale /= np.exp(np.log(scale).mean())
        scales[group[0]] = np.clip(scale, 1e-3, 1e3).astype(np.float32)
    return Smoothing(config, scales)


def _column_peaks(weight: FloatArray) -> FloatArray:
    """max |column|, a block of rows at a time: |weight| would be a second copy."""
    peak = np.zeros(weight.shape[1], np.float32)
    for start in range(0, weight.shape[0], 1024):
        block = weight[start : start + 1024]
        peak = np.maximum(peak, np.maximum(block.max(axis=0), -block.min(axis=0)))
    return peak
