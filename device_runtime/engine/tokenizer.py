"""Text to tokens and back, with the tokenizer that the bundle carries.

The libraries take the name of a special token for that token wherever it is in a text (tokenizers), or nowhere
(sentencepiece). A prompt needs both: in what a chat template writes it is the token, in what a message says it is text.
So the names are respelled in characters that no text has, in the tokenizer and in the template's part of a prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from device_runtime.engine.text.segments import PRIVATE, Segment
from device_runtime.errors import BundleError

__all__ = ["Tokenizer", "control_names", "read_tokenizer"]

_SHAPE = re.compile("<\\|[^\\s<>]{1,60}\\|>|<\uff5c[^\\s<>]{1,60}\uff5c>")  # <|im_end|>; DeepSeek has full-width bars
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # a byte of a character that the vocabulary lacks; never markup
_BRACKETED = re.compile(r"<[^\s<>]{1,60}>|\[[^\s\[\]]*[A-Za-z][^\s\[\]]*\]")
# Of the noncharacters in PRIVATE: digits, and the marks around them.
_BASE, _DIGITS, _OPEN, _CLOSE = 0xFDD0, 30, "\ufdee", "\ufdef"
_CODES = re.compile("\ufdee[\ufdd0-\ufded]{3}\ufdef")
# What a text may follow, for its tokens in the middle of another: first a character of no word or rule.
_LEADS = ("\ue000", "\n", "0", "|", "a")


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer library."""

    @property
    def names(self) -> Collection[str]:
        """Spellings of control tokens."""

    @property
    def special(self) -> Collection[str]:
        """Those of them that are never part of what a message says."""

    def encode(self, text: str | Sequence[Segment]) -> list[int]:
        """Tokens of a text, in which names of control tokens become those tokens; or of segments. No BOS is added."""

    def encode_inside(self, text: str) -> list[int]:
        """Tokens of a text that follows another one: nothing is put before it, and no name becomes a control token."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, without special tokens; U+FFFD where a character is not whole."""


def control_names(added: Iterable[tuple[str, int, bool]], template: str | None, eos_ids: Collection[int]) -> list[str]:
    """Which of the added tokens are markup: the special ones, those that end an answer, those of the chat template, and
    those that are spelled like one.

    Args:
        added: (text, id, whether it is special) of each.
    """
    return [
        text
        for text, number, special in added
        if text and not _BYTE.fullmatch(text) and (special or number in eos_ids or _SHAPE.fullmatch(text)
                     or (not text.isspace() and template is not None and text in template))
    ]  # fmt: skip


class _Names:
    """The names of control tokens, respelled."""

    def __init__(self, names: Iterable[str]) -> None:
        self.code = {name: _spelled(i) for i, name in enumerate(dict.fromkeys(names))}
        self.name = {code: name for name, code in self.code.items()}
        longest_first = sorted(self.code, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def respelled(self, text: str | Sequence[Segment]) -> str:
        """One text, in which only the names in markup are control tokens."""
        segments = [Segment(text, True)] if isinstance(text, str) else text
        parts = []
        for part, markup in segments:
            part = PRIVATE.sub("\ufffd", part)
            parts.append(self._any.sub(lambda name: self.code[name[0]], part) if markup else part)
        return "".join(parts)


def _spelled(number: int) -> str:
    digits = [chr(_BASE + number // _DIGITS**place % _DIGITS) for place in (2, 1, 0)]
    return _OPEN + "".join(digits) + _CLOSE


class _HuggingFace:
    """tokenizer.json, through `tokenizers`."""

    def __init__(self, path: str, template: str | None, eos_ids: Collection[int]) -> None:
        from tokenizers import Tokenizer as Library

        content = Path(path).read_text(encoding="utf-8")
        added = [
            (str(token["content"]), int(token["id"]), bool(token.get("special", False)))
            for token in _added_tokens(content)
        ]
        names = control_names(added, template, eos_ids)
        self.names: Collection[str] = names
        self.special: Collection[str] = [
            text for text, number, special in added if text in names and (special or number in eos_ids)
        ]
        self._names = _Names(names)
        self._library: Any = Library.from_str(_respelled(content, self._names.code))
        if any(self._library.token_to_id(code) is None for code in self._names.name) or any(map(self._found, names)):
            self._library = Library.from_str(_respelled_in_model(content, self._names.code))
        # A file may ask for both, and then a prompt would lose its end.
        self._library.no_truncation()
        self._library.no_padding()

    def _found(self, name: str) -> bool:
        """Whether the plain spelling of a name still becomes its token."""
        number = self._library.token_to_id(self._names.code[name])
        return number in self._library.encode(name, add_special_tokens=False).ids

    def encode(self, text: str | Sequence[Segment]) -> list[int]:
        ids: list[int] = self._library.encode(self._names.respelled(text), add_special_tokens=False).ids
        return ids

    def encode_inside(self, text: str) -> list[int]:
        return self.encode([Segment(text, False)])

    def decode(self, tokens: Sequence[int]) -> str:
        text = str(self._library.decode(list(tokens), skip_special_tokens=True))
        return _CODES.sub(lambda code: self._names.name[code[0]], text) if _OPEN in text else text


def _added_tokens(content: str) -> list[dict[str, Any]]:
    """`added_tokens` of a tokenizer.json, without reading its vocabulary."""
    start = content.find('"added_tokens"')
    if start >= 0:
        found, _ = json.JSONDecoder().raw_decode(content, content.index("[", start))
    else:
        found = json.loads(content).get("added_tokens")
    return found if isinstance(found, list) else []


def _respelled(content: str, code: Mapping[str, str]) -> str:
    """A tokenizer.json in which these names are spelled as their codes, wherever one is a whole JSON string."""
    for name, spelling in code.items():
        for quoted in {json.dumps(name, ensure_ascii=False), json.dumps(name)}:
            content = content.replace(quoted, f'"{spelling}"')
    return content


def _respelled_in_model(content: str, code: Mapping[str, str]) -> str:
    """The same, and no merge makes one of them."""
    document = json.loads(content)
    model = document["model"]

    def pair(merge: Any) -> list[str]:
        return list(merge) if isinstance(merge, list) else str(merge).split(" ", 1)

    if isinstance(model.get("merges"), list):
        model["merges"] = [
            m for m in model["merges"] if "".join(pair(m)) not in code and not code.keys() & set(pair(m))
        ]
    return _respelled(json.dumps(document, ensure_ascii=False), code)


class _SentencePiece:
    """tokenizer.model, through `sentencepiece`, which never reads a control piece out of a text: the text is cut there.

    Args:
        spaced: the library puts a space before a text; whether one goes after each control token too (transformers'
            `legacy`).
        own_space: a text that begins with a space gets no other one (transformers since version 5).
    """

    def __init__(
        self,
        path: str,
        template: str | None,
        eos_ids: Collection[int],
        *,
        spaced: bool = True,
        own_space: bool = False,
    ) -> None:
        from sentencepiece import SentencePieceProcessor

        self._library: Any = SentencePieceProcessor(model_file=path)
        self._size, self._spaced, self._own_space = self._library.vocab_size(), spaced, own_space
        unknown = self._library.unk_id()
        leads = ((lead, self._library.encode(lead)) for lead in _LEADS)
        self._leads = [(lead, tokens) for lead, tokens in leads if tokens and unknown not in tokens]
        pieces = [self._library.id_to_piece(i) for i in range(self._size)]
        control = {i for i in range(self._size) if self._library.is_control(i) or self._library.is_unknown(i)}
        # The library does not say which pieces are user-defined: those that are found in any surroundings.
        shaped = {
            i for i, piece in enumerate(pieces)
            if i not in control and (i in eos_ids or _SHAPE.fullmatch(piece)
                                     or (template is not None and _BRACKETED.fullmatch(piece) and piece in template))
        }  # fmt: skip
        self._defined = {i for i in shaped if i in self._library.encode(f"a{pieces[i]}a".replace("\u2581", " "))}
        self._ids = {pieces[i].replace("\u2581", " ") if i in self._defined else pieces[i]: i
                     for i in sorted([*control, *self._defined])}  # fmt: skip
        self.names: Collection[str] = list(self._ids)
        self.special: Collection[str] = [name for name, i in self._ids.items() if i in control or i in eos_ids]
        self._names = _Names(self.names)

    def encode(self, text: str | Sequence[Segment]) -> list[int]:
        tokens: list[int] = []
        respelled = self._names.respelled(text)
        start = 0
        for code in _CODES.finditer(respelled):
            tokens += self._plain(respelled[start : code.start()], after_control=bool(tokens))
            tokens.append(self._ids[self._names.name[code[0]]])
            start = code.end()
        return tokens + self._plain(respelled[start:], after_control=bool(tokens))

    def _plain(self, text: str, *, after_control: bool) -> list[int]:
        if not text:
            return []
        bare = (after_control and not self._spaced) or (self._own_space and text[0] in " \u2581")
        tokens: list[int] = self._inner(text) if bare else self._library.encode(text)
        if self._defined.isdisjoint(tokens):
            return tokens
        # A user-defined piece in what a message says: cut within it, since the library has no other way.
        first = sorted({name[0] for name in self.names})
        parts = re.split("(?<=" + ")|(?<=".join(map(re.escape, first)) + ")", text)
        tokens = self._inner(parts[0]) if bare else self._library.encode(parts[0])
        for part in filter(None, parts[1:]):
            tokens += self._inner(part)
        return [token for token in tokens if token not in self._defined]

    def encode_inside(self, text: str) -> list[int]:
        return self._inner(text)

    def _inner(self, text: str) -> list[int]:
        """Tokens of a text in the middle of another: without the space that the library puts in front."""
        for lead, alone in self._leads:  # where no piece spans both, the rest is what it is alone
            tokens: list[int] = self._library.encode(lead + text)
            if tokens[: len(alone)] == alone:
                return tokens[len(alone) :]
        plain: list[int] = self._library.encode(text)
        return plain

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._library.decode([token for token in tokens if token < self._size]))


def read_tokenizer(
    path: Path,
    template: str | None = None,
    eos_ids: Collection[int] = (),
    *,
    spaced: bool = True,
    own_space: bool = False,
) -> Tokenizer:
    """Read a tokenizer.json or a tokenizer.model.

    Args:
        template: the chat template, whose tokens are markup.
        eos_ids: tokens that end an answer.
        spaced: for a tokenizer.model, whether a space follows each control token.
        own_space: for a tokenizer.model, whether a text that begins with a space gets no other one before it.

    Raises:
        BundleError: the library cannot read it.
    """
    try:
        if path.suffix == ".model":
            return _SentencePiece(str(path), template, eos_ids, spaced=spaced, own_space=own_space)
        return _HuggingFace(str(path), template, eos_ids)
    except (ImportError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        reason = f"{type(error).__name__}: {error}"[:300]
        raise BundleError(f"{path} cannot be read as a tokenizer ({reason}); convert the checkpoint again.") from None
