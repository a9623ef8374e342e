"""An answer that is written field by field.

What the schema leaves no choice in is written by us, and taken in by the model in one go when it has to decide. A field
with labels is scored; what is left to write is held to the schema token by token. A run of the graph also takes in what
is likely to follow, as far as it is: often the run that reads the prompt has the logits for all of the answer.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from device_runtime.engine.backends import Logits
from device_runtime.engine.drafts import AnswerHistory, Guess
from device_runtime.engine.generation import Completion, Stopwatch
from device_runtime.engine.kv_cache import KvCache
from device_runtime.engine.stop_strings import Finish
from device_runtime.engine.structured import Constraint
from device_runtime.engine.text_stream import TextStream
from device_runtime.engine.tokenizer import Tokenizer
from device_runtime.engine.typed.choice import Choice, confidence_of, shares_of
from device_runtime.engine.typed.form import FieldForm
from device_runtime.engine.typed.labels import LabelPaths
from device_runtime.engine.typed.priors import Priors
from device_runtime.engine.typed.scoring import decided_after, normalized, score_labels
from device_runtime.errors import IncompleteError
from device_runtime.records.printable import counted

__all__ = ["TypedGeneration"]

_NO_TEXT = '"N/A"'  # for a free text, in the answer to an input that says nothing


class _Sampler(Protocol):
    def choose(self, logits: npt.NDArray[np.float32]) -> int: ...


class _Ended(Exception):
    """Why the answer is not whole."""

    def __init__(self, finish: Finish) -> None:
        self.finish = finish


class TypedGeneration(Iterator[str]):
    """See `Generation`; its `result` has the answer's `confidence` by field."""

    result: Completion

    def __init__(
        self,
        cache: KvCache,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        max_new: int,
        sampler: _Sampler,
        fields: Sequence[FieldForm],
        constraint: Constraint | None = None,
        fixed: int | None = None,
        priors: Priors | None = None,
        temperatures: Mapping[str, float] | None = None,
        unfamiliar: tuple[str, ...] = (),
        history: AnswerHistory | None = None,
        paths: LabelPaths | None = None,
    ) -> None:
        """Prepare; the first step of the iteration computes the prompt.

        Args:
            constraint: of the whole answer; needed where a field is left to the model.
            fixed: as in `Generation`.
            priors: what labels are calibrated against; None: they are not.
            temperatures: of each field's choices, where they were fitted.
            unfamiliar: as in `Completion`.
            history: earlier answers, which foretell this one; it joins them. None: nothing is guessed.
            paths: of the tokenizer, where it has been used before.
        """
        self._temperatures, self._unfamiliar = temperatures or {}, unfamiliar
        self._cache, self._tokenizer, self._prompt = cache, tokenizer, list(prompt)
        self._max_new, self._sampler, self._constraint = max_new, sampler, constraint
        self._fixed, self._priors, self._history = fixed, priors, history
        self._paths = paths or LabelPaths(tokenizer)
        self._cancelled = threading.Event()
        self._watch = Stopwatch()
        self._stream = TextStream(tokenizer)
        self._answer: list[int] = []  # tokens …
        self._fed = 0  # … of which the model has taken in so many, once it has …
        self._rest: Sequence[int] = ()  # … these tokens of the prompt
        self._asked: list[int] = []  # after how many of them something was decided
        self._text = ""  # what they spell: all that is decided, and maybe a little of what has to follow
        self._decided = ""  # up to the last value
        self._like_nothing = ""  # the same as an input that says nothing is answered: without its free texts
        self.choices: dict[str, list[Choice]] = {}  # of each field, as far as it is
        self._values = {field.name: field.values for field in fields}
        self._logits: Logits | None = None  # after the tokens that were taken in
        self._pieces = self._run(list(fields))

    def __next__(self) -> str:
        return next(self._pieces)

    def cancel(self) -> None:
        """As in `Generation`."""
        self._cancelled.set()

    def _run(self, fields: list[FieldForm]) -> Iterator[str]:
        self._claim = self._cache.claim()
        cached, self._runs = self._cache.rewind_to(self._prompt, self._fixed), self._cache.runs
        finish: Finish = "stop"
        try:
            self._rest = self._prompt[cached:]
            for number, field in enumerate(fields):
                lead = _lead(number, field)
                if field.labels is None:
                    yield from self._write(lead, field)
                else:
                    yield from self._decide(lead, field, _lead(number + 1, *fields[number + 1 : number + 2]))
            yield from self._append("}")
        except _Ended as end:
            finish = end.finish
        if rest := self._stream.flush():
            yield rest
        if finish != "cancelled" and self._answer:
            self._watch.lap()
        self._cache.forget_drafts()
        if finish == "stop" and self._history is not None:
            self._history.add(self._answer, self._asked)
        count, passes = len(self._answer), self._cache.runs - self._runs
        self._cache.count_answer(count, passes)
        at = self._temperatures
        confidence = {name: confidence_of(choices, at.get(name, 1.0)) for name, choices in self.choices.items()}
        self.result = Completion(
            text=self._text,
            finish=finish,
            prompt_tokens=len(self._prompt),
            cached_tokens=cached,
            completion_tokens=count,
            ttft_ms=self._watch.ttft_ms,
            tokens_per_s=self._watch.tokens_per_s(count),
            passes=passes,
            confidence=confidence if finish == "stop" else None,
            probabilities=(shares_of(self.choices, self._values, at) or None) if finish == "stop" else None,
            unfamiliar=self._unfamiliar,
        )
        if finish == "length":
            raise IncompleteError(
                f"The answer reached its limit of {counted(count, 'token')} before it fitted its schema; "
                "give it more (max_new), or ask for less."
            )
        if finish == "stop" and self._constraint is not None:
            self._constraint.check(self._text)

    def _decide(self, lead: str, field: FieldForm, following: str) -> Iterator[str]:
        """A field with labels: the likeliest, or the only one."""
        assert field.labels is not None
        before = f"{self._decided}{lead} "
        paths = self._paths.after(self._answer, self._text, before, field.labels, following)
        common = _common(paths) if len(paths) > 1 else len(paths[0])
        yield from self._push(paths[0][:common])
        chosen, rests = 0, [path[common:] for path in paths]
        if len(paths) > 1:
            logits = self._here().copy()
            prior = None
            if self._priors is not None:
                like = f"{self._like_nothing}{lead} "
                prior = self._priors.of(self._cache, self._paths, like, field.labels, following, self._guess_after())
            scores = score_labels(self._cache, logits, rests, prior, self._guess_after)
            chosen = int(np.argmax(scores))
            self._asked += [len(self._answer) + count for count in decided_after(rests, chosen)]
            self.choices[field.name] = [Choice(np.log(normalized(scores)).astype(np.float32), chosen)]
            yield from self._push(rests[chosen])
        self._decided = before + field.labels[chosen]
        self._like_nothing += f"{lead} {field.labels[chosen]}"

    def _write(self, lead: str, field: FieldForm) -> Iterator[str]:
        """A field whose value is the model's own."""
        assert self._constraint is not None
        yield from self._append(lead)
        start, decisions = len(self._decided) + len(lead), len(self._constraint.decisions)
        while (end := _value_end(self._text, start)) is None and not self._constraint.complete:
            logits, left = self._here(), self._max_new - len(self._answer)
            self._asked.append(len(self._answer))
            token = self._constraint.choose(logits, left, self._sampler.choose)
            yield from self._push([token], consumed=True)
        self._decided = self._text[:end]
        self._like_nothing += f"{lead} {_NO_TEXT}"
        if not self._text[start:].lstrip().startswith('"'):
            stop = len(self._decided.encode())
            made = self._constraint.decisions[decisions:]
            self.choices[field.name] = [made_there.choice for made_there in made if made_there.start < stop]

    def _append(self, text: str) -> Iterator[str]:
        """What has to follow the last value."""
        rest = (self._decided + text)[len(self._text) :]
        if rest:
            yield from self._push(self._tokenizer.encode_inside(rest))

    def _push(self, tokens: Sequence[int], *, consumed: bool = False) -> Iterator[str]:
        """Put tokens to the answer; the model takes them in when it has to decide again, the first ones with the
        prompt."""
        if self._rest:
            first = tokens[: self._max_new]
            self._take_in_prompt(first)
            self._fed = len(first)
        for token in tokens:
            if len(self._answer) == self._max_new:
                raise _Ended("length")
            self._watch.lap()
            self._answer.append(token)
            if self._constraint is not None and not consumed:
                self._constraint.force(token)
            if piece := self._stream.push(token):
                yield piece
        self._text = self._tokenizer.decode(self._answer)

    def _here(self) -> Logits:
        """The logits after all of the answer so far, which has to go on."""
        if len(self._answer) == self._max_new:  # its last token may have no position left
            raise _Ended("length")
        if self._rest:
            self._take_in_prompt(())
        if self._fed < len(self._answer):
            tokens = self._answer[self._fed :]
            self._fed = len(self._answer)
            self._take_in(self._cache.take_in(tokens, self._guess_after()))
        assert self._logits is not None
        return self._logits

    def _guess_after(self, tokens: Sequence[int] = ()) -> Guess | None:
        """What may follow the answer so far and these tokens."""
        return None if self._history is None else partial(self._history.draft, [*self._answer, *tokens])

    def _take_in_prompt(self, tokens: Sequence[int]) -> None:
        """What is left of the prompt, and the first tokens of the answer."""
        rest, self._rest = self._rest, ()
        self._take_in(self._cache.prefill([*rest, *tokens], guess=self._guess_after(tokens)))
        self._runs = self._cache.runs

    def _take_in(self, runs: Iterator[Logits]) -> None:
        """A long prompt takes a small board half a minute: between two runs of the graph it looks whether the answer
        was cancelled."""
        while True:
            if self._cancelled.is_set() or self._cache.is_overtaken(self._claim):
                raise _Ended("cancelled")
            following = next(runs, None)
            if following is None:
                return
            self._logits = following


def _lead(number: int, field: FieldForm | None = None) -> str:
    """What goes before a field's value, without the space; after the last one, the end."""
    if field is None:
        return "}"
    return f"{'{' if number == 0 else ', '}{json.dumps(field.name, ensure_ascii=False)}:"


def _value_end(text: str, start: int) -> int | None:
    """Where the JSON value ends that begins at `start`; None while it goes on."""
    begin = start + len(text[start:]) - len(text[start:].lstrip())
    try:
        _, end = json.JSONDecoder().raw_decode(text, begin)
    except ValueError:
        return None
    closed = text[begin] in '"[{' or end < len(text)  # more digits may follow a number
    return end if closed else None


def _common(paths: Sequence[Sequence[int]]) -> int:
    """How many tokens all paths begin with."""
    columns = zip(*paths, strict=False)
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), min(map(len, paths)))
