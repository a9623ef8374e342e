"""What a model answers where the input says nothing: labels are calibrated against it.

A small model likes some labels whatever it is asked, the last one that it was shown, or a frequent word (Zhao et al.,
2021, "Calibrate Before Use"). Their probability for an input without content is taken off.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from device_runtime.engine.backends import Logits
from device_runtime.engine.drafts import Guess
from device_runtime.engine.kv_cache import KvCache
from device_runtime.engine.typed.labels import LabelPaths
from device_runtime.engine.typed.scoring import score_labels

__all__ = ["PriorStore", "Priors"]

_KEPT = 512

# By what decides them: the prompt, the answer up to the label, the labels, and what follows them.
_Known = OrderedDict[tuple[tuple[int, ...], str, tuple[str, ...], str], npt.NDArray[np.float64]]


class PriorStore:
    """What was computed of them, for one model."""

    def __init__(self) -> None:
        self._known: _Known = OrderedDict()

    def against(self, nothing: Sequence[int]) -> Priors:
        """For prompts like this one, which says nothing."""
        return Priors(self._known, nothing)


class Priors:
    """For one prompt that says nothing, while one answer is made."""

    def __init__(self, known: _Known, nothing: Sequence[int]) -> None:
        self._known, self._nothing = known, tuple(nothing)
        self._ahead: dict[tuple[int, ...], Logits] = {}  # after the prompt and these tokens of an answer

    def of(
        self,
        cache: KvCache,
        paths: LabelPaths,
        before: str,
        labels: Sequence[str],
        following: str,
        guess: Guess | None = None,
    ) -> npt.NDArray[np.float64]:
        """Log-probabilities of the labels, (labels,); 0 where the context has no room for them. The kv_cache is left as
        it was.

        Args:
            before: the answer up to the label.
            following: what comes after it; some labels are distinguished there, such as 1 and 10.
            guess: what may follow what all labels begin with; the next fields are likely to be asked there.
        """
        key = self._nothing, before, tuple(labels), following
        if key not in self._known:
            found = paths.after((), "", before, labels, following)
            common = next(i for i, column in enumerate(zip(*found, strict=False)) if len(set(column)) > 1)
            self._known[key] = self._compute(cache, found[0][:common], [path[common:] for path in found], guess)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def _compute(
        self, cache: KvCache, answer: Sequence[int], rests: Sequence[Sequence[int]], guess: Guess | None
    ) -> npt.NDArray[np.float64]:
        here = self._ahead.get(tuple(answer))
        if here is not None and len({rest[0] for rest in rests}) == len(rests):  # no more than these logits is needed
            return score_labels(cache, here, rests)
        prompt = [*self._nothing, *answer]
        if len(prompt) > len(cache.tokens) + cache.room:
            return np.zeros(len(rests))
        with cache.aside():
            start = cache.rewind_to(prompt, len(self._nothing))
            for following in cache.prefill(prompt[start:], guess=guess):
                here = following.copy()
            assert here is not None
            self._ahead = {(*answer, *drafts): logits for drafts, logits in cache.known_ahead().items()}
            return score_labels(cache, here, rests)
