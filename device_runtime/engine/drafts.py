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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from device_runtime.machine.kernels import kernel_family
from device_runtime.machine.machine import cpu_features, program_arch

__all__ = [
    "NO_DRAFT",
    "AnswerHistories",
    "AnswerHistory",
    "Draft",
    "EarlierAnswers",
    "Guess",
    "Repetition",
    "guesses_pay",
]

_TOKENS_A_RUN = 2.0  # with guesses; measured over typed and free answers

_KEPT = 16  # answers
_LEAD = 3  # last tokens of a prompt, which say where an answer begins
_BEGINNINGS = 64  # of prompts
_LONGEST, _SHORTEST = 4, 2  # tokens that have to be the same before a guess
_FADES = 0.8  # what an earlier answer counts for, and the rate of guesses that were right, after one more answer
_HOPE = 0.9  # that rate before there was an answer
_WORTH = 0.25  # chance of a decision, below which its part of a run costs more than it saves (docs/explained/speed.md)
_RATED = 16  # decisions, after which all are rated as the last of them
_MOST_ASKED = 9  # places of a draft; with the one before it, two buffers of logits


@dataclass(frozen=True)
class Draft:
    """Tokens that may come next."""

    tokens: Sequence[int] = ()
    asked: Sequence[int] = ()  # after how many of them logits will be needed, ascending


NO_DRAFT = Draft()
# A draft of as many tokens as add nothing to the time of a run, or, if it is likely enough to come, of at most so many.
Guess = Callable[[int, int], Draft]


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


@dataclass
class _Answer:
    tokens: tuple[int, ...]
    asked: tuple[int, ...]  # after how many of them something was decided
    weight: float  # how often it came, the last times more than earlier ones


class AnswerHistory:
    """The last answers to prompts that begin alike, and how well they foretell the next.

    A draft of a whole answer makes the run that reads the prompt longer, and saves one for each decision that comes as
    it was drafted. So it goes as far as decisions have lately come as they were foretold.
    """

    def __init__(self) -> None:
        self._answers: list[_Answer] = []  # each of them once, the last one first
        self._rates: list[float] = []  # how often each decision came as it was foretold

    def add(self, answer: Sequence[int], asked: Sequence[int]) -> None:
        """Remember one, and after how many of its tokens something was decided."""
        tokens, places = tuple(answer), tuple(asked)
        if self._answers:
            self._rate(tokens, places)
        weight = 1.0
        for earlier in self._answers:
            earlier.weight *= _FADES
            if earlier.tokens == tokens:
                weight += earlier.weight
        others = [earlier for earlier in self._answers if earlier.tokens != tokens]
        self._answers = [_Answer(tokens, places, weight), *others[: _KEPT - 1]]

    def draft(self, answer: Sequence[int], free: int, most: int) -> Draft:
        """What may follow what there is of an answer; see `Guess`."""
        found = self._foretold(answer)
        if found is None:
            return NO_DRAFT
        earlier, place = found
        length, chance = min(free, len(earlier.tokens) - place), 1.0
        asked: list[int] = []
        for number, decision in enumerate(earlier.asked):
            if decision > place:
                wanted = decision - place
                if wanted > most or len(asked) == _MOST_ASKED or (wanted > length and chance < _WORTH):
                    break
                asked.append(wanted)
                length = max(length, wanted)
            if decision >= place:
                chance *= self._rates[min(number, _RATED - 1)] if number < len(self._rates) else _HOPE
        return Draft(earlier.tokens[place : place + length], asked)

    def _foretold(self, answer: Sequence[int]) -> tuple[_Answer, int] | None:
        """The most frequent answer that began the same, or else one that was the same a few tokens ago, and where in it
        the next token is."""
        known = tuple(answer)
        alike = [earlier for earlier in self._answers if earlier.tokens[: len(known)] == known]
        if alike:
            return max(alike, key=lambda earlier: earlier.weight), len(known)
        end = known[-_LEAD:]
        for earlier in self._answers if len(end) == _LEAD else ():
            if (place := _after(earlier.tokens, end)) is not None:
                return earlier, place
        return None

    def _rate(self, tokens: tuple[int, ...], places: tuple[int, ...]) -> None:
        for number, place in enumerate(places[:_RATED]):
            if number == len(self._rates):
                self._rates.append(_HOPE)
            found = self._foretold(tokens[:place])
            came = found is not None and found[0].tokens[found[1] : found[1] + 1] == tokens[place : place + 1]
            self._rates[number] = _FADES * self._rates[number] + (1 - _FADES) * came


def _following(sequence: Sequence[int], end: Sequence[int], count: int) -> list[int]:
    """What came after the last place of `end` in `sequence` that is not its very end."""
    place = _after(sequence, end)
    return [] if place is None else list(sequence[place : place + count])


def _after(sequence: Sequence[int], end: Sequence[int]) -> int | None:
    """Where the last place of `end` in `sequence` that is not its very end is over; None where there is none."""
    length = len(end)
    for start in range(len(sequence) - length - 1, -1, -1):
        if sequence[start] == end[0] and tuple(sequence[start : start + length]) == tuple(end):
            return start + length
    return None
