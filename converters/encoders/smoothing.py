"""Factors that move the range of a few large channels from what a matmul reads into its weights.

After a norm some channels of the residual stream are many times as large as the others, in every text. The kernel gives
each row of activations one scale, so these few would leave little of it for the rest: a channel is divided by a factor,
and the columns of the weights that read it are multiplied by it (SmoothQuant, Xiao et al. 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from converters.encoders.network import EncoderConfig, linears
from converters.encoders.ops_numpy import reference_sentence
from converters.network.tensors import Linear, Role
from converters.network.weights import FloatArray, ReadTensor

__all__ = ["smoothing_factors"]

_ALPHA = 0.5  # how much of a channel's range goes over; of 0.3, 0.5 and 0.7 the best on all-MiniLM-L6-v2


def smoothing_factors(
    config: EncoderConfig, read: ReadTensor, texts: Sequence[Sequence[int]]
) -> Mapping[int, FloatArray]:
    """For each group of matmuls that reads a normed residual stream, a factor for each of its channels, (width,).

    Args:
        texts: tokens of calibration texts, their frames included.
    """
    groups: dict[str, list[Linear]] = {}
    for matmul in linears(config).values():
        if matmul.role in (Role.Q, Role.K, Role.V, Role.GATE, Role.UP):
            groups.setdefault(matmul.input, []).append(matmul)
    peaks = {name: np.full(config.width, 1e-6, np.float32) for name in groups}

    def observe(name: str, values: FloatArray) -> None:
        if name in peaks:
            peaks[name] = np.maximum(peaks[name], np.abs(values).max(axis=0))

    for tokens in texts:
        reference_sentence(config, read, tokens, observe)
    factors = {}
    for name, group in groups.items():
        weights = np.max([np.abs(read(matmul.weight)).max(axis=0) for matmul in group], axis=0)
        factor = peaks[name] ** _ALPHA / np.maximum(weights, 1e-6) ** (1 - _ALPHA)
        factors[group[0].group] = np.asarray(factor / np.exp(np.log(factor).mean()), np.float32)
    return factors
