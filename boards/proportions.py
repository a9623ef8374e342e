"""Smaller models in the same proportions: how many parameters a board would hold.

All of a model shrinks together. With a share of its parameters, width and layers have the share's cube root, and the
vocabulary, the rows of weights and a position of the kv_cache its square.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from device_runtime.bundle.manifest import GraphCounts

if TYPE_CHECKING:
    from boards.fit import Subject

__all__ = ["parameters_of", "parameters_text", "scaled", "two_digits"]

_WITH_PARAMETERS = ("matmul_bytes", "largest_matmul_bytes", "embedding_bytes")  # fields of GraphCounts
_WITH_SQUARE = ("rows", "kv_cache_bytes_per_position")
_WITH_ROOT = ("operators", "tensors", "constant_bytes_per_position")


def parameters_of(subject: Subject) -> int:
    """The parameters of a model, but for norms and biases."""
    counts = subject.counts[subject.profile]
    return 8 * counts.matmul_bytes // subject.weight_bits + counts.embedding_bytes


def scaled(subject: Subject, share: float) -> Subject:
    """A model with this share of the parameters."""

    def changed(counts: GraphCounts) -> GraphCounts:
        weights = {name: int(getattr(counts, name) * share) for name in _WITH_PARAMETERS}
        surfaces = {name: int(getattr(counts, name) * share ** (2 / 3)) for name in _WITH_SQUARE}
        lengths = {name: math.ceil(getattr(counts, name) * share ** (1 / 3)) for name in _WITH_ROOT}
        peaks = tuple(
            tuple(replace(p, bytes=math.ceil(p.bytes * share ** (1 / 3)),
                          bytes_per_position=math.ceil(p.bytes_per_position * share ** (1 / 3))) for p in peaks)
            for peaks in counts.activations
        )  # fmt: skip
        return replace(counts, activations=peaks, **weights, **surfaces, **lengths)

    graph = replace(
        subject.graph,
        layers=max(1, round(subject.graph.layers * share ** (1 / 3))),
        vocabulary=max(1, int(subject.graph.vocabulary * share ** (2 / 3))),
        weight_bytes=int(subject.graph.weight_bytes * share),
    )
    return replace(
        subject,
        graph=graph,
        counts={name: changed(counts) for name, counts in subject.counts.items()},
        tokenizer_bytes=int(subject.tokenizer_bytes * share ** (2 / 3)),
        other_bytes=int(subject.other_bytes * share ** (2 / 3)),
    )


def two_digits(count: int) -> int:
    """Rounded down: the rest is beyond what the computation knows."""
    step: int = 10 ** max(0, len(str(count)) - 2)
    return count // step * step


def parameters_text(count: int) -> str:
    """134 million, 260,000."""
    if count < 1e6:
        return f"{count:,}"
    return f"{count / 1e6:,.{0 if count >= 10e6 else 1}f} million"
