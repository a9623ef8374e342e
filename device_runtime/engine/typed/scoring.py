"""How likely each of some labels is at the present place: the joint probability of its tokens, up to the one that
distinguishes it from all others.

Labels that begin with the same tokens share them: a tree of tokens is walked, the likeliest branch first, and going
back is a matter of the kv_cache's position. What comes after the distinguishing token would cost a pass of the model
each, and changed none of the answers of benchmarks/labels.py.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from device_runtime.engine.backends import Logits
from device_runtime.engine.kv_cache import Drafts, KvCache
from device_runtime.engine.states.snapshot import shared

__all__ = ["normalized", "score_labels", "take_in"]

_HOPELESS = 4.0  # nats below the best label, from which on a branch is not looked into: less than one part in fifty


def score_labels(
    cache: KvCache,
    logits: Logits,
    paths: Sequence[Sequence[int]],
    prior: npt.NDArray[np.float64] | None = None,
    likely: Drafts | None = None,
) -> npt.NDArray[np.float64]:
    """Log-probabilities of labels, (labels,), less `prior`. The kv_cache may have tokens of some label in the end.

    Of a label that is hopeless, what is returned is a bound from above.

    Args:
        logits: (vocabulary,), at the present place; it is not used after another token was taken in.
        paths: the tokens of each label from here, none of them the beginning of another.
        prior: log-probabilities that are taken off; then what is hopeless is so by what is left. None: everything is
            looked into.
        likely: what the answer is likely to go on with at the present place; a run of the graph takes it in as well.
    """
    offset = np.zeros(len(paths)) if prior is None else np.asarray(prior, np.float64)
    start = len(cache.tokens)
    found = np.full(len(paths), np.nan)
    # (minus the bound of a branch, its number, its labels, how many of their tokens are known, their log-probability)
    branches: list[tuple[float, int, list[int], int, float]] = []
    best = -np.inf

    def following(path: list[int]) -> Drafts | None:
        if likely is None:
            return None

        def drafts(most: int) -> list[int]:
            expected = list(likely(len(path) + most))
            return expected[len(path) :] if expected[: len(path)] == path else []

        return drafts

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
        elif prior is not None and -bound < best - _HOPELESS:
            for label in labels:
                found[label] = so_far - offset[label]
        else:
            path = list(paths[labels[0]][:depth])
            known = cache.tokens[start:]
            common = min(shared(known, path), len(path) - 1)
            if common < len(known):
                cache.rewind(start + common)
            here = take_in(cache, path[common:], following(path))
            spread(labels, depth, so_far, here)
    return found


def take_in(cache: KvCache, tokens: Sequence[int], likely: Drafts | None = None) -> Logits:
    """Take in a few tokens, at least one, and, in the same runs of the graph, what is likely to follow them.

    Returns:
        The logits after the last, (vocabulary,), valid until the next call.
    """
    for place, token in enumerate(tokens):

        def drafts(most: int, rest: Sequence[int] = tokens[place + 1 :]) -> list[int]:
            known = list(rest[:most])
            return known if likely is None or len(known) == most else [*known, *likely(most - len(known))]

        logits = cache.decode(token, drafts)
    return logits


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
