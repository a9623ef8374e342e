"""The shortest way to end an answer that is held to a grammar: a beam search over tokens, level by level.

The grammar library gives the set of tokens that may follow, and nothing else. States of one level whose sets are equal
are taken for the same state; of the tokens that may follow, those are tried that bring the end near (brackets, quotes
and commas first) and, by first byte, the longest of the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.engine.schema.grammar_tokenizer import GrammarTokenizer

__all__ = ["NARROW", "WIDE", "End", "Quoted", "end_of", "scan", "shortest_end"]

NARROW, WIDE = 2, 16  # states that are kept of each level
_SECONDS = {NARROW: 0.5, WIDE: 2.0}  # of computing; then the search gives up
_CHARACTERS = (b"09", b"az", b"AZ", b"\x80\xff")  # kinds, each from one first byte to another
_VALUE_TOKENS, _TEXT_TOKENS = 8, 12  # that a value, or a text, is likely to want beyond its shortest form


@dataclass(frozen=True)
class End:
    """Tokens that end an answer."""

    tokens: tuple[int, ...]
    wants: tuple[int, ...]  # for each token: how many more the model may want in its place, to give a value of its own
    needs_eos: bool  # whether a token of the end has to follow, since more could

    @property
    def cost(self) -> int:
        """Tokens, that of the end included."""
        return len(self.tokens) + self.needs_eos

    @property
    def wanted(self) -> int:
        """Tokens beyond the shortest that the values after this place may want."""
        return sum(self.wants[1:])

    def rest(self) -> End:
        """The end after the first token."""
        return End(self.tokens[1:], self.wants[1:], self.needs_eos)


class Quoted(IntEnum):
    """Whether a place in JSON is inside a string."""

    NO = 0
    YES = 1
    ESCAPED = 2  # after a backslash


@dataclass
class _State:
    matcher: Any
    allowed: npt.NDArray[np.bool_]
    tokens: tuple[int, ...] = ()
    wants: tuple[int, ...] = ()
    quoted: Quoted = Quoted.NO
    depth: int = 0  # brackets that were opened and not closed
    passed: int = 0  # commas and colons between values: how far the answer is
    choosing: bool = False  # in a value that could be another
    rank: tuple[int, ...] = ()  # of the last token; the smaller, the sooner the state is looked at
    before: npt.NDArray[np.bool_] | None = None  # (256,): which bytes could follow one token earlier
    place: tuple[int, int, int] = (0, 0, 0)  # what may follow, in short, and how far the answer is


def shortest_end(
    tokenizer: GrammarTokenizer, matcher: Any, limit: int, width: int = NARROW, *, quoted: Quoted = Quoted.NO
) -> End | None:
    """The shortest end of at most `limit` tokens that was found; None if there was none in time.

    Args:
        width: states to keep of each level, NARROW or WIDE.
        quoted: whether the answer is inside a string now.
    """
    stop_s = time.thread_time() + _SECONDS[width]
    start = matcher.deep_copy()
    level = [_State(start, tokenizer.allowed(start), quoted=quoted)]
    visited: set[tuple[int, int, int]] = set()
    for count in range(limit + 1):
        for state in level:
            if state.matcher.is_stopped() and not state.matcher.is_error():
                return End(state.tokens, state.wants, False)
        if count == limit:
            break
        for state in level:
            if state.matcher.is_accepting():
                return End(state.tokens, state.wants, True)
        following: dict[bytes, _State] = {}
        for state in level:
            if time.thread_time() > stop_s:
                return None
            _extend(tokenizer, state, width, following)
        level = _best(following.values(), visited, width)
        visited.update(state.place for state in level)
    return None


def end_of(tokenizer: GrammarTokenizer, matcher: Any, text: str, limit: int) -> End | None:
    """`text` as tokens, each the longest that may follow; None where it does not end the answer in at most `limit`."""
    after, rest = matcher.deep_copy(), text.encode()
    tokens: list[int] = []
    while rest and len(tokens) < limit:
        allowed = np.flatnonzero(tokenizer.allowed(after) & (tokenizer.first == rest[0]))
        for token in allowed[np.argsort(-tokenizer.length[allowed], kind="stable")]:
            written = tokenizer.text_of([int(token)])
            if rest.startswith(written):
                break
        else:
            return None
        if not after.consume_token(int(token)):
            return None
        tokens.append(int(token))
        rest = rest[len(written) :]
    if rest or after.is_error() or not (after.is_stopped() or after.is_accepting()):
        return None
    return End(tuple(tokens), (0,) * len(tokens), not after.is_stopped())


def _best(states: Iterable[_State], visited: set[tuple[int, int, int]], width: int) -> list[_State]:
    """The states of the next level.

    A place that was visited earlier may be another one now (a digit more of ten), or a loop; a new one is progress, and
    some of the places are for those alone.
    """

    def nearness(state: _State) -> tuple[Any, ...]:
        return state.depth, -state.passed, bool(state.quoted), state.place in visited, state.rank

    ordered = sorted(states, key=nearness)
    few = width - max(1, width // 4)
    others = sorted(ordered[few:], key=lambda state: state.place in visited)  # stable: the nearest of the new first
    return ordered[:few] + others[: width - few]


def _extend(tokenizer: GrammarTokenizer, state: _State, width: int, following: dict[bytes, _State]) -> None:
    """Put into `following` the states one token after `state`, by what may follow them."""
    free = tokenizer.in_free_text(state.allowed)
    bytes_now = np.zeros(256, bool)
    bytes_now[tokenizer.first[state.allowed & tokenizer.ordinary]] = True
    is_new = bytes_now if state.before is None else bytes_now & ~state.before
    for token in _candidates(tokenizer, state, free, is_new, width):
        after = state.matcher.deep_copy()
        if not after.consume_token(token):
            continue
        allowed = tokenizer.allowed(after)
        mark = np.packbits(allowed).tobytes() + bytes([after.is_accepting()])
        if mark in following:
            continue
        text, rank = tokenizer.text_of([token]), int(tokenizer.rank[token])
        if state.quoted:
            rank = 1 if text[:1] == b'"' else 4
        choosing = not free and rank > 2 and int(np.count_nonzero(bytes_now)) > 1
        want = _TEXT_TOKENS if free else _VALUE_TOKENS if choosing and not state.choosing else 0  # once a value
        quoted, opened, passed = scan(text, state.quoted)
        depth, passed = state.depth + opened, state.passed + passed
        following[mark] = _State(
            after, allowed, (*state.tokens, token), (*state.wants, want), quoted, depth, passed,
            choosing or (state.choosing and bool(quoted)), (min(rank, 3), not is_new[text[0]], -len(text)), bytes_now,
            (hash(mark), depth, passed),
        )  # fmt: skip


def scan(text: bytes, quoted: Quoted) -> tuple[Quoted, int, int]:
    """Whether the text ends inside a string, how many brackets it opens beyond those that it closes, and how many
    commas and colons between values it has."""
    opened, passed = 0, 0
    for byte in text:
        if quoted == Quoted.ESCAPED:
            quoted = Quoted.YES
        elif quoted and byte == ord("\\"):
            quoted = Quoted.ESCAPED
        elif byte == ord('"'):
            quoted = Quoted.NO if quoted else Quoted.YES
        elif not quoted:
            opened += (byte in b"{[") - (byte in b"}]")
            passed += byte in b",:"
    return quoted, opened, passed


def _candidates(
    tokenizer: GrammarTokenizer, state: _State, free: bool, is_new: npt.NDArray[np.bool_], width: int
) -> list[int]:
    narrow = width == NARROW
    ids = tokenizer.by_rank[state.allowed[tokenizer.by_rank]]  # the best first
    if len(ids) <= (3 if narrow else 24):
        return [int(token) for token in ids]
    first = tokenizer.first[ids]
    quotes = ids[first == ord('"')][: 2 if narrow else 6]
    if free and quotes.size:
        return [int(token) for token in quotes]
    _, places = np.unique(first, return_index=True)
    best = ids[np.sort(places)]  # the best token of each first byte
    if free and narrow:  # too short a text yet, or one that lacks a sign
        words = ids[tokenizer.is_word[ids]]
        words = words[np.argsort(-tokenizer.length[words], kind="stable")][:2]
        signs = best[is_new[tokenizer.first[best]]][: 0 if state.before is None else 2]
        return list(dict.fromkeys(int(token) for part in (signs, words) for token in part))
    new = best[is_new[tokenizer.first[best]]][: 4 if narrow else 16]  # a byte that could not follow before is progress
    if state.quoted:  # a pattern or a format: what parts it (each of the marks), and of letters and digits the extremes
        marks = best[tokenizer.is_mark[tokenizer.first[best]]]
        parts = [quotes, marks[is_new[tokenizer.first[marks]]][:4] if narrow else marks, new]
        for kind in _CHARACTERS:
            of_kind = ids[(first >= kind[0]) & (first <= kind[1])]
            if of_kind.size:
                lengths = tokenizer.length[of_kind]
                parts.append(of_kind[[int(lengths.argmax()), *([] if narrow else [int(lengths.argmin())])]])
    else:
        few = ids[: 2 if narrow else 6]
        parts = [few[tokenizer.rank[few] <= 2], new, best[: 4 if narrow else 40]]
    return list(dict.fromkeys(int(token) for part in parts for token in part))
