"""What a JSON schema asks of an answer: which of its fields are scored, what holds the rest, and how sure they are.

A model that writes free text does without all this, so it is loaded at the first schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.chat import Message
from device_runtime.engine.drafts import AnswerHistories
from device_runtime.engine.generation import Certainty
from device_runtime.engine.structured import Constraint, SchemaCompiler, no_room
from device_runtime.engine.tokenizer import Tokenizer
from device_runtime.engine.typed.choice import by_field, confidence_of, shares_of
from device_runtime.engine.typed.form import FieldForm, field_forms, free_texts, shortest_answer
from device_runtime.engine.typed.labels import LabelPaths
from device_runtime.engine.typed.priors import Priors, PriorStore

if TYPE_CHECKING:
    from device_runtime.tasks.classify import WrittenAnswer

__all__ = ["SchemaAnswers", "certainty_of"]


class SchemaAnswers:
    """For one model."""

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer, encode: Callable[[Sequence[Message]], list[int]]) -> None:
        """`encode` gives the tokens of chat messages, the prefix included."""
        self._tokenizer, self._encode = tokenizer, encode
        self._schemas, self._priors = SchemaCompiler(bundle), PriorStore()
        self.histories, self.paths = AnswerHistories(), LabelPaths(tokenizer)

    def check(self, schema: Mapping[str, Any], max_new: int | None) -> None:
        """As `LanguageModel.check_schema`."""
        self._schemas.check(schema, max_new)

    def constraint(self, schema: Mapping[str, Any], limit: int) -> Constraint:
        """What holds an answer of at most `limit` tokens to a schema; raises a `SchemaError` if there is none."""
        return self._schemas.constraint(schema, limit)

    def scored_fields(self, schema: Mapping[str, Any]) -> list[FieldForm]:
        """The fields of an answer that is written field by field; none where it cannot be, or has nothing to score."""
        fields = field_forms(schema)
        if all(field.labels is None for field in fields):
            return []
        texts = [f'{{"{field.name}": {label}}}' for field in fields for label in field.labels or ("0",)]
        return fields if all(map(self.paths.can_write, texts)) else []

    def of_written_fields(
        self, schema: Mapping[str, Any], fields: Sequence[FieldForm], limit: int
    ) -> Constraint | None:
        """What holds the fields that the model writes; None where it writes none.

        Raises:
            SchemaError: even the shortest answer is longer than `limit` tokens.
        """
        if all(field.labels is not None for field in fields):
            if (least := len(self._tokenizer.encode_inside(shortest_answer(fields)))) > limit:
                raise no_room(least, limit)
            return None
        return self._schemas.constraint({**schema, "required": [field.name for field in fields]}, limit)

    def priors_against(self, messages: Sequence[Message], nothing: str) -> Priors:
        """How labels are answered where the last message says nothing."""
        *before, last = messages
        return self._priors.against(self._encode([*before, {**last, "content": nothing}]))


def certainty_of(
    temperatures: Mapping[str, float],
    schema: Mapping[str, Any] | None,
    held: Constraint | None,
    written: WrittenAnswer | None,
    spelled: Callable[[str], Sequence[int]],
    text: str,
) -> Certainty:
    """Of a whole answer that was held to a schema; nothing where there are no fields.

    Args:
        spelled: the tokens of a value within an answer.
    """
    probabilities = None
    if written is not None:
        choices = written.choices
        probabilities = shares_of(choices, written.values, temperatures)
    elif held is not None and schema is not None:
        answer = json.loads(text)
        if not isinstance(answer, dict):
            return Certainty()
        fields = field_forms(schema)
        texts = {field.name for field in fields if field.free_text} if fields else free_texts(schema)
        choices = by_field(answer, text, held.decisions, texts)
        values = {field.name: field.values for field in fields}
        probabilities = shares_of(choices, values, temperatures, spelled) or None
    else:
        return Certainty()
    confidence = {name: confidence_of(found, temperatures.get(name, 1.0)) for name, found in choices.items()}
    return Certainty(confidence, probabilities)
