"""Answers held to a JSON schema.

Before each token is chosen, every token that would lead out of the schema is masked (llguidance does the grammar). An
answer that may only have so many tokens is brought to its end in time by cutting a text, and by nothing else: a number,
a name of an enum or a list that the limit cuts makes the answer incomplete, because shortening it would change it.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends import Logits
from device_runtime.engine.prompts import tokenizer_file
from device_runtime.engine.schema.fault import explained
from device_runtime.engine.schema.grammar_tokenizer import GrammarTokenizer
from device_runtime.engine.schema.rules import closed
from device_runtime.engine.schema.sample import sample
from device_runtime.engine.schema.shortest_end import NARROW, WIDE, End, Quoted, end_of, scan, shortest_end
from device_runtime.engine.schema.spelling import spelling_fault
from device_runtime.engine.schema.trial import is_simple, schema_trial
from device_runtime.engine.trial_process import TrialProcess
from device_runtime.engine.typed.choice import Choice, Decision
from device_runtime.errors import BackendError, IncompleteError, SchemaError
from device_runtime.records.printable import counted

__all__ = ["Constraint", "SchemaCompiler", "check_schema", "grammar_library", "grammar_of", "no_room"]

_KEPT = 32  # compiled schemas
_SPELLING_ADVICE = "Leave the schema (a link's `answer`) out for the answer of its task, or take a model of no task."
_without_tokenizer: TrialProcess | None = None  # tries schemas of fleet files
_LONGEST_END = 512  # tokens; a schema whose shortest answer is longer is refused
_FEW = 2048  # tokens, of which a value is chosen; a text has more to choose from
_NEAR = 64  # tokens before the limit, beside those of the end, from which on the end is looked for

# JSON as models were trained on it; no other spaces, or a model may write spaces for ever.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class SchemaCompiler:
    """Makes constraints for one bundle's tokenizer. Compiled schemas are kept."""

    def __init__(self, bundle: Bundle) -> None:
        manifest, path = bundle.manifest, bundle.path / bundle.manifest.tokenizer.file
        self._bundle = bundle
        self._vocabulary, self._eos = manifest.graph.vocabulary, list(manifest.tokenizer.eos_ids)
        self._tokenizer: GrammarTokenizer | None = None  # made at the first schema: it takes some time and memory
        self._made: OrderedDict[str, _Compiled] = OrderedDict()
        self._refused: OrderedDict[str, str] = OrderedDict()  # schema -> why
        self._trained = manifest.purpose is not None
        self._trial = schema_trial(path, self._vocabulary, tuple(self._eos))
        self._free_positions = manifest.context - len(manifest.prefix_tokens)

    def check(self, schema: Mapping[str, Any], max_new: int | None = None) -> None:
        """Raise a `SchemaError` if no answer of at most `max_new` tokens can be held to this schema."""
        self.constraint(schema, min(max_new or self._free_positions, self._free_positions))

    def constraint(self, schema: Mapping[str, Any], max_tokens: int) -> Constraint:
        """A constraint for one answer of at most `max_tokens` tokens, its end among them.

        Raises:
            SchemaError: it is not a schema, uses something that is not supported, or has no answer as short as that;
                or llguidance is not installed.
        """
        matcher_class = grammar_library()
        source = _source(schema)
        if self._tokenizer is None:
            self._tokenizer = GrammarTokenizer(tokenizer_file(self._bundle), self._vocabulary, self._eos)
        tokenizer = self._tokenizer
        if source not in self._made:
            self._try(schema, source)
            if fault := spelling_fault(tokenizer, schema):
                raise SchemaError(
                    f"The vocabulary of this bundle, of {self._vocabulary} tokens, cannot spell the answer: {fault}. "
                    f"{_SPELLING_ADVICE if self._trained else 'Give other names, or take another model.'}"
                )
            matcher = matcher_class(tokenizer.library, _grammar(source), log_level=0)
            if matcher.is_error():
                raise _unusable(matcher.get_error(), schema)
            self._made[source] = _Compiled(matcher, _first_end(tokenizer, matcher, source))
            if len(self._made) > _KEPT:
                self._made.popitem(last=False)
        self._made.move_to_end(source)
        made = self._made[source]
        if not made.searched and (made.end is None or made.end.cost > max_tokens):  # look again, and better
            found = shortest_end(tokenizer, made.matcher, made.end.cost if made.end else _LONGEST_END, WIDE)
            made.end, made.searched = found or made.end, True
        end = made.end
        if end is None or end.cost > max_tokens:
            raise no_room(end.cost if end is not None else None, max_tokens)
        return Constraint(made.matcher.deep_copy(), tokenizer, end, max_tokens)

    def _try(self, schema: Mapping[str, Any], source: str) -> None:
        """Raise a `SchemaError` for what the library could not compile here in time, or without taking all memory."""
        if is_simple(schema):
            return
        if source not in self._refused:
            wrong = self._trial.run(_grammar(source))
            if not wrong:
                return
            self._refused[source] = wrong
            if len(self._refused) > _KEPT:
                self._refused.popitem(last=False)
        raise _unusable(self._refused[source], schema)


def _first_end(tokenizer: GrammarTokenizer, matcher: Any, source: str) -> End | None:
    """A short answer to the schema `source`."""
    found = shortest_end(tokenizer, matcher, _LONGEST_END, NARROW)
    if found is None and (text := sample(json.loads(source))) is not None:
        found = end_of(tokenizer, matcher, text, _LONGEST_END)
    return found


@dataclass
class _Compiled:
    matcher: Any  # llguidance's, at the beginning of an answer
    end: End | None  # the shortest answer that was found
    searched: bool = False  # thoroughly


class Constraint:
    """One answer on its way through a schema."""

    def __init__(self, matcher: Any, tokenizer: GrammarTokenizer, end: End, max_tokens: int) -> None:
        self._matcher, self._tokenizer = matcher, tokenizer
        self._end: End | None = None  # from here; None when it was not looked for
        self._near = _NEAR + 2 * end.cost + end.wanted  # tokens left, from which on it is looked for
        self._spare = max(0, max_tokens - end.cost) // 2  # at most so many are kept for the values after a text
        self._quoted = Quoted.NO  # where the answer is
        self.decisions: list[Decision] = []  # where the schema left a choice of some tokens, and what was chosen
        self._written = 0  # bytes of the answer
        self._cut = False  # whether a text was cut: the rest is as short as the values in it allow
        self._endless = False  # whether no end was found in the text that is being written

    @property
    def complete(self) -> bool:
        """Whether the answer fits the schema and nothing can follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def choose(self, logits: Logits, left: int, choose: Callable[[Logits], int]) -> int:
        """Let `choose` take a token among those that the schema allows.

        Args:
            logits: (vocabulary,); it is not changed.
            left: tokens that the answer may still have, this one among them.
        """
        allowed = self._tokenizer.allowed(self._matcher)
        if not allowed.any():
            raise BackendError(f"The grammar of the answer failed: {_reason(self._matcher.get_error())}.")
        token = choose(self._tokenizer.masked(logits, allowed))
        self._note(logits, allowed, token)
        if left > self._near:
            return self._take(token, None)
        in_text = self._tokenizer.in_free_text(allowed)
        self._endless = self._endless and in_text
        if self._endless or not (in_text or self._cut):
            return self._take(token, None)  # a value is the model's own, whatever it costs
        end = self._end_after(token, left - 1)
        if end is not None and (not in_text or end.cost + min(end.wanted, self._spare) < left):
            return self._take(token, end)
        now = self._end or shortest_end(self._tokenizer, self._matcher, left, quoted=self._quoted)
        self._endless = now is None and in_text
        if now is None or not now.tokens or not self._may_end(in_text, now, allowed):
            return self._take(token, None)
        self._cut = True
        return self._take(now.tokens[0], now.rest())

    def forced(self) -> list[int]:
        """The tokens of the text that alone can follow, as the tokenizer would write it; none where there is a choice.

        They need not be what the model chooses: the same text may have other tokens.
        """
        return [] if self.complete else [int(token) for token in self._matcher.compute_ff_tokens()]

    def force(self, token: int) -> None:
        """Take in a token that somebody else has put to the answer, and that fits the schema."""
        self._take(token, None)

    def check(self, text: str) -> None:
        """Check a complete answer as a strict reader of JSON does.

        Raises:
            IncompleteError: a number in it is beyond what a double can hold, or an object has a name twice.
        """
        try:
            json.loads(text, parse_float=_finite, parse_int=_finite, object_pairs_hook=_without_repeats)
        except ValueError as error:
            raise IncompleteError(f"The answer fits its schema and is of no use: {error}; ask for less.") from None

    def _may_end(self, in_text: bool, end: End, allowed: npt.NDArray[np.bool_]) -> bool:
        """Whether `end` closes a text (no name of a property), or, after a whole value, a list or an object."""
        token = end.tokens[0]
        if in_text:
            text = self._tokenizer.text_of(end.tokens[:4])
            return text.startswith(b'"') and not text[1:].lstrip().startswith(b":")
        in_value = (self._tokenizer.rank[allowed & self._tokenizer.ordinary] > 2).any()  # the next digit, for one
        return bool(self._tokenizer.is_structure[token]) and not in_value

    def _note(self, logits: Logits, allowed: npt.NDArray[np.bool_], token: int) -> None:
        ids = np.flatnonzero(allowed)
        if 1 < len(ids) <= _FEW:  # else it is a text
            end = self._written + len(self._tokenizer.text_of([token]))
            chosen = int(np.searchsorted(ids, token))
            self.decisions.append(Decision(self._written, end, Choice(logits[ids].astype(np.float32), chosen, ids)))

    def _take(self, token: int, end: End | None) -> int:
        self._matcher.consume_token(token)
        text = self._tokenizer.text_of([token])
        self._written += len(text)
        self._quoted, _, _ = scan(text, self._quoted)
        self._end = end
        return token

    def _end_after(self, token: int, left: int) -> End | None:
        """The end after `token`; None if there is none of at most `left` tokens."""
        after = self._matcher.deep_copy()
        if not after.consume_token(token):
            return None
        if self._end is not None and self._end.cost <= left:  # inside of a text the end stays the same
            same = after.deep_copy()
            if same.try_consume_tokens(list(self._end.tokens)) == len(self._end.tokens) and same.is_accepting():
                return self._end
        quoted, _, _ = scan(self._tokenizer.text_of([token]), self._quoted)
        return shortest_end(self._tokenizer, after, left, quoted=quoted)


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        shown = digits if len(digits) <= 30 else f"{digits[:29]}…"
        raise ValueError(f"the number {shown} is too large for a reader of JSON")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:40]!r} is in an object twice")
    return found


def _source(schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(closed(schema), ensure_ascii=False)
    except RecursionError:
        raise SchemaError("The schema cannot be used: it is nested too deeply; give it fewer levels.") from None


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise a `SchemaError` if no answer can be held to this JSON schema."""
    matcher_class = grammar_library()
    grammar = _grammar(_source(schema))
    failed, messages = matcher_class.validate_grammar_with_warnings(grammar)
    wrong = _reason(messages[0]) if failed else "" if is_simple(schema) else _tried(grammar)
    if wrong:
        raise _unusable(wrong, schema)


@lru_cache(maxsize=256)
def _tried(grammar: str) -> str:
    global _without_tokenizer
    _without_tokenizer = _without_tokenizer or schema_trial()
    return _without_tokenizer.run(grammar)


def no_room(least: int | None, max_tokens: int) -> SchemaError:
    """Even the shortest answer is too long. `least`: its tokens; None: more than were looked for."""
    tokens = f"about {counted(least, 'token')}" if least is not None else f"more than {_LONGEST_END} tokens"
    return SchemaError(
        f"The shortest answer that fits the schema has {tokens}, and the answer may have {max_tokens}; "
        "raise max_new, or ask for less."
    )


_ADVICE = {  # what the library says -> what to do
    "too much": "Where numbers have bounds or steps, a simpler one may do.",
    "coerce_one_of": "Write anyOf, or give each alternative a property with a `const` of its own.",
    "look-around": "A pattern may have no (?=…), (?!…), (?<=…) or (?<!…); say it without.",
}


def _unusable(said: str, schema: Mapping[str, Any]) -> SchemaError:
    advice = "".join(f" {text}" for word, text in _ADVICE.items() if word in said)
    return SchemaError(f"The schema cannot be used: {explained(schema, _reason(said))}.{advice}")


def grammar_library() -> Any:
    """llguidance's matcher.

    Raises:
        SchemaError: it is not installed.
    """
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise SchemaError(
            "Answers held to a schema need the package llguidance, which is not installed (there are packages for "
            "64-bit machines only); leave the schema out."
        ) from None
    return LLMatcher


def grammar_of(schema: Mapping[str, Any]) -> str:
    """The grammar of a schema's answers, as `grammar_library` takes it.

    Raises:
        SchemaError: no answer can be held to it.
    """
    return _grammar(_source(schema))


def _grammar(schema: str) -> str:
    try:
        grammar: str = grammar_library().grammar_from_json_schema(schema, overrides=_SPACING)
    except ValueError as error:
        raise SchemaError(f"The schema cannot be used: {_reason(str(error))}.") from None
    return grammar


def _reason(text: str) -> str:
    """The library's message on one line."""
    return " ".join(text.split()).removesuffix(".")[:300] or "unknown error"
