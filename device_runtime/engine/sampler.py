"""From logits to a token: greedy, or drawn with temperature, top-k and top-p.

A seed draws the same tokens on every machine, and in device_runtime/micro/sampler/: weights are whole numbers, computed
in single precision by operations that are rounded alike everywhere, and sums of whole numbers are exact in any order.
Random numbers are splitmix64's (Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from device_runtime.errors import ConfigurationError

__all__ = ["Sampler", "Sampling"]

_STEP = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1
_LOG2_E = np.float32(1.44269502162933349609375)
_LEAST_TEMPERATURE = np.float32(1e-6)  # below it, drawing is greedy
_NO_WEIGHT = 31  # powers of two below the likeliest token's weight
_SHARES = 1 << 16  # top_p is counted in 1/65,536
# 2^x for 0 <= x < 1 to within 9e-8
_POWER = [
    np.float32(c)
    for c in (
        1.0,
        0.6931470036506653,
        0.2402298003435135,
        0.05548352375626564,
        0.009678472764790058,
        0.0012443081941455603,
        0.00021690608991775662,
    )
]


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
        temperature = np.float32(sampling.temperature)
        self._scale = _LOG2_E / temperature if temperature >= _LEAST_TEMPERATURE else None  # None: greedy
        self._state = int.from_bytes(os.urandom(8)) if sampling.seed is None else sampling.seed & _WORD
        rounded = np.float32(sampling.top_p) * np.float32(_SHARES) + np.float32(0.5)
        self._top_p = max(1, min(_SHARES, int(rounded)))

    def skip(self, tokens: int) -> None:
        """Go on as if so many tokens had been drawn already."""
        self._state = (self._state + tokens * _STEP) & _WORD

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """The next token for `logits` of shape (vocabulary,); of equal ones, the lower id is the likelier."""
        if self._scale is None:
            return int(logits.argmax())
        candidates = _likeliest(logits, self._sampling.top_k)
        logits = logits[candidates]
        weights = self._weights(logits)
        total = int(weights.sum())
        if self._top_p < _SHARES:
            needed = max(1, total * self._top_p >> 16)
            order = np.argsort(-logits, kind="stable")
            keep = int(np.searchsorted(np.cumsum(weights[order]), needed)) + 1
            kept = np.sort(order[:keep])
            candidates, weights = candidates[kept], weights[kept]
            total = int(weights.sum())
        place = self._random() * total >> 64
        return int(candidates[np.searchsorted(np.cumsum(weights), place, side="right")])

    def _weights(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """2^30 for the likeliest token, and in proportion for the others; 0 below 2^-30."""
        greatest = logits.max()
        below = np.subtract(greatest, logits, out=np.zeros_like(logits), where=logits != greatest)
        power = np.minimum(below * self._scale, np.float32(_NO_WEIGHT))
        halvings = np.ceil(power)
        rest = halvings - power  # 0 <= rest < 1
        p = np.full_like(rest, _POWER[-1])
        for coefficient in _POWER[-2::-1]:
            p = p * rest + coefficient
        weights: npt.NDArray[np.int64] = (p * np.float32(1 << 30)).astype(np.int64) >> halvings.astype(np.int64)
        weights[power >= _NO_WEIGHT] = 0
        return weights

    def _random(self) -> int:
        """64 random bits."""
        self._state = z = (self._state + _STEP) & _WORD
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _WORD
        z = (z ^ z >> 27) * 0x94D049BB133111EB & _WORD
        return z ^ z >> 31


def _likeliest(logits: npt.NDArray[np.float32], top_k: int) -> npt.NDArray[np.intp]:
    """The ids of the `top_k` likeliest tokens (0: of all), ascending."""
    if not 0 < top_k < logits.size:
        return np.arange(logits.size)
    least = np.partition(logits, -top_k)[-top_k]
    above, equal = np.flatnonzero(logits > least), np.flatnonzero(logits == least)
    return np.sort(np.concatenate([above, equal[: top_k - above.size]]))
