"""What a bundle's own task adds to asking it: the prompt made of an input, the schema, and answers decided at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from device_runtime.bundle.manifest import Manifest
from device_runtime.engine.chat import Message
from device_runtime.engine.tokenizer import Tokenizer
from device_runtime.errors import BundleError
from device_runtime.tasks.classify import Heads, WrittenAnswer
from device_runtime.tasks.inputs import Prompt
from device_runtime.tasks.purpose import Purpose

__all__ = ["OpenedTask"]


class OpenedTask:
    """The task of an open bundle."""

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer) -> None:
        """Read it.

        Raises:
            BundleError: the bundle has none, or one that cannot be read.
        """
        purpose = Purpose.of_manifest(manifest)
        if purpose is None:
            raise BundleError(f"{manifest.name} was trained for no task.")
        self._purpose, self._tokenizer = purpose, tokenizer
        self._heads = Heads.in_vocabulary(purpose.fields, tokenizer) if purpose.kind == "classify" else None

    @property
    def schema(self) -> Mapping[str, Any]:
        """What every answer fits."""
        return self._purpose.answer

    @property
    def temperatures(self) -> Mapping[str, float]:
        """Of each field's choices, as they were fitted."""
        return self._purpose.temperatures

    def read(self, asked: str | Sequence[Message]) -> Prompt:
        """See `Purpose.prompt`."""
        return self._purpose.prompt(asked)

    def unknown_words(self, text: str, tokens: int) -> tuple[str, ...]:
        """See `Purpose.unknown_words`."""
        return self._purpose.unknown_words(text, tokens)

    def decided(self) -> WrittenAnswer | None:
        """For one answer of the kind classify; None where the model writes its answers."""
        return None if self._heads is None else WrittenAnswer(self._heads, self._tokenizer)
