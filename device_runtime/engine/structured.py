"""Answers held to a JSON schema.

Before each token is chosen, every token that would lead out of the schema is taken off the table (llguidance does the
grammar). An answer that may only have so many tokens is brought to its end in time: as long as the shortest way to
close it fits into what is left, the model is free; then it must take that way.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends import Logits
from device_runtime.errors import BackendError, SchemaError

__all__ = ["Constraint", "SchemaCompiler", "check_schema"]

_KEPT = 32  # compiled schemas
_LONGEST_CLOSING = 512  # tokens; a schema whose shortest answer is longer than that is refused
_NEAR = 64  # tokens before the limit, and twice the shortest answer, at which the way to the end is looked for
_TRIES = 8  # tokens that are drawn before the way to the end is taken
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_FREE_TEXT = 1 / 8  # of the vocabulary; where more is allowed, a string is being written


class SchemaCompiler:
    """Makes constraints for one bundle's tokenizer. Compiled schemas are kept."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self._path = bundle.path / manifest.tokenizer.file
        self._vocabulary, self._eos = manifest.graph.vocabulary, list(manifest.tokenizer.eos_ids)
        self._tokenizer: Any = None  # made at the first schema: it takes a tenth of a second and some memory
        self._closers: list[list[int]] = []
        self._made: OrderedDict[str, Any] = OrderedDict()
        self._room = manifest.context - len(manifest.prefix_tokens)

    def check(self, schema: Mapping[str, Any], max_new: int | None = None) -> None:
        """Raise a `SchemaError` if no answer of at most `max_new` tokens can be held to this schema."""
        self.constraint(schema, min(max_new or self._room, self._room))

    def constraint(self, schema: Mapping[str, Any], max_tokens: int) -> Constraint:
        """A constraint for one answer of at most `max_tokens` tokens, its end among them.

        Raises:
            SchemaError: it is not a schema, uses something that is not supported, or has no answer as short as that;
                or llguidance is not installed.
        """
        matcher_class = _library()
        if self._tokenizer is None:
            self._tokenizer = _open_tokenizer(self._path, self._vocabulary, self._eos)
            self._closers = _closers(self._tokenizer)
        source = json.dumps(schema, ensure_ascii=False)
        matcher = self._made.get(source)
        if matcher is None:
            matcher = matcher_class(self._tokenizer, _grammar(source), log_level=0)
            if matcher.is_error():
                raise SchemaError(f"The schema cannot be used: {_reason(matcher.get_error())}.")
            self._made[source] = matcher
            if len(self._made) > _KEPT:
                self._made.popitem(last=False)
        self._made.move_to_end(source)
        constraint = Constraint(matcher.deep_copy(), self._vocabulary, self._closers)
        needed = constraint.tokens_to_close(_LONGEST_CLOSING)
        if needed is None or needed > max_tokens:
            count = f"more than {_LONGEST_CLOSING}" if needed is None else str(needed)
            raise SchemaError(
                f"The shortest answer that fits the schema has about {count} tokens, and the answer may have "
                f"{max_tokens}; raise max_new, or ask for less."
            )
        return constraint


class Constraint:
    """One answer on its way through a schema."""

    def __init__(self, matcher: Any, vocabulary: int, closers: list[list[int]]) -> None:
        self._matcher, self._vocabulary, self._closers = matcher, vocabulary, closers
        self._mask = np.full((1, (vocabulary + 31) // 32), -1, np.int32)
        self._way: list[int] = []  # tokens that end the answer from here; empty when they were not looked for
        self._near = _NEAR  # tokens left, from which on they are looked for

    @property
    def satisfied(self) -> bool:
        """Whether what was taken fits the schema; more may still follow."""
        return bool(self._matcher.is_accepting())

    @property
    def complete(self) -> bool:
        """Whether it fits the schema and nothing can follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def choose(self, logits: Logits, left: int, choose: Callable[[Logits], int]) -> int:
        """Let `choose` take a token among those that the schema allows.

        Args:
            logits: (vocabulary,); it is not changed.
            left: tokens that the answer may still have, this one among them.
        """
        masked = np.where(self._allowed(self._matcher), logits, np.float32(-np.inf))
        if not np.isfinite(masked).any():
            raise BackendError(f"The grammar of the answer failed: {_reason(self._matcher.get_error())}.")
        near = left <= self._near
        if near and not self._way:
            self._way = self._closing(self._matcher, left) or []
        for _ in range(_TRIES):
            token = choose(masked)
            # Most answers are short beside their limit; until it is near, any token leaves time enough.
            way = self._way_after(token, left - 1) if near and self._way else []
            if way is not None:
                return self._take(token, way)
            masked[token] = -np.inf
            if not np.isfinite(masked).any():
                break
        return self._take(self._way[0], self._way[1:])

    def tokens_to_close(self, limit: int) -> int | None:
        """How many tokens end the answer from here, by the shortest way that was found; None if above `limit`."""
        way = self._closing(self._matcher, limit)
        if way is None:
            return None
        self._near = _NEAR + 2 * len(way)
        return len(way)

    def _take(self, token: int, way: list[int]) -> int:
        self._matcher.consume_token(token)
        self._way = way
        return token

    def _way_after(self, token: int, left: int) -> list[int] | None:
        """The way to the end after `token`; None if it is longer than `left`."""
        after = self._matcher.deep_copy()
        after.consume_token(token)
        return self._closing(after, left)

    def _allowed(self, matcher: Any) -> npt.NDArray[np.bool_]:
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(matcher, self._mask)
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        return bits[: self._vocabulary].astype(bool)

    def _closing(self, matcher: Any, limit: int) -> list[int] | None:
        """Tokens that end the answer, at most `limit`; None if none were found."""
        way: list[int] = []
        matcher = matcher.deep_copy()
        while not matcher.is_stopped():
            if matcher.is_accepting():
                return way
            if len(way) >= limit:
                return None
            token = self._shortest(self._allowed(matcher))
            if token is None or not matcher.consume_token(token):
                return None
            way.append(token)
        return way

    def _shortest(self, allowed: npt.NDArray[np.bool_]) -> int | None:
        """The allowed token that most likely brings the end nearer."""
        in_string = np.count_nonzero(allowed) > _FREE_TEXT * self._vocabulary
        structure, quotes, rest = self._closers
        for tokens in (quotes, rest) if in_string else (structure, quotes, rest):
            found = next((token for token in tokens if allowed[token]), None)
            if found is not None:
                return found
        return next(iter(np.flatnonzero(allowed).tolist()), None)


def _open_tokenizer(path: Path, vocabulary: int, eos: Sequence[int]) -> Any:
    from llguidance import LLTokenizer, TokenizerWrapper

    if path.suffix == ".json":
        return LLTokenizer(str(path), n_vocab=vocabulary, eos_token=list(eos) or None)
    return LLTokenizer(
        TokenizerWrapper(_Pieces(path, vocabulary, eos)), n_vocab=vocabulary, eos_token=list(eos) or None
    )


class _Pieces:
    """A SentencePiece model as llguidance wants it: the bytes of each piece."""

    def __init__(self, path: Path, vocabulary: int, eos: Sequence[int]) -> None:
        from sentencepiece import SentencePieceProcessor

        self._library: Any = SentencePieceProcessor(model_file=str(path))
        self.eos_token_id = eos[0] if eos else self._library.eos_id()
        self.bos_token_id = self._library.bos_id()
        count = self._library.vocab_size()
        self.special_token_ids = [i for i in range(count) if self._library.is_control(i) or self._library.is_unknown(i)]
        special = set(self.special_token_ids)
        self.tokens = [b"<special>" if i in special else self._bytes(i) for i in range(count)]
        self.tokens += [b""] * (vocabulary - count)

    def _bytes(self, token: int) -> bytes:
        piece = self._library.id_to_piece(token)
        if self._library.is_byte(token):
            return bytes([int(piece[3:5], 16)])
        return str(piece).replace("\u2581", " ").encode()

    def __call__(self, text: str) -> list[int]:
        """The tokens of `text`, without the space that most of these models put before a text."""
        if not isinstance(text, str):
            raise TypeError("this tokenizer reads text")  # llguidance tries bytes first
        tokens: list[int] = self._library.encode(f"\n{text}")
        before = b""
        for place, token in enumerate(tokens):
            before += self.tokens[token]
            if before.endswith(b"\n"):
                return tokens[place + 1 :]
        raise ValueError("the tokenizer joins a line's end with what follows")


def _closers(tokenizer: Any) -> list[list[int]]:
    """Tokens that end things: those of brackets alone, those that end a string, and plain words, the longest first."""
    structure, quotes, words = [], [], []
    for token in range(tokenizer.vocab_size):
        if tokenizer.is_special_token(token):
            continue
        text = tokenizer.decode_bytes([token])
        if text and not text.strip(b"}]"):
            structure.append((text, token))
        elif text[:1] == b'"' and not text[1:].strip(b"}]"):
            quotes.append((text, token))
        elif text.isalnum():
            words.append((text, token))
    return [[token for _, token in sorted(found, key=lambda t: -len(t[0]))] for found in (structure, quotes, words)]


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise a `SchemaError` if no answer can be held to this JSON schema."""
    matcher_class = _library()
    failed, messages = matcher_class.validate_grammar_with_warnings(_grammar(json.dumps(schema, ensure_ascii=False)))
    if failed:
        raise SchemaError(f"The schema cannot be used: {_reason(messages[0])}.")


def _library() -> Any:
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise SchemaError(
            "Answers held to a schema need the package llguidance, which is not installed (there are packages for "
            "64-bit machines only); leave the schema out."
        ) from None
    return LLMatcher


def _grammar(schema: str) -> str:
    """Compact JSON: without it a model may go on with spaces for ever."""
    try:
        grammar: str = _library().grammar_from_json_schema(schema, overrides=_SPACING)
    except ValueError as error:
        raise SchemaError(f"The schema cannot be used: {_reason(str(error))}.") from None
    return grammar


def _reason(text: str) -> str:
    """The library's message on one line."""
    return " ".join(text.split()).removesuffix(".")[:300] or "unknown error"
