"""What a larger model is asked in place of the model of this device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from device_runtime.brain.far.side import FarQuestion
from device_runtime.brain.redacted_schema import schema_for_far_side
from device_runtime.brain.redaction import Redactor
from device_runtime.tasks.asked import reading_in, text_in

if TYPE_CHECKING:
    from device_runtime.tasks.purpose import Purpose

__all__ = ["far_question", "input_of", "last_of_user"]


def far_question(
    messages: Sequence[Mapping[str, str]],
    schema: Mapping[str, Any] | None,
    *,
    system: str | None,
    purpose: Purpose | None,
    redactor: Redactor,
    secrets: Mapping[str, str],
    max_new: int | None = None,
    hops: int = 0,
) -> FarQuestion:
    """The question with an instruction where it has none: a bundle knows its task, a larger model does not.

    Args:
        messages: without what is to be withheld.
        schema: that was asked for; None takes the task's.
        system: the policy's instruction, in place of one made of the task.
        purpose: of the model that was asked here; None: it was trained for no task.
        redactor: takes what is withheld out of the schema and the instruction.
        secrets: of the messages, see `Redactor.secrets`.

    Raises:
        CannotRedactError: the schema demands something that is withheld.
    """
    if schema is None and purpose is not None:
        schema = purpose.answer
    if system is None and purpose is not None:
        system = purpose.instruction
    if system is not None and not any(message["role"] == "system" for message in messages):
        messages = ({"role": "system", "content": redactor.text(system, secrets)}, *messages)
    return FarQuestion(tuple(messages), schema_for_far_side(redactor, schema, secrets), max_new, hops)


def last_of_user(messages: Sequence[Mapping[str, str]]) -> str:
    """What was asked last."""
    return next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")


def input_of(messages: Sequence[Mapping[str, str]], purpose: Purpose | None) -> dict[str, Any]:
    """The `input` of an example: what a task reads, or else the prompt."""
    asked = last_of_user(messages)
    if purpose is None:
        return {"prompt": asked}
    if purpose.inputs.text is not None:
        return {"text": text_in(asked)}
    found = reading_in(asked)
    return {"prompt": asked} if found is None else dict(found)
