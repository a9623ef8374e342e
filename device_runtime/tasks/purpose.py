"""What a bundle was trained for: the part of its manifest that makes prompts, checks answers and calibrates them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from device_runtime.bundle.manifest import Manifest
from device_runtime.engine.chat import Message
from device_runtime.errors import BundleError, ConfigurationError
from device_runtime.fleet import yaml_schema
from device_runtime.fleet.answer_schema import Answer
from device_runtime.fleet.yaml_schema import Choice, Field, MapOf, Number, Plain, Record, Text
from device_runtime.tasks.asked import reading_in, text_in
from device_runtime.tasks.examples import Example, answer_faults
from device_runtime.tasks.file import INPUTS, Task, typed_fields
from device_runtime.tasks.inputs import Inputs, Prompt

__all__ = ["Purpose", "is_general", "purposes_of"]


@dataclass(frozen=True)
class Purpose:
    """`purpose` in manifest.json."""

    name: str
    inputs: Inputs
    answer: Mapping[str, Any]  # a JSON schema
    kind: Literal["tiny", "classify", "tune", "none"] = "none"  # none: of a bundle that was trained for no task
    about: str = ""  # a sentence
    none: Mapping[str, Any] = field(default_factory=dict)  # what an answer says when nothing was asked
    temperatures: Mapping[str, float] = field(default_factory=dict)  # of each field's choice; 1 where there is none
    longest_pieces: float | None = None  # tokens for each character; a text with more has words nobody trained on
    ordinary: Mapping[str, Any] = field(default_factory=dict)  # a value of each field as most readings have it
    report: Mapping[str, Any] = field(default_factory=dict)
    at_once: bool = False  # no field depends on what was said of the fields before it

    @classmethod
    def of_task(cls, task: Task) -> Purpose:
        """For a bundle that was not trained for the task: nothing is calibrated."""
        return cls(task.name, task.inputs, task.answer, about=task.about, none=task.none)

    @classmethod
    def of_manifest(cls, manifest: Manifest, name: str | None = None) -> Purpose | None:
        """What the manifest says; None where the bundle was trained for no task.

        Args:
            name: which of its tasks, of a bundle that was trained for several; without it that is None.

        Raises:
            BundleError: it says something that this version cannot read.
        """
        found = purposes_of(manifest)
        return found[0] if len(found) == 1 else next((purpose for purpose in found if purpose.name == name), None)

    @property
    def fields(self) -> dict[str, list[Any] | None]:
        """The answer's fields in order: the values of an enum, or None."""
        return typed_fields(self.answer)

    def answers_as(self, task: Task) -> bool:
        """Whether its answers have the fields of this task's, and no values but theirs."""
        own, other = self.fields, task.fields
        return own.keys() == other.keys() and all(
            own[name] == values or (values is None and self._within(task, name)) for name, values in other.items()
        )

    def _within(self, task: Task, name: str) -> bool:
        """Whether a field lists values that the task, which lists none, allows."""
        return not any(answer_faults({name: value}, task.answer, whole=False) for value in self.fields[name] or [])

    @property
    def instruction(self) -> str:
        """What the task is, for a model that was not trained for it."""
        fields = {name: values for name, values in self.fields.items() if values}
        values = "; ".join(f"{name} is one of {', '.join(map(str, of))}" for name, of in fields.items())
        return f"{self.about} Answer in JSON: {values}."

    def prompt(self, asked: str | Sequence[Message]) -> Prompt:
        """The prompt for what somebody asks: a text, or a JSON object with the fields that the task reads. An object
        that has `text` alone, as the input of an example has, is that text.

        It may be one that cannot be answered, because it lacks something.

        Of several messages the last one of a user counts: a bundle of a task holds no conversation.

        Raises:
            ConfigurationError: it is no JSON object where the task reads fields.
        """
        if not isinstance(asked, str):
            asked = next((str(m.get("content")) for m in reversed(asked) if m.get("role") == "user"), "")
        return self.inputs.prompt({"text": text_in(asked)} if self.inputs.text is not None else self._reading(asked))

    def asked(self, given: Mapping[str, Any]) -> str:
        """An input as somebody asks it, which `prompt` reads."""
        text = str(given["text"]) if self.inputs.text is not None else None
        return text if text is not None and text_in(text) == text else json.dumps(given)

    def conversation(self, shown: Sequence[Example], asked: str) -> list[Message]:
        """For a model that talks: what the task is, examples as turns, and an input's prompt."""
        turns: list[Message] = [{"role": "system", "content": self.instruction}]
        for example in shown:
            answer = json.dumps(example.answer, ensure_ascii=False)
            turns.append({"role": "user", "content": self.inputs.prompt(example.input).text.strip()})
            turns.append({"role": "assistant", "content": answer})
        return [*turns, {"role": "user", "content": asked.strip()}]

    def unknown_words(self, text: str, tokens: int) -> tuple[str, ...]:
        """Why a prompt of so many tokens is unlike those of the training, as far as its words say it."""
        if self.longest_pieces is None or tokens <= self.longest_pieces * len(text):
            return ()
        return ("most of its words are none that the model was trained on",)

    def _reading(self, asked: str) -> Mapping[str, Any]:
        if (given := reading_in(asked)) is not None:
            return given
        names = ", ".join([*(self.inputs.fields or {}), *(["window"] if self.inputs.window else [])])
        raise ConfigurationError(
            f"{self.name} is asked {asked!r:.60}; expected a JSON object with {names}. In a link that is "
            "prompt: '{{ dict(reading, window=window) | tojson }}'."
        )

    def asks_nothing(self, answer: Mapping[str, Any]) -> bool:
        """Whether an answer is the task's `none`: that nothing was asked."""
        return bool(self.none) and all(answer.get(name) == value for name, value in self.none.items())

    def to_json(self) -> dict[str, Any]:
        """As it is in the manifest, whose names may come back in any order: the model knows one alone."""
        order = {
            "fields": list(self.inputs.fields or {}),
            "features": list(self.inputs.features or {}),
            "answer": list(self.fields),
        }
        return {
            "name": self.name,
            "order": order,
            "kind": self.kind,
            **({"about": self.about} if self.about else {}),
            "input": self.inputs.to_json(),
            "answer": dict(self.answer),
            "none": dict(self.none),
            "temperatures": dict(self.temperatures),
            **({} if self.longest_pieces is None else {"longest_pieces": self.longest_pieces}),
            **({"ordinary": dict(self.ordinary)} if self.ordinary else {}),
            "report": dict(self.report),
        }


def is_general(manifest: Manifest) -> bool:
    """Whether a bundle writes whatever it is asked for: it was trained for no task, or for several. Vectors and
    translations are no answers to a question."""
    return manifest.task == "generate" and Purpose.of_manifest(manifest) is None


def purposes_of(manifest: Manifest) -> tuple[Purpose, ...]:
    """All tasks that a bundle was trained for.

    Raises:
        BundleError: they cannot be read by this version.
    """
    if manifest.purpose is None:
        return ()
    try:
        parts = manifest.purpose.get("tasks", [manifest.purpose])
        found = [yaml_schema.loads(json.dumps(_ordered(part)), _PURPOSE, file="purpose") for part in parts]
    except (ConfigurationError, TypeError, AttributeError) as error:
        raise BundleError(f"{manifest.name} has a purpose that cannot be read ({error}); train it again.") from None
    heads = manifest.task == "classify"  # of an encoder
    return tuple(replace(purpose, at_once=heads or purpose.kind == "classify") for purpose in found)


def _ordered(purpose: Mapping[str, Any]) -> dict[str, Any]:
    """With the fields in the order that the model was trained with."""
    order = purpose.get("order")
    found = {name: value for name, value in purpose.items() if name != "order"}
    if not isinstance(order, Mapping):
        return found
    inputs, answer = found.get("input"), found.get("answer")
    if isinstance(inputs, Mapping):
        found["input"] = {name: _sorted(value, order.get(name)) for name, value in inputs.items()}
    if isinstance(answer, Mapping):
        found["answer"] = {**answer, "properties": _sorted(answer.get("properties"), order.get("answer"))}
    return found


def _sorted(value: Any, names: Any) -> Any:
    if not isinstance(value, Mapping) or not isinstance(names, Sequence):
        return value
    return {name: value[name] for name in [*names, *(n for n in value if n not in names)] if name in value}


_PURPOSE = Record(
    Purpose,
    {
        "name": Field(Text("a name")),
        "kind": Field(Choice(("tiny", "classify", "tune", "none")), default="none"),
        "about": Field(Text("a sentence"), default=""),
        "input": Field(INPUTS, to="inputs"),
        "answer": Field(Answer()),
        "none": Field(Plain("a mapping"), default={}),
        "temperatures": Field(MapOf(Text("a field"), Number(0.01, 100.0)), default={}),
        "longest_pieces": Field(Number(0, 100), default=None),
        "ordinary": Field(Plain("a mapping"), default={}),
        "report": Field(Plain("a mapping"), default={}),
    },
)
