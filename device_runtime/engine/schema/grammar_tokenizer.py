"""A bundle's tokenizer as the grammar library wants it, and what each of its tokens can do for the end of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.engine.backends import Logits

__all__ = ["GrammarTokenizer", "open_library_tokenizer"]

_STRUCTURE = b'}], :{["'
_PRINTABLE = [chr(code) for code in range(0x20, 0x7F) if chr(code) not in '"\\']


class GrammarTokenizer:
    """llguidance's view of the vocabulary, and a table of its tokens: arrays of (vocabulary,)."""

    def __init__(self, path: Path, vocabulary: int, eos: Sequence[int]) -> None:
        self.library = open_library_tokenizer(path, vocabulary, eos)
        self.vocabulary = vocabulary
        self.first = np.full(vocabulary, -1, np.int16)  # first byte; -1 for special tokens and rows without a token
        self.length = np.zeros(vocabulary, np.int32)  # bytes
        self.rank = np.full(vocabulary, 9, np.int8)  # how much nearer to the end of an answer, best first
        self.is_word = np.zeros(vocabulary, bool)
        self.is_structure = np.zeros(vocabulary, bool)  # brackets, commas and spaces only: no part of a value
        single: dict[str, int] = {}
        for token in range(min(vocabulary, self.library.vocab_size)):
            text = b"" if self.library.is_special_token(token) else self.library.decode_bytes([token])
            if not text:
                continue
            self.first[token], self.length[token], self.rank[token] = text[0], len(text), _rank(text)
            self.is_word[token] = text.isalnum()
            self.is_structure[token] = not text.strip(b"}], ")
            if len(text) == 1:
                single.setdefault(text.decode("latin-1"), token)
        self.printable = np.array([single[c] for c in _PRINTABLE if c in single], np.int64)
        self.is_mark = np.array(
            [0x20 <= c < 0x7F and not chr(c).isalnum() for c in range(256)]
        )  # (256,), by first byte
        self.ordinary = self.first >= 0
        order = np.lexsort((-self.length, self.rank))
        self.by_rank = order[self.ordinary[order]]  # ordinary tokens, the best for an end first
        self._mask = np.full((1, (vocabulary + 31) // 32), -1, np.int32)

    def allowed(self, matcher: Any) -> npt.NDArray[np.bool_]:
        """Which tokens may follow; (vocabulary,)."""
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(matcher, self._mask)
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        return bits[: self.vocabulary].astype(bool)

    def masked(self, logits: Logits, allowed: npt.NDArray[np.bool_]) -> Logits:
        """`logits` without the tokens that are not allowed."""
        masked: Logits = np.where(allowed, logits, np.float32(-np.inf))
        return masked

    def in_free_text(self, allowed: npt.NDArray[np.bool_]) -> bool:
        """Whether this is inside a string whose words are the model's own: no enum, pattern, format or number."""
        return bool(self.printable.size) and bool(allowed[self.printable].all())

    def text_of(self, tokens: Sequence[int]) -> bytes:
        """Bytes of tokens."""
        text: bytes = self.library.decode_bytes(list(tokens))
        return text

    def spells(self, text: str) -> bool:
        """Whether the tokens that stand for a text, where nothing else could follow, spell it."""
        try:
            tokens: list[int] = self.library.tokenize_str(text)
        except ValueError:  # by itself it has no tokens: it is part of others
            return True
        return self.text_of(tokens) == text.encode()


def _rank(text: bytes) -> int:
    if not text.strip(b"}]"):
        return 0
    if text[:1] == b'"' and not text.strip(_STRUCTURE):
        return 1
    if not text.strip(_STRUCTURE):
        return 2
    return 3 if text.isdigit() else 4


def open_library_tokenizer(path: Path, vocabulary: int, eos: Sequence[int]) -> Any:
    """llguidance's LLTokenizer for a tokenizer.json or a tokenizer.model."""
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
