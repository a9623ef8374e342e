"""How likely each of some labels is at the present place: the joint probability of its tokens, up to the one that
distinguishes it from all others.

Labels that begin with the same tokens share them: a tree of tokens is walked, the likeliest branch first. What comes
after the distinguishing token would cost a pass of the model each, and changed none of the answers of
benchmarks/labels.py.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from device_runtime.engine.backends import Logits
from device_runtime.engine.drafts import Guess
from device_runtime.engine.kv_cache import KvCache
from device_runtime.engine.states.snapshot import shared

__all__ = ["decided_after", "normalized", "score_labels"]

_HOPELESS = 4.0  # nats below the best label, from which on a branch is not looked into: less than one part in fifty


def score_labels(
    cache: KvCache,
    logits: Logits,
    paths: Sequence[Sequence[int]],
    prior: npt.NDArray[np.float64] | None = None,
    guess_after: Callable[[Sequence[int]], Guess | None] | None = None,
) -> npt.NDArray[np.float64]:
    """Log-probabilities of labels, (labels,), less `prior`. The kv_cache stays where it is.

    Of a label that is hopeless, or for which no room is left, what is returned is a bound from above.

    Args:
        logits: (vocabulary,), at the present place; it is not used after another token was taken in.
        paths: the tokens of each label from here, none of them the beginning of another.
        prior: log-probabilities that are taken off; then what is hopeless is so by what is left. None: everything is
            looked into.
        guess_after: what may follow such tokens at the present place.
    """
    offset = np.zeros(len(paths)) if prior is None else np.asarray(prior, np.float64)
    found = np.full(len(paths), np.nan)
    # (minus the bound of a branch, its number, its labels, how many of their tokens are known, their log-probability)
    branches: list[tuple[float, int, list[int], int, float]] = []
    best = -np.inf

    def branch(labels: list[int], depth: int, so_far: float) -> None:
        bound = max(so_far - offset[label] for label in labels)
        heapq.heappush(branches, (-bound, min(labels), labels, depth, so_far))

    def spread(labels: list[int], depth: int, so_far: float, here: Logits) -> None:
        """Each token that may follow becomes a branch."""
        following: dict[int, list[int]] = {}
        for label in labels:
            following.setdefault(paths[label][depth], []).append(label)
        logarithms = _log_softmax(here, list(following))
        for (_, group), more in zip(following.items(), logarithms, strict=True):
            branch(group, depth + 1, so_far + float(more))

    spread(list(range(len(paths))), 0, 0.0, logits)
    while branches:
        bound, _, labels, depth, so_far = heapq.heappop(branches)
        if len(labels) == 1:
            found[labels[0]] = so_far - offset[labels[0]]
            best = max(best, found[labels[0]])
        elif depth > cache.room or (prior is not None and -bound < best - _HOPELESS):
            for label in labels:
                found[label] = so_far - offset[label]
        else:
            path = list(paths[labels[0]][:depth])
            spread(labels, depth, so_far, cache.look(path, guess_after and guess_after(path)))
    return found


def decided_after(paths: Sequence[Sequence[int]], chosen: int) -> list[int]:
    """After how many tokens of one path another one leaves it: there it was decided."""
    ends = {shared(path, paths[chosen]) for number, path in enumerate(paths) if number != chosen}
    return sorted(ends)


def normalized(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Probabilities of labels, (labels,), of which one holds."""
    weights = np.exp(scores - scores.max())
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares


def _log_softmax(logits: Logits, tokens: list[int]) -> npt.NDArray[np.float64]:
    """Log-probabilities of these tokens, (tokens,)."""
    highest = float(logits.max())
    total = highest + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
    of_tokens: npt.NDArray[np.float64] = logits[tokens].astype(np.float64) - total
    return of_tokens
