"""A manifest's quality report, in lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from device_runtime.records.printable import counted

__all__ = ["LARGEST_RATIO", "quality_rows", "quality_warning"]

LARGEST_RATIO = 1.03  # of the perplexities; more than that deserves a warning


def quality_rows(quality: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, figures); those that an older manifest does not have are left out."""
    if not quality:
        return []
    if "sentences" in quality:
        return _encoder_rows(quality)
    error = f" ± {quality['ratio_error']:.4f}" if "ratio_error" in quality else ""
    rows = [
        (
            "perplexity",
            f"{quality['graph_perplexity']:.2f} (float {quality['float_perplexity']:.2f}, "
            f"ratio {quality['ratio']:.4f}{error}; {quality['tokens']} tokens of {quality['text']})",
        )
    ]
    if "kl_divergence" in quality:
        rows.append(
            (
                "divergence",
                f"{quality['kl_divergence']:.4f} nats per token; the same token is the most likely at "
                f"{quality['top1_agreement']:.1%} of positions",
            )
        )
    for kind, figures in quality.get("kinds", {}).items():
        rows.append((f"  {kind}", f"ratio {figures['ratio']:.4f}, the same token at {figures['top1_agreement']:.1%}"))
    if worst := quality.get("worst_layers"):
        rows.append(("most is lost in", ", ".join(f"{w['name']} ({w['lost_db']} dB, to {w['snr_db']})" for w in worst)))
    if int16 := quality.get("int16"):
        parts = []
        for name, figures in int16["instead"].items():
            share = figures.get("share_of_weights")
            cost = f" ({share:.0%} of the weights)" if share else ""
            parts.append(f"{name}{cost} {figures['kl_divergence']:.4f}, {figures['top1_agreement']:.1%}")
        before = f"{int16['kl_divergence']:.4f} nats, {int16['top1_agreement']:.1%}"
        rows.append(("int16 activations", f"{before}; if int8 in {'; '.join(parts)}"))
    return rows


def quality_warning(quality: Mapping[str, Any]) -> str | None:
    """What to say of a graph that is far from its float network; None if it is not."""
    if not quality or quality.get("ratio", 0.0) <= LARGEST_RATIO:
        return None
    text = f"the graph's perplexity is {quality['ratio']:.3f} times the float network's, more than {LARGEST_RATIO}"
    calibrate = "Calibrate on a text like those that the model will see (--calibrate FILE)"
    if worst := ", ".join(w["name"] for w in quality.get("worst_layers", ())):  # int4 of `micro` has no trace of layers
        return f"{text}; most is lost in {worst}. {calibrate}, and look at the layers with `stonechat eval`."
    return f"{text}. {calibrate}, or convert with --weights int8."


def _encoder_rows(quality: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of encoders and translators: against the float network, on the same sentences."""
    on = f"{counted(quality['sentences'], 'sentence')} of {quality['text']}"
    if "cosine" in quality:
        return [
            ("cosine", f"{quality['cosine']:.4f} to the float network, {quality['least_cosine']:.4f} at least; {on}")
        ]
    if "same_label" in quality:
        far = quality["largest_logit_error"]
        return [("same label", f"{quality['same_label']:.1%} as the float network, logits at most {far:.3f} off; {on}")]
    return [("same token", f"{quality['same_token']:.1%} of {quality['tokens']} as the float network; {on}")]
