"""A backend that says what a script says, one token per step, and a tokenizer of whole bytes (tests only)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import ActivationPeak, FileEntry, GraphCounts, GraphShape, Manifest, TokenizerInfo
from device_runtime.engine.language_model import LanguageModel
from device_runtime.engine.text.segments import Segment

__all__ = ["EOS", "ScriptedBackend", "Words", "scripted_model"]

EOS = 0
PREFIX = 1


class Words:
    """Token 0 ends an answer, 1 is the prefix, 2 … are pieces: bytes, so that a piece may be part of a character."""

    def __init__(self, *pieces: str | bytes) -> None:
        self.pieces = [b"", b""] + [piece.encode() if isinstance(piece, str) else piece for piece in pieces]

    names: tuple[str, ...] = ()
    special: tuple[str, ...] = ()

    def encode(self, text: str | Sequence[Segment]) -> list[int]:
        """One token for each word of `text`, which must be among the pieces or becomes one."""
        tokens = []
        text = text if isinstance(text, str) else "".join(segment.text for segment in text)
        for word in text.split():
            if word.encode() not in self.pieces:
                self.pieces.append(word.encode())
            tokens.append(self.pieces.index(word.encode()))
        return tokens

    encode_inside = encode

    def decode(self, tokens: Sequence[int]) -> str:
        """Bytes joined, U+FFFD where they are no characters."""
        return b"".join(self.pieces[token] for token in tokens).decode(errors="replace")


class ScriptedBackend:
    """See `device_runtime.engine.backends.Backend`. The k-th decision of an answer is the k-th token of the script."""

    chunk, several, position_bytes = 64, 1, 0

    def __init__(self, script: Sequence[int], context: int, prefix: int = 1) -> None:
        self.context, self.position = context, prefix
        self._script, self._prefix = list(script), prefix
        self._next = 0
        self.taken_in: list[list[int]] = []  # the tokens of each prefill
        self.closed = False
        self.on_prefill: Callable[[], None] = lambda: None

    def _logits(self) -> np.ndarray:
        logits = np.zeros(100, np.float32)
        logits[self._script[self._next % len(self._script)]] = 1
        self._next += 1
        return logits

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        self.taken_in.append(list(tokens))
        self.on_prefill()
        self._next = 0
        self.position += len(tokens)
        assert self.position <= self.context
        return self._logits()

    def decode(self, token: int) -> np.ndarray:
        self.position += 1
        assert self.position <= self.context
        return self._logits()

    def rewind(self, position: int) -> None:
        self.position = min(self.position, max(position, self._prefix))

    def close(self) -> None:
        self.closed = True


def scripted_model(script: Sequence[int], words: Words, context: int = 64) -> tuple[LanguageModel, ScriptedBackend]:
    """A model that answers every prompt with `script`."""
    manifest = Manifest(
        format=1,
        name="scripted",
        version="1",
        task="generate",
        architecture="none",
        weight_bits=8,
        profile="pi",
        context=context,
        graph=GraphShape(1, 1, 2, 100, (context,), 0, 4, 200, False),
        counts={"pi": GraphCounts(1, 10, 20, 100, 200, 100, 0, 8, 16, ((ActivationPeak(64, 4),),))},
        tokenizer=TokenizerInfo("tokenizer.json", PREFIX, (EOS,), False, {}),
        chat_template=None,
        prefix_tokens=(PREFIX,),
        quality={},
        source={},
        converter="0",
        security_counter=0,
        files={"model.tflite": FileEntry("0", 0)},
    )
    backend = ScriptedBackend(script, context)
    return LanguageModel(Bundle(Path(), manifest, ""), backend, words), backend
