"""What a bundle's own task adds to asking it: the prompt made of an input, the schema, and answers decided at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from device_runtime.bundle.manifest import Manifest
from device_runtime.engine.chat import Message
from device_runtime.engine.tokenizer import Tokenizer
from device_runtime.tasks.classify import Heads, WrittenAnswer
from device_runtime.tasks.file import typed_fields
from device_runtime.tasks.fixed_answers import constants, require_fit
from device_runtime.tasks.inputs import Prompt
from device_runtime.tasks.purpose import Purpose, purposes_of

__all__ = ["OpenedTask", "OpenedTasks"]


class OpenedTasks:
    """The tasks of an open bundle."""

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer) -> None:
        """Read them.

        Raises:
            BundleError: they cannot be read.
        """
        self._tasks = [OpenedTask(purpose, tokenizer) for purpose in purposes_of(manifest)]

    def asked_with(self, schema: Mapping[str, Any] | None) -> OpenedTask | None:
        """The task of a request: the only one, or that whose answers have the fields that are asked for."""
        if len(self._tasks) == 1:
            return self._tasks[0]
        fields = None if schema is None else typed_fields(schema)
        return next((task for task in self._tasks if typed_fields(task.schema) == fields), None)


class OpenedTask:
    """One of them."""

    def __init__(self, purpose: Purpose, tokenizer: Tokenizer) -> None:
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

    @property
    def is_tuned(self) -> bool:
        """Whether it is asked as in a conversation, and its labels are scored."""
        return self._purpose.kind == "tune"

    def read(self, asked: str | Sequence[Message]) -> Prompt:
        """See `Purpose.prompt`."""
        return self._purpose.prompt(asked)

    def asked(self, prompt: Prompt) -> str | list[Message]:
        """A prompt as the model was trained on it."""
        return self._purpose.conversation((), prompt.text) if self.is_tuned else prompt.text

    def unknown_words(self, text: str, tokens: int) -> tuple[str, ...]:
        """See `Purpose.unknown_words`; `tokens` is what a prompt of the text alone has."""
        tokens = len(self._tokenizer.encode_inside(text)) if self.is_tuned else tokens
        return self._purpose.unknown_words(text, tokens)

    @property
    def decides_at_once(self) -> bool:
        """Whether heads give its answers, which no schema can hold to anything else."""
        return self._heads is not None

    def require_fit(self, schema: Mapping[str, Any]) -> None:
        """Raise a `SchemaError` unless what its heads may answer fits."""
        require_fit(self._purpose.name, self._purpose.fields, schema)

    def decided(self, schema: Mapping[str, Any]) -> WrittenAnswer | None:
        """For one answer of the kind classify; None where the model writes its answers.

        Args:
            schema: of the answer; what it gives as constants is taken as it is.
        """
        if self._heads is None:
            return None
        return WrittenAnswer(self._heads, self._tokenizer, constants(self._heads.fields, schema))
