"""Finds the model that a question is for, among those of a device.

Declared rules come first. Then the question's form decides: a reading has the fields of one task, and a text goes to
the model for texts, or where there are several to the one that a small classifier takes it for. What is for none of
them goes to a model that was trained for no task, if there is one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from device_runtime.errors import LinkError
from device_runtime.fleet.expression import Expression
from device_runtime.fleet.policies.routing import Routing
from device_runtime.tasks.asked import reading_in, text_in

if TYPE_CHECKING:
    from device_runtime.brain.text_classifier import TextClassifier
    from device_runtime.tasks.purpose import Purpose

__all__ = ["FOR_NONE", "Chosen", "Router"]

log = logging.getLogger("stonechat.serve")

FOR_NONE = "no model of this device is for it"
_SECOND = 0.05  # the least probability of a class that is worth a second opinion
_DOUBTFUL = 0.2  # of one that is worth asking though the text is rather for none


@dataclass(frozen=True)
class Chosen:
    """Which model, and why."""

    model: str
    why: str
    stray: bool = False  # no model of the device is for it; `model` is the first, for want of a better one
    doubtful: bool = False  # it is rather for no model; an answer counts if the model is sure that something was asked
    second: Chosen | None = None  # which other model it may be for


class Router:
    """The router of one device. May be used from any thread."""

    def __init__(
        self,
        routing: Routing,
        models: Sequence[str],
        purpose_of: Callable[[str], Purpose | None],
        is_general: Callable[[str], bool],
    ) -> None:
        """Read the classifier, if there is one.

        Args:
            models: of the device, by name; the first is its default.
            purpose_of: what a model was trained for, once it is open.
            is_general: whether a model writes whatever it is asked for, once it is open.

        Raises:
            ConfigurationError: the classifier cannot be read.
        """
        self._rules = [(number, Expression(rule.when), rule.model) for number, rule in enumerate(routing.rules, 1)]
        self._models, self._purpose_of, self._is_general = list(models), purpose_of, is_general
        self._classifier: TextClassifier | None = None
        self._lock = threading.Lock()
        if routing.file is not None:
            from device_runtime.brain.text_classifier import TextClassifier, of_no_model

            self._classifier = TextClassifier.open(routing.file)
            if text := of_no_model(routing.file, self._classifier, models):
                log.warning("%s", text)

    @classmethod
    def of_bundles(cls, routing: Routing, bundles: Mapping[str, str]) -> Router:
        """For bundles on this machine, by the names of their models.

        Raises:
            ConfigurationError, BundleError: a bundle or the classifier is not here, or cannot be read.
        """
        from device_runtime.tasks.purpose import Purpose, is_general
        from device_runtime.update.active import open_bundle

        manifests = {name: open_bundle(bundle).manifest for name, bundle in bundles.items()}
        purposes = {name: Purpose.of_manifest(manifest) for name, manifest in manifests.items()}
        general = {name for name, manifest in manifests.items() if is_general(manifest)}
        return cls(routing, list(bundles), purposes.__getitem__, general.__contains__)

    def purpose_of(self, model: str) -> Purpose | None:
        """What a model of the device was trained for, once it is open; None where that is no task."""
        return self._purpose_of(model)

    def choose(self, asked: str, topic: Sequence[str] = ()) -> Chosen:
        """The model for what somebody asks.

        Args:
            asked: a text, or a JSON object.
            topic: the levels of the topic of a link's reading.
        """
        with self._lock:
            return self._choose(asked, topic)

    def _choose(self, asked: str, topic: Sequence[str]) -> Chosen:
        reading, text = reading_in(asked), text_in(asked)
        names: dict[str, Any] = {**(reading or {}), "reading": reading or {}, "text": text, "topic": list(topic)}
        for number, expression, model in self._rules:
            try:
                if expression.value(names):
                    return Chosen(model, f"rule {number}")
            except LinkError:  # it is about something else
                continue
        purposes = {name: self.purpose_of(name) for name in self._models}
        if reading is not None and (found := self._by_fields(reading, purposes)) is not None:
            return found
        if reading is not None and text == asked and not _holds_sentence(reading):  # fields that no task reads
            return self._for_none()
        return self._by_text(text, purposes)

    def _by_fields(self, reading: Mapping[str, Any], purposes: Mapping[str, Purpose | None]) -> Chosen | None:
        """The model that knows all its fields there; of several, the one that knows most."""
        known = {
            name: len(purpose.inputs.fields or {})
            for name, purpose in purposes.items()
            if purpose is not None and purpose.inputs.fields and purpose.inputs.prompt(reading).readable
        }
        most = [name for name, count in known.items() if count == max(known.values())]
        return Chosen(most[0], "its fields are those of the task") if len(most) == 1 else None

    def _by_text(self, text: str, purposes: Mapping[str, Purpose | None]) -> Chosen:
        takes = [name for name, purpose in purposes.items() if purpose is not None and purpose.inputs.text is not None]
        if self._classifier is None:
            if len(takes) == 1 and self._general is None:
                return Chosen(takes[0], "it is the model for texts")
            if takes and self._general is None:
                why = f"it is a text, and no router's file distinguishes {', '.join(takes)}"
                return Chosen(self._models[0], why, stray=True)
            return self._for_none()
        if not any(character.isalnum() for character in text):  # it has no words to be like anything
            return self._for_none()
        (name, share), *others = self._classifier.ranked(text)
        next_name, next_share = others[0] if others and others[0][0] in self._models else ("", 0.0)
        if name in self._models:
            second = Chosen(next_name, f"the router's second, {next_share:.2f}") if next_share >= _SECOND else None
            return Chosen(name, f"the router's classifier, {share:.2f}", second=second)
        for_none = self._for_none()
        if for_none.stray and next_share >= _DOUBTFUL:
            return Chosen(next_name, f"the router's classifier, {next_share:.2f}", doubtful=True)
        return for_none

    @property
    def _general(self) -> str | None:
        return next(filter(self._is_general, self._models), None)

    def _for_none(self) -> Chosen:
        if (general := self._general) is not None:
            return Chosen(general, "it is for none of the trained tasks")
        return Chosen(self._models[0], FOR_NONE, stray=True)


def _holds_sentence(reading: Mapping[str, Any]) -> bool:
    """Whether a field is several words, as in a program's log of JSON objects: then it is judged as a text is."""
    return any(isinstance(value, str) and len(value.split()) > 1 for value in reading.values())
