"""Withholds and replaces what must not leave a device, nor be kept.

A field is found by its name at any depth of a reading, in its earlier readings too. What a withheld text was is looked
for in the rest as well: a prompt that repeats it would give it away. A prompt from which a field cannot be taken,
because it is no JSON object and no link has made it, is not passed on at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from device_runtime.errors import CannotRedactError
from device_runtime.fleet.policies.escalation import Redaction

__all__ = ["Redactor"]

WITHHELD = "[withheld]"  # in place of a text that a withheld field had, where it comes again
_SHORTEST = 3  # characters; a shorter value is left where it comes again, or "1" would be taken out of every number


class Redactor:
    """The rules of one link or device."""

    def __init__(self, rules: Sequence[Redaction]) -> None:
        self._fields = {rule.field: rule.replace for rule in rules if rule.field is not None}
        self._patterns = [(re.compile(rule.pattern), rule.replace or "") for rule in rules if rule.pattern is not None]

    def joined(self, other: Redactor | None) -> Redactor:
        """The rules of both; where both name a field, this one says what takes its place."""
        if not other:
            return self
        found = Redactor(())
        found._fields = other._fields | self._fields
        found._patterns = [*self._patterns, *(rule for rule in other._patterns if rule not in self._patterns)]
        return found

    def __bool__(self) -> bool:
        return bool(self._fields or self._patterns)

    @property
    def names(self) -> frozenset[str]:
        """The fields that are withheld or replaced."""
        return frozenset(self._fields)

    def instead_of(self, name: str) -> str | None:
        """What takes the place of a field's values; None: it is not withheld."""
        return (self._fields[name] or WITHHELD) if name in self._fields else None

    def value(self, value: Any, secrets: Mapping[str, str] | None = None) -> Any:
        """A JSON value without what is withheld, and without other `secrets`."""
        return self.cleaned(self._without(value), {**(secrets or {}), **self.secrets(value)})

    def secrets(self, value: Any) -> dict[str, str]:
        """The texts of fields that are withheld or replaced, each with what takes its place where it comes again."""
        found: dict[str, str] = {}
        for name, secret in _named(value, self._fields):
            replacement = self._fields[name]
            for text in _texts(secret):
                if len(text) >= _SHORTEST:
                    found[text] = WITHHELD if replacement is None else replacement
        return found

    def text(self, text: str, secrets: Mapping[str, str]) -> str:
        """A text without `secrets`, and without what matches a pattern."""
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, secrets[secret])
        for pattern, replacement in self._patterns:
            text = pattern.sub(lambda _, r=replacement: r, text)  # type: ignore[misc]
        return text

    def names_of(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """What a link's template knows (its reading, `window`, `topic`, what is decided), without what is withheld."""
        topic, rest = names.get("topic"), {name: value for name, value in names.items() if name != "topic"}
        found: dict[str, Any] = self.value(rest)
        if topic is not None:
            replacement = self._fields.get("topic")
            hidden = [WITHHELD if replacement is None else replacement] * len(topic)
            secrets = self.secrets(rest)
            found["topic"] = hidden if "topic" in self._fields else [self.text(level, secrets) for level in topic]
        return found

    def messages(
        self, messages: Sequence[Mapping[str, str]], secrets: Mapping[str, str] | None = None
    ) -> list[dict[str, str]]:
        """A conversation that somebody has written, of JSON objects or of texts: what one message withholds is taken
        out of the others too.

        Args:
            secrets: of the question; None: look for them in the messages.

        Raises:
            CannotRedactError: fields are to be withheld, and a message is no JSON object.
        """
        secrets = self.secrets_of(messages) if secrets is None else secrets
        return [{**message, "content": self._message(message["content"], secrets)} for message in messages]

    def secrets_of(self, messages: Sequence[Mapping[str, str]]) -> dict[str, str]:
        """See `secrets`, of a conversation."""
        return self.secrets([_parsed(message["content"]) for message in messages])

    def answer(self, text: str, secrets: Mapping[str, str]) -> str:
        """An answer, as JSON or as a text: without fields of these names, and without `secrets`."""
        value = _parsed(text)
        if not isinstance(value, Mapping | list):
            return self.text(text, secrets)
        found = self.cleaned(self._without(value), secrets)
        return text if found == value else json.dumps(found, ensure_ascii=False)

    def remark(self, text: str, secrets: Mapping[str, str]) -> str:
        """A sentence about a reading, such as why it is unfamiliar: it may say a value beside the field's name, however
        short that is."""
        return WITHHELD if any(name in text for name in self._fields) else self.text(text, secrets)

    def _message(self, content: str, secrets: Mapping[str, str]) -> str:
        value = _parsed(content)
        if isinstance(value, Mapping | list):
            return json.dumps(self.cleaned(self._without(value), secrets), ensure_ascii=False)
        if self._fields:
            names = ", ".join(sorted(self._fields))
            raise CannotRedactError(f"the prompt is no JSON object, so {names} cannot be found in it and withheld")
        return self.text(content, {})

    def _without(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            kept = {}
            for name, inner in value.items():
                if name not in self._fields:
                    kept[name] = self._without(inner)
                elif self._fields[name] is not None:
                    kept[name] = self._fields[name]
            return kept
        if isinstance(value, list | tuple):
            return [self._without(inner) for inner in value]
        return value

    def cleaned(self, value: Any, secrets: Mapping[str, str]) -> Any:
        """A JSON value with its fields, but without `secrets` and without what matches a pattern."""
        if isinstance(value, str):
            return self.text(value, secrets)
        if isinstance(value, Mapping):
            return {self.text(str(name), secrets): self.cleaned(inner, secrets) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.cleaned(inner, secrets) for inner in value]
        if isinstance(value, int | float) and not isinstance(value, bool):  # a telephone number is one, too
            written = json.dumps(value)
            return value if (left := self.text(written, {})) == written else left
        return value


def _parsed(content: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _named(value: Any, names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name in names:
                yield name, inner
            else:
                yield from _named(inner, names)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _named(inner, names)


def _texts(value: Any) -> Iterator[str]:
    """The texts and numbers in a value, as they would be written."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
    elif value is not None and not isinstance(value, bool):
        yield str(value)
