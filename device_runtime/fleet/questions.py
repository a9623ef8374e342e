"""What a link asks its model: its instruction, its examples as turns of a conversation, and the prompt of a reading.

All but the reading is the same each time, so that its kv_cache is computed once and kept. Fields that the link decides
by an expression are in the answer's schema as constants, before the others: the model writes what is left knowing them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jinja2

from device_runtime.brain.redaction import Redactor
from device_runtime.engine.typed.form import field_forms
from device_runtime.errors import LinkError
from device_runtime.fleet.expression import Expression
from device_runtime.records.printable import half_character, shown
from device_runtime.tasks.examples import answer_faults

if TYPE_CHECKING:
    from device_runtime.fleet.links import Link

__all__ = [
    "Decider", "LinkExample", "Nothing", "Question", "Questions", "Unsure", "answer_fields", "example_turns",
    "is_decided", "rendered", "typed_names",
]  # fmt: skip

NOTHING = "N/A"  # stands for each value where the input says nothing


@dataclass(frozen=True)
class LinkExample:
    """A reading, or a prompt as it would be asked, and the right answer."""

    answer: Any  # an object where the link's answer has fields, else a text
    reading: Mapping[str, Any] | None = None
    prompt: str | None = None
    topic: str | None = None  # of the reading; None is the link's filter with `example` for what it leaves open


@dataclass(frozen=True)
class Unsure:
    """What becomes of an answer of which the model is not sure."""

    below: float = 0.8  # the least confidence of its fields, under which it is unsure
    do: Literal["skip", "flag", "escalate"] = "flag"


@dataclass(frozen=True)
class Question:
    """What a model is asked about one reading; see `LanguageModel.generate`."""

    messages: tuple[Mapping[str, str], ...]
    schema: Mapping[str, Any] | None
    head: str  # what the last message always begins with
    nothing: str  # what it would be if the reading said nothing


class Decider:
    """The fields that a link decides by expressions. For one thread."""

    def __init__(self, link: Link) -> None:
        self._expressions = {name: Expression(source) for name, source in link.decide.items()}
        self._schema: Mapping[str, Any] = link.answer or {}

    def decided(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """Their values for a reading.

        Raises:
            LinkError: one cannot be computed, or is not what the answer's schema allows.
        """
        found = {name: expression.value(names) for name, expression in self._expressions.items()}
        if faults := answer_faults(found, self._schema, whole=False):
            raise LinkError(f"`decide` does not fit the answer: {shown('; '.join(faults), 300)}.")
        return found


class Questions:
    """The questions of one link."""

    def __init__(
        self, link: Link, template: jinja2.Template, decider: Decider, redactor: Redactor | None = None
    ) -> None:
        """Prepare.

        Args:
            redactor: what it withholds is in neither the instruction nor the examples. An example that is a prompt, in
                which no field can be found, is left out where fields are withheld.

        Raises:
            LinkError: an example cannot be rendered.
        """
        self._schema = link.answer
        clean = redactor or Redactor(())
        self._before = [{"role": "system", "content": clean.text(link.system, {})}] if link.system else []
        for example in link.examples:
            if example.reading is None and clean.names:
                continue
            text, decided, secrets = _asked(link, example, template, decider, clean)
            answer = example.answer
            if isinstance(answer, Mapping):
                answer = {**decided, **{name: answer[name] for name in self._order(decided) if name in answer}}
                answer = clean.value(answer, secrets)
            else:
                answer = clean.text(answer, secrets) if isinstance(answer, str) else answer
            self._before += example_turns(text, answer)
        self._template, self._head = link.prompt, _literal_head(link.prompt)
        self._nothing: str | None = None  # made at the first question

    def about(self, prompt: str, decided: Mapping[str, Any]) -> Question:
        """The question for a rendered prompt."""
        messages = (*self._before, {"role": "user", "content": prompt})
        if self._nothing is None:
            self._nothing = _says_nothing(self._template, self._head)
        return Question(messages, self._with(decided), self._head, self._nothing)

    def _order(self, decided: Mapping[str, Any]) -> list[str]:
        names = list((self._schema or {}).get("properties", {}))
        return [*decided, *(name for name in names if name not in decided)]

    def _with(self, decided: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The answer's schema, in which what is decided comes first and cannot be otherwise."""
        if self._schema is None or not decided:
            return self._schema
        properties = self._schema["properties"]
        known = {name: {"const": value} for name, value in decided.items()}
        rest = {name: schema for name, schema in properties.items() if name not in decided}
        return {**self._schema, "properties": known | rest}


def example_turns(text: str, answer: Any) -> list[dict[str, str]]:
    """An example as two turns of a conversation."""
    said = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    return [{"role": "user", "content": text}, {"role": "assistant", "content": said}]


def typed_names(schema: Mapping[str, Any] | None) -> list[str]:
    """The fields of an answer that have labels to choose from, or are numbers: those that have a confidence."""
    properties: Any = (schema or {}).get("properties")
    if not isinstance(properties, Mapping):
        return []
    labelled = {form.name for form in field_forms(schema or {}) if form.labels is not None}
    return [
        name
        for name, inner in properties.items()
        if name in labelled or (isinstance(inner, Mapping) and inner.get("type") in ("number", "integer", "boolean"))
    ]


def _asked(
    link: Link, example: LinkExample, template: jinja2.Template, decider: Decider, redactor: Redactor
) -> tuple[str, Mapping[str, Any], Mapping[str, str]]:
    """The prompt of an example, what is decided about its reading, and what is withheld of that."""
    if example.reading is None:
        return redactor.text(example.prompt or "", {}), {}, {}
    topic = (example.topic or link.source.replace("+", "example").replace("#", "example")).split("/")
    names = {**example.reading, "reading": example.reading, "topic": topic, "window": []}
    try:
        names["decided"] = decider.decided(names)
        secrets = redactor.secrets(names)
        known = redactor.names_of(names) if redactor else names
        return redactor.text(rendered(template, known), secrets), known["decided"], secrets
    except (LinkError, jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise LinkError(f"an example's reading {shown(example.reading, 80)} cannot be used: {error}") from None


def rendered(template: jinja2.Template, names: Mapping[str, Any]) -> str:
    """A prompt. Raises what a template can run into, and a LinkError where no UTF-8 can hold what it makes."""
    text = template.render(names)
    if half := half_character(text):
        raise LinkError(f"the prompt has half a character, {half!r} in it.")
    return text


def _literal_head(prompt: str) -> str:
    """What a template begins with before its first value; nothing where that depends on something."""
    end = min((place for sign in ("{{", "{%", "{#") if (place := prompt.find(sign)) >= 0), default=len(prompt))
    return prompt[:end]


class Nothing(jinja2.Undefined):
    """Any value, and any field of it, that says nothing."""

    def __str__(self) -> str:
        return NOTHING

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, key: Any) -> Any:
        return self

    def __round__(self, digits: int = 0) -> Any:
        return self


def _says_nothing(prompt: str, head: str) -> str:
    """The prompt of a reading that says nothing."""
    from jinja2.sandbox import SandboxedEnvironment

    try:
        return SandboxedEnvironment(undefined=Nothing).from_string(prompt).render()
    except Exception:  # a filter or a sum that nothing does not go through
        return head + NOTHING


def is_decided(link: Link, decided: Mapping[str, Any]) -> bool:
    """Whether a link's expressions give all of the answer: then no model is asked."""
    return bool(decided) and set(decided) >= set((link.answer or {}).get("properties", {}))


def answer_fields(
    link: Link, text: str, confidence: Mapping[str, float], strange: str, unsure_below: float | None = None
) -> tuple[dict[str, Any], bool]:
    """What a link's message says of an answer, and whether it is held back because the model is not sure of it.

    Args:
        text: the answer as the model gave it; `null` where it has none.
        strange: why the reading is unlike those that the model was trained for; empty where it is not.
        unsure_below: the least confidence where the link itself does not care; None: it does not matter then.
    """
    if link.answer is None:
        return {"text": text}, False
    found = json.loads(text)
    if isinstance(found, Mapping):  # in the order of the schema, whatever was decided first
        names = [name for name in link.answer.get("properties", {}) if name in found]
        found = {name: found[name] for name in [*names, *(name for name in found if name not in names)]}
    policy = link.unsure or (Unsure(unsure_below) if unsure_below is not None else None)
    unsure = _unsure_reason(policy, confidence, strange)
    held_back = bool(unsure) and link.unsure is not None and link.unsure.do == "skip"
    fields: dict[str, Any] = {"answer": None if held_back else found}
    fields |= {"confidence": dict(confidence)} if confidence else {}
    fields |= {"unsure": True} if unsure else {}
    fields |= {"unfamiliar": True} if strange else {}
    fields |= {"reason": unsure or strange} if unsure or strange else {}
    return fields, held_back


def _unsure_reason(policy: Unsure | None, confidence: Mapping[str, float], strange: str) -> str:
    """Why an answer is unsure; empty where it is not, or where the link does not care."""
    if policy is None or strange:
        return strange if policy is not None else ""
    name = min(confidence, key=lambda field: confidence[field], default=None)
    if name is None or confidence[name] >= policy.below:
        return ""
    return f"the confidence in {name} is {confidence[name]:.2f}, below {policy.below:g}"
