"""What a bundle's manifest says of its quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from converters.checkpoints import Checkpoint
from converters.measure.quality import (
    Windows,
    by_kind,
    compare_logits,
    compare_windows,
    layer_errors,
    logits_by_rows,
    pooled,
    worst_layers,
)
from converters.network.decoder import NetworkConfig
from converters.ops.numpy import KvCache, NumpyOps, ReadTensor, keeping
from converters.ops.simulated import SimulatedOps
from converters.quantize.activations import INT16_MATMULS, ActivationGrids
from device_runtime.bundle.folder import Bundle

__all__ = ["int16_report", "quality_report"]

_BLOCK = 256  # rows whose logits are compared at once
_SNR_WINDOWS = 3
# What int16 serves in the micro profile -> the activations that would be int8 instead.
_INT16_PARTS: dict[str, tuple[str, ...]] = {
    "down": (".down.in", ".down"),
    "attention": (".queries", ".scores", ".probabilities"),
    "o": (".o.in", ".o"),
    "head": ("head.in", "head"),
}


def quality_report(
    bundle: Bundle,
    checkpoint: Checkpoint,
    kinds: Mapping[str, Windows],
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Measure a bundle's graph against the float network.

    Args:
        kinds: windows of one length for each kind of text.

    Returns:
        For the manifest: the figures of `Comparison` for all texts, for each under `kinds`, and `worst_layers`.
    """
    comparisons, total = by_kind(
        kinds,
        lambda windows: compare_windows(bundle, windows, checkpoint, progress=lambda share: progress(0.9 * share)),
    )
    traced = np.concatenate([windows[:1] for windows in kinds.values()])[:_SNR_WINDOWS]
    worst = worst_layers(layer_errors(bundle, checkpoint, traced))
    progress(1.0)
    return {
        "text": "stonechat held-out text",
        **total.to_json(),
        "kinds": {kind: comparison.to_json() for kind, comparison in comparisons.items()},
        "worst_layers": [{"name": e.name, "snr_db": round(e.snr_db, 1), "lost_db": round(e.lost_db, 1)} for e in worst],
    }


def int16_report(
    config: NetworkConfig, read: ReadTensor, prefix: KvCache, chosen: ActivationGrids, windows: Windows
) -> dict[str, Any]:
    """What int16 activations buy and cost: how far from float it would be if a part were int8 instead, with float
    weights.

    Args:
        read: the network that `chosen` belongs to.
        windows: of which each row but the last of a window is compared.
    """
    read = keeping(read, "head.weight")
    reference = logits_by_rows(config, NumpyOps(config, read, windows, prefix))

    def compared(grids: Mapping[str, Any]) -> dict[str, Any]:
        simulated = logits_by_rows(config, SimulatedOps(config, read, windows, prefix, grids))
        parts = []
        for start in range(0, windows.size, _BLOCK):
            rows = slice(start, min(start + _BLOCK, windows.size))
            following = np.zeros(rows.stop - rows.start, np.int64)  # only the divergence is looked at
            parts.append(compare_logits(reference(rows.start, rows.stop), simulated(rows.start, rows.stop), following))
        total = pooled(parts).to_json()
        return {name: total[name] for name in ("kl_divergence", "top1_agreement")}

    weights = {
        "down": config.layers * config.width * config.ffn_width,
        "head": config.vocabulary * config.width,
        "o": config.layers * config.width * config.q_width,
    }
    assert set(weights) == set(INT16_MATMULS)
    result: dict[str, Any] = {**compared(chosen.grids), "instead": {}}
    for part, suffixes in _INT16_PARTS.items():
        int8 = {n: grid for n, grid in chosen.int8_instead.items() if n.endswith(suffixes)}
        entry = compared({**chosen.grids, **int8})
        if part in weights:
            entry["share_of_weights"] = round(weights[part] / config.matmul_weights, 4)
        result["instead"][part] = entry
    return result
