"""What a bundle's manifest says of its quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from converters.checkpoints import Checkpoint
from converters.measure.quality import (
    Windows,
    by_kind,
    can_trace_layers,
    compare_logits,
    compare_windows,
    layer_errors,
    logits_by_rows,
    pooled,
    worst_layers,
)
from converters.network.tensors import Activation, Role, activations, linears, matmul_weights
from converters.network.weights import keeping
from converters.ops.numpy import KvCache, NumpyOps
from converters.ops.simulated import SimulatedOps
from converters.quantize.calibrate import ActivationParams
from converters.quantize.params import INT16_ROLES, ParamsByName
from converters.quantize.rotation import RotatedWeights
from device_runtime.bundle.folder import Bundle

__all__ = ["int16_report", "quality_report"]

_BLOCK = 256  # rows whose logits are compared at once
_SNR_WINDOWS = 3
# What int16 serves in the micro profile
_INT16_PARTS: tuple[Role | Literal["attention"], ...] = (Role.DOWN, "attention", Role.O, Role.HEAD)


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
    report = {
        "text": "stonechat held-out text",
        **total.to_json(),
        "kinds": {kind: comparison.to_json() for kind, comparison in comparisons.items()},
    }
    if not can_trace_layers(bundle):
        return report
    traced = np.concatenate([windows[:1] for windows in kinds.values()])[:_SNR_WINDOWS]
    worst = worst_layers(layer_errors(bundle, checkpoint, traced))
    progress(1.0)
    return {
        **report,
        "worst_layers": [{"name": e.name, "snr_db": round(e.snr_db, 1), "lost_db": round(e.lost_db, 1)} for e in worst],
    }


def int16_report(
    weights: RotatedWeights, prefix: KvCache, chosen: ActivationParams, windows: Windows
) -> dict[str, Any]:
    """What int16 activations buy and cost: how far from float it would be if a part were int8 instead, with float
    weights.

    Args:
        weights: the network that `chosen` belongs to.
        windows: of which each row but the last of a window is compared.
    """
    config, read = weights.config, keeping(weights, "head.weight")
    reference = logits_by_rows(config, NumpyOps(config, read, windows, prefix))

    def compared(params: ParamsByName) -> dict[str, Any]:
        simulated = logits_by_rows(config, SimulatedOps(config, read, windows, prefix, params))
        parts = []
        for start in range(0, windows.size, _BLOCK):
            rows = slice(start, min(start + _BLOCK, windows.size))
            following = np.zeros(rows.stop - rows.start, np.int64)  # only the divergence is looked at
            parts.append(compare_logits(reference(rows.start, rows.stop), simulated(rows.start, rows.stop), following))
        total = pooled(parts).to_json()
        return {name: total[name] for name in ("kl_divergence", "top1_agreement")}

    activation, total = activations(config), matmul_weights(config)
    result: dict[str, Any] = {**compared(chosen.params), "instead": {}}
    for part in _INT16_PARTS:
        int8 = {name: p for name, p in chosen.int8_instead.items() if _belongs(activation[name], part)}
        entry = compared({**chosen.params, **int8})
        if isinstance(part, Role):
            assert part in INT16_ROLES
            share = sum(m.rows * m.columns for m in linears(config) if m.role is part) / total
            entry["share_of_weights"] = round(share, 4)
        result["instead"][str(part)] = entry
    return result


def _belongs(activation: Activation, part: Role | Literal["attention"]) -> bool:
    """Whether an activation is the part's input or result, or one of attention."""
    if part == "attention":
        return activation.kind in ("queries", "scores", "probabilities")
    return activation.kind in ("input", "result") and activation.role is part
