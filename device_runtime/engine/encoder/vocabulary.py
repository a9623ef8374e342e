"""Texts to tokens for encoders and translators, within the frame that the model was trained with, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.prompts import tokenizer_of
from device_runtime.engine.text.segments import Segment
from device_runtime.engine.text.tokenizer_trial import try_tokenizer
from device_runtime.engine.tokenizer import Tokenizer
from device_runtime.errors import BundleError, ConfigurationError, ContextOverflowError

__all__ = ["TARGET", "VOCABULARY", "EncodedText", "Vocabulary"]

TARGET = "target.model"  # SentencePiece, of the language that is translated to; tokenizer.model is of the other
VOCABULARY = "vocabulary.json"  # ids by piece, for both
_LANGUAGE = re.compile(r">>[^<>\s]+<<")


class EncodedText:
    """The tokens of one text, and whether its end was cut off."""

    def __init__(self, tokens: list[int], cut: bool) -> None:
        self.tokens, self.cut = tokens, cut


class Vocabulary:
    """The tokenizer of a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        """Read it.

        Raises:
            BundleError: a file cannot be read, or is not what the manifest says.
        """
        manifest = bundle.manifest
        if manifest.encoder is None:
            raise BundleError(f"{bundle.path} says nothing of how a text goes in; convert the checkpoint again.")
        self._info, self._context = manifest.encoder, manifest.context
        self._library: Tokenizer | _TwoVocabularies
        if VOCABULARY in manifest.files:
            self._library = _TwoVocabularies(bundle)
        else:
            self._library = tokenizer_of(bundle)

    @property
    def languages(self) -> Sequence[str]:
        """What a multilingual translator can translate to, as it spells them."""
        return self._library.languages if isinstance(self._library, _TwoVocabularies) else ()

    def encode(
        self, text: str, *, prompt: str | None = None, to: str | None = None, truncate: bool = False
    ) -> EncodedText:
        """The tokens of a text, its frame included.

        Args:
            prompt: the name of what goes before it; None takes the bundle's own, if it has one.
            to: the language to translate to.
            truncate: leave out what is too long, as the model's authors do; else it is an error.

        Raises:
            ConfigurationError: it is empty or no text, or there is no such prompt or language.
            ContextOverflowError: it is too long.
        """
        if not isinstance(text, str) or not text.strip():
            raise ConfigurationError("The text is empty; give the model something to read.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigurationError(
                f"This is not text: character {error.start} is {text[error.start]!r}; give it in UTF-8."
            ) from None
        inner = self._language(to) + self._library.encode([Segment(self._prompt(prompt) + text, False)])
        start, end = list(self._info.start_ids), list(self._info.end_ids)
        room = self._context - len(start) - len(end)
        if len(inner) > room and not truncate:
            raise ContextOverflowError(
                f"The text has {len(inner)} tokens; this model reads {room} at most. Shorten the text, split it, or "
                "have its end cut off (--truncate; truncate=True).",
                tokens=len(inner) + len(start) + len(end),
                context=self._context,
            )
        return EncodedText([*start, *inner[:room], *end], len(inner) > room)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a translation's tokens."""
        return self._library.decode(tokens)

    def _prompt(self, name: str | None) -> str:
        name = self._info.default_prompt if name is None else name
        if name is None or name == "":
            return ""
        if name not in self._info.prompts:
            known = ", ".join(map(repr, self._info.prompts)) or "none"
            raise ConfigurationError(f"This bundle has no prompt {name!r}; it has {known}.")
        return self._info.prompts[name]

    def _language(self, to: str | None) -> list[int]:
        languages = self.languages
        if to is None and len(languages) < 2:
            return []
        if not languages:
            raise ConfigurationError(f"This translator writes one language alone; leave --to {to!r} (to=…) out.")
        if to is None or f">>{to}<<" not in languages:
            has = ", ".join(name[2:-2] for name in languages[:40])
            asked = "no language is named" if to is None else f"{to!r} is not among its languages"
            raise ConfigurationError(f"This translator writes {has}; {asked}. Name one with --to (to=…).")
        return self._library.encode_language(f">>{to}<<") if isinstance(self._library, _TwoVocabularies) else []


class _TwoVocabularies:
    """Marian's: a SentencePiece model for each language, and one table of ids."""

    def __init__(self, bundle: Bundle) -> None:
        from sentencepiece import SentencePieceProcessor

        self._models: list[Any] = []
        for name in (bundle.manifest.tokenizer.file, TARGET):
            path = bundle.path / name
            if name not in bundle.manifest.files:
                raise BundleError(f"{bundle.path} has no {name}; convert the checkpoint again.")
            if wrong := try_tokenizer(path):
                raise BundleError(f"{path} cannot be used as a tokenizer: {wrong}. Convert the checkpoint again.")
            self._models.append(SentencePieceProcessor(model_file=str(path)))
        path = bundle.path / VOCABULARY
        try:
            ids: Mapping[str, int] = json.loads(path.read_text(encoding="utf-8"))
            self._ids = {str(piece): int(i) for piece, i in ids.items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise BundleError(f"{path} is not a table of ids ({error}); convert the checkpoint again.") from None
        self._unknown = self._ids.get("<unk>", 0)
        self._pieces = {i: piece for piece, i in self._ids.items()}
        self.languages = sorted(piece for piece in self._ids if _LANGUAGE.fullmatch(piece))

    def encode(self, text: Sequence[Segment]) -> list[int]:
        """Ids of the pieces of the first language; names of control tokens are text like any other."""
        pieces = self._models[0].encode("".join(segment.text for segment in text), out_type=str)
        return [self._ids.get(piece, self._unknown) for piece in pieces]

    def encode_language(self, name: str) -> list[int]:
        """The id of a language's token."""
        return [self._ids[name]]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the second language."""
        pieces = (self._pieces.get(token, "") for token in tokens)
        kept = [piece for piece in pieces if piece and piece not in ("</s>", "<unk>", "<pad>")]
        text = str(self._models[1].decode_pieces(kept))
        return text.replace("\u2581", " ").strip()  # of pieces that only the first language's model has
