"""Guesses of what comes next, which one run of the graph checks together with the next token.

Answers of small models repeat their prompt and each other: the same names of fields, the same words for the same
readings. A guess costs nothing where a run for a few tokens takes no longer than one for one, and decides nothing: each
token is chosen from the logits after those before it. They are those of single steps but for int8 values that a run of
another length rounds the other way (benchmarks/lengths.py).

With int4 weights such a run takes longer, on some processors more than guesses gain (two tokens a run on average):
there a run takes in several tokens only where they have to follow.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

from device_runtime.machine.kernels import kernel_family
from device_runtime.machine.machine import cpu_features, program_arch

__all__ = ["AnswerHistories", "AnswerHistory", "EarlierAnswers", "Repetition", "guesses_pay"]

_TOKENS_A_RUN = 2.0  # with guesses; measured over typed and free answers

_KEPT = 16  # answers
_LEAD = 3  # last tokens of a prompt, which say where an answer begins
_BEGINNINGS = 64  # of prompts
_LONGEST, _SHORTEST = 4, 2  # tokens that have to be the same before a guess


def guesses_pay(weight_bits: int) -> bool:
    """Whether a run with guesses takes less time for each of its tokens than one for one token, on this machine."""
    if weight_bits == 8:
        return True
    family = kernel_family(program_arch(), cpu_features())
    return family is not None and family.four_by_int4 < _TOKENS_A_RUN


class EarlierAnswers:
    """The tokens of the last answers, each with the end of its prompt."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, ...]] = deque(maxlen=_KEPT)

    def add(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Remember one."""
        self._kept.appendleft((*prompt[-_LEAD:], *answer))

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._kept)


class Repetition:
    """What followed the last few tokens when they were there before: in this prompt and answer, or an earlier answer.

    Args:
        tokens: of the prompt, without the answer.
        earlier: whose answers count.
    """

    def __init__(self, tokens: Sequence[int], earlier: EarlierAnswers) -> None:
        self._tokens, self._earlier = list(tokens), earlier

    def add(self, token: int) -> None:
        """A token of the answer."""
        self._tokens.append(token)

    def after(self, expected: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens after those that were added and `expected`; none where nothing is the same."""
        known = [*self._tokens, *expected]
        for length in range(_LONGEST, _SHORTEST - 1, -1):
            end = known[-length:]
            for sequence in (known, *self._earlier):
                if found := _following(sequence, end, count):
                    return found
        return []


class AnswerHistories:
    """Answers of fields, by what their prompts begin with: readings of one link are often answered alike."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, ...], AnswerHistory] = OrderedDict()

    def after(self, beginning: Sequence[int]) -> AnswerHistory:
        """The answers to prompts that begin with these tokens."""
        key = tuple(beginning)
        history = self._kept.setdefault(key, AnswerHistory())
        self._kept.move_to_end(key)
        if len(self._kept) > _BEGINNINGS:
            self._kept.popitem(last=False)
        return history


class AnswerHistory:
    """The tokens of the last answers to prompts that begin alike."""

    def __init__(self) -> None:
        self._answers: deque[tuple[int, ...]] = deque(maxlen=_KEPT)  # each of them once, the last one first

    def add(self, answer: Sequence[int]) -> None:
        """Remember one."""
        tokens = tuple(answer)
        if tokens in self._answers:
            self._answers.remove(tokens)
        self._answers.appendleft(tokens)

    def likely(self, answer: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens that may follow what there is of an answer: as in the last one that began the same,
        else in one that was the same a few tokens ago."""
        known = tuple(answer)
        for earlier in self._answers:
            if earlier[: len(known)] == known:
                return list(earlier[len(known) : len(known) + count])
        for earlier in self._answers:
            if len(known) >= _LEAD and (found := _following(earlier, list(known[-_LEAD:]), count)):
                return found
        return []


def _following(sequence: Sequence[int], end: list[int], count: int) -> list[int]:
    """What came after the last place of `end` in `sequence` that is not its very end."""
    length = len(end)
    for start in range(len(sequence) - length - 1, -1, -1):
        if sequence[start] == end[0] and list(sequence[start : start + length]) == end:
            return list(sequence[start + length : start + length + count])
    return []
