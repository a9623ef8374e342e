"""Text to tokens and back, with the tokenizer that the bundle carries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from device_runtime.errors import BundleError

__all__ = ["Tokenizer", "read_tokenizer"]


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer library."""

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`; the names of special tokens in it become those tokens. No BOS is added."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, without special tokens; U+FFFD where a character is not whole."""


class _HuggingFace:
    """tokenizer.json, through `tokenizers`."""

    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer as Library

        self._library = Library.from_file(path)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._library.decode(list(tokens), skip_special_tokens=True))


class _SentencePiece:
    """tokenizer.model, through `sentencepiece`.

    SentencePiece itself takes the name of a control token in a text for plain text. Chat templates need it to
    be the token, so the text is cut at those names first.
    """

    def __init__(self, path: str) -> None:
        import re

        from sentencepiece import SentencePieceProcessor

        self._library: Any = SentencePieceProcessor(model_file=path)
        control = [i for i in range(self._library.vocab_size()) if self._library.is_control(i)]
        self._control = {self._library.id_to_piece(i): i for i in control}
        names = sorted(map(re.escape, self._control), key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(names) + ")") if names else None

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = []
        for part in self._cut.split(text) if self._cut else [text]:
            tokens += [self._control[part]] if part in self._control else self._library.encode(part)
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._library.decode(list(tokens)))


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json or a tokenizer.model.

    Raises:
        BundleError: the library cannot read it.
    """
    kind = _SentencePiece if path.suffix == ".model" else _HuggingFace
    try:
        return kind(str(path))
    except ImportError:
        raise
    except Exception as error:
        raise BundleError(f"{path} cannot be read as a tokenizer ({error}); convert the checkpoint again.") from None
