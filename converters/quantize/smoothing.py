"""Smoothing: factors that even out what a norm gives, for networks that cannot be rotated (see rotation.py).

A row of activations is quantized with one scale, so its few large channels leave the others few steps. Each channel is
divided by a factor in the norm's gain, and the columns of the weights that read it are multiplied by it: the weights
take over a part of the difference (SmoothQuant, Xiao et al. 2022).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from converters.network.config import NetworkConfig
from converters.network.tensors import Linear, Role, linears
from converters.network.weights import CanonicalWeights, FloatArray
from converters.quantize.own_grid import around_one
from converters.quantize.rotation import rotates_residual

__all__ = ["norm_factors"]

_SHARE = 0.5  # of the difference in size that the weights take over


def norm_factors(
    config: NetworkConfig, peaks: Mapping[str, FloatArray], canonical: CanonicalWeights, turn_head: bool = False
) -> dict[str, FloatArray]:
    """By the name of a norm with a gain, what each channel of its result is divided by: (width,), around 1.

    None of a network whose residual stream is rotated. The rows of a tied head are embeddings too, whose error is all
    in the channels that were made small. So its weights stay as they are.

    Args:
        peaks: by the name of an activation, the largest magnitude of each channel in the checkpoint's network.
        turn_head: the head reads a basis without large channels, so it needs no factors.
    """
    if rotates_residual(config):
        return {}
    readers: dict[str, list[Linear]] = {}  # several parts may read one norm
    for matmul in linears(config):
        if matmul.norm is not None and not (matmul.role is Role.HEAD and (config.head.tied or turn_head)):
            readers.setdefault(matmul.norm, []).append(matmul)
    found = {}
    for norm, matmuls in readers.items():
        weights = np.max([np.abs(canonical(matmul.weight)).max(axis=0) for matmul in matmuls], axis=0)
        # A channel that is never used, or never read, says nothing of the factor that it needs.
        sizes, weights = (np.maximum(v, max(float(v.max()) * 1e-4, 1e-12)) for v in (peaks[matmuls[0].input], weights))
        found[norm] = around_one(sizes**_SHARE / weights ** (1 - _SHARE))
    return found
