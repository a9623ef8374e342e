"""From logits to a token: greedy, or drawn with temperature, top-k and top-p."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from device_runtime.errors import ConfigurationError

__all__ = ["Sampler", "Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults are greedy."""

    temperature: float = 0.0  # 0 takes the likeliest token; above 0 draws
    top_k: int = 0  # draw from the k likeliest; 0 means from all
    top_p: float = 1.0  # draw from the fewest tokens whose probabilities reach this sum
    seed: int | None = None  # the same seed draws the same answer

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 10.0:
            raise ConfigurationError(f"temperature is {self.temperature}; it must be from 0 (greedy) to 10.")
        if self.top_k < 0:
            raise ConfigurationError(f"top_k is {self.top_k}; it must be 0 (no limit) or more.")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigurationError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")


class Sampler:
    """Draws tokens for one answer."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed) if sampling.temperature > 0 else None

    def skip(self, tokens: int) -> None:
        """Go on as if so many tokens had been drawn already."""
        if self._random is not None:
            self._random.random(tokens)

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """The next token for `logits` of shape (vocabulary,)."""
        if self._random is None:
            return int(logits.argmax())
        s = self._sampling
        candidates = np.arange(logits.size)
        if 0 < s.top_k < logits.size:
            candidates = np.argpartition(logits, -s.top_k)[-s.top_k :]
        scaled = logits[candidates].astype(np.float64) / s.temperature
        probabilities = np.exp(scaled - scaled.max())
        probabilities /= probabilities.sum()
        order = np.argsort(-probabilities, kind="stable")
        if s.top_p < 1.0:
            keep = int(np.searchsorted(np.cumsum(probabilities[order]), s.top_p)) + 1
            order = order[:keep]
        kept = probabilities[order]
        return int(candidates[order[self._random.choice(len(order), p=kept / kept.sum())]])
