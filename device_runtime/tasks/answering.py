"""A typed answer, with how sure each of its fields is.

A bundle that was trained for the task writes the answer under its schema; at each token where the schema leaves a
choice, the probability of what it chose among what it could choose is kept. A field's confidence is their product over
the field's value, softened by the temperature that was fitted on examples that training had not seen. A general model
is shown examples, and its labels are scored, as in a link; so are those of a checkpoint that was tuned for the task,
which needs no examples and is calibrated against nothing. A sentence encoder has a head for each field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends import Logits, open_backend
from device_runtime.engine.encoder.encoder_model import EncoderModel
from device_runtime.engine.language_model import NOTHING, LanguageModel
from device_runtime.engine.prompts import PromptEncoder, tokenizer_of
from device_runtime.engine.sampler import Sampler, Sampling
from device_runtime.engine.structured import Constraint, SchemaCompiler
from device_runtime.engine.typed.choice import Choice, by_field, confidence_of, shares_of
from device_runtime.engine.typed.form import free_texts
from device_runtime.engine.typed.generation import TypedGeneration
from device_runtime.errors import ContextOverflowError, IncompleteError, SchemaError
from device_runtime.tasks.classify import Heads
from device_runtime.tasks.examples import Example
from device_runtime.tasks.inputs import Prompt
from device_runtime.tasks.purpose import Purpose
from device_runtime.update.active import open_bundle

__all__ = ["Answerer", "Choice", "TypedAnswer", "confidence_of"]

_LONGEST = 200  # tokens of an answer


@dataclass(frozen=True)
class TypedAnswer:
    """What a model says of one input."""

    answer: (
        Mapping[str, Any] | None
    )  # None where the input lacks what the task needs or is too long, or none was written
    confidence: Mapping[str, float]  # by field; texts have none
    unfamiliar: tuple[str, ...]  # why the input is not like those of the training
    text: str = ""  # as the model wrote it
    choices: Mapping[str, Sequence[Choice]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """`answer`, `confidence`, and whether the input is `unfamiliar`; a task may have fields of such names."""
        reason = {"reason": "; ".join(self.unfamiliar)} if self.unfamiliar else {}
        answer = None if self.answer is None else dict(self.answer)
        confidence = {name: round(value, 4) for name, value in self.confidence.items()}
        return {"answer": answer, "confidence": confidence, "unfamiliar": bool(self.unfamiliar), **reason}


class Answerer:
    """A bundle that answers a task. Not thread-safe."""

    def __init__(
        self,
        bundle: Bundle,
        purpose: Purpose,
        *,
        shown: Sequence[Example] = (),
        backend: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Open the bundle's graph.

        Args:
            shown: for a bundle that was trained for no task: inputs with their answers, as turns of a conversation.
        """
        self.purpose, self._shown = purpose, shown
        manifest = bundle.manifest
        manifest.require_task("generate", "classify")
        self._encoder: EncoderModel | None = None
        if manifest.task == "classify":  # which has nothing of what follows
            self._encoder = EncoderModel.of(bundle, backend=backend, threads=threads)
            return
        self._tokenizer = tokenizer_of(bundle)
        self._prompts = PromptEncoder(manifest, self._tokenizer)
        self._schemas = SchemaCompiler(bundle)
        self._backend = open_backend(bundle, backend, threads)
        self._prefix = len(manifest.prefix_tokens)
        talks = purpose.kind in ("none", "tune")
        self._model = LanguageModel(bundle, self._backend, self._tokenizer) if talks else None
        self._heads = Heads.in_vocabulary(purpose.fields, self._tokenizer) if purpose.kind == "classify" else None

    @classmethod
    def open(
        cls, path: Path | str, purpose: Purpose | None = None, *, backend: str | None = None, threads: int | None = None
    ) -> Answerer:
        """Open a bundle folder.

        Args:
            purpose: what is asked of it; None takes the bundle's own.

        Raises:
            SchemaError: the bundle was trained for no task, and none is given.
        """
        bundle = open_bundle(path)
        own = Purpose.of_manifest(bundle.manifest)
        if own is None and purpose is None:
            raise SchemaError(f"{bundle.path} was trained for no task; name the task with --task TASK.yaml.")
        return cls(bundle, purpose or own, backend=backend, threads=threads)  # type: ignore[arg-type]

    def answer(self, given: Mapping[str, Any]) -> TypedAnswer:
        """Answer one input. One that is longer than a trained bundle's context is not answered.

        Raises:
            ContextOverflowError: a general model has no room for its examples and the input.
        """
        prompt = self.purpose.inputs.prompt(given)
        if not prompt.readable:
            return TypedAnswer(None, {}, prompt.unfamiliar)
        try:
            if self._encoder is not None:
                return self._labelled(self._encoder, self._encoder.asked(given["text"]))
            return self._answer(prompt)
        except ContextOverflowError as error:
            if self.purpose.kind == "none":
                raise
            why = f"it has {error.tokens} tokens; the model has room for {error.context}"
            return TypedAnswer(None, {}, (*prompt.unfamiliar, why))

    def _answer(self, prompt: Prompt) -> TypedAnswer:
        strange = prompt.unfamiliar
        if self._model is not None:
            return self._converse(self._model, prompt.text, strange)
        tokens, room = self._prompts.plan(prompt.text, None)
        strange += self.purpose.unknown_words(prompt.text, len(tokens) - self._prefix)
        if self._heads is not None:
            answer, choices = self._heads.decide(self._prefill(tokens))
            return TypedAnswer(answer, self._confidence(choices), strange, json.dumps(answer), choices)
        text, held = self._decode(tokens, min(room, _LONGEST))
        try:
            answer = json.loads(text)
        except ValueError:
            return TypedAnswer(None, {}, strange, text)
        choices = by_field(answer, text, held.decisions, free_texts(self.purpose.answer))
        return TypedAnswer(answer, self._confidence(choices), strange, text, choices)

    def _labelled(self, model: EncoderModel, prompt: Prompt) -> TypedAnswer:
        found = model.decide(prompt)
        strange = prompt.unfamiliar + self.purpose.unknown_words(prompt.text, model.inner_tokens(found.tokens))
        text = json.dumps(found.answer, ensure_ascii=False)
        return TypedAnswer(found.answer, self._confidence(found.choices), strange, text, found.choices)

    def _converse(self, model: LanguageModel, asked: str, strange: tuple[str, ...]) -> TypedAnswer:
        if self.purpose.kind == "tune":
            strange += self.purpose.unknown_words(asked, len(self._tokenizer.encode_inside(asked)))
        turns, nothing = self.purpose.conversation(self._shown, asked), NOTHING if self.purpose.kind == "none" else None
        generation = model.converse(turns, self.purpose.answer, nothing=nothing)
        try:
            text = "".join(generation)
        except IncompleteError:
            return TypedAnswer(None, {}, strange, generation.result.text)
        if isinstance(generation, TypedGeneration):
            choices = generation.choices
            return TypedAnswer(json.loads(text), self._confidence(choices), strange, text, choices)
        return TypedAnswer(json.loads(text), generation.result.confidence or {}, strange, text)

    def shares(self, said: TypedAnswer, name: str) -> list[float] | None:
        """How likely each value of an enum field is, at the field's temperature, after what was said of the fields
        before; None where no single choice decided it."""
        spelled = (lambda text: []) if self._encoder is not None else self._tokenizer.encode_inside
        values, choices = self.purpose.fields[name] or [], {name: said.choices.get(name, ())}
        found = shares_of(choices, {name: values}, self.purpose.temperatures, spelled)
        return list(found[name].values()) if name in found else None

    def close(self) -> None:
        """Give back memory."""
        (self._encoder or self._backend).close()

    def _confidence(self, choices: Mapping[str, Sequence[Choice]]) -> dict[str, float]:
        temperatures = self.purpose.temperatures
        return {name: confidence_of(found, temperatures.get(name, 1.0)) for name, found in choices.items()}

    def _prefill(self, prompt: list[int]) -> Logits:
        """The logits after a prompt."""
        self._backend.rewind(self._prefix)
        rest, logits = prompt[self._prefix :], None
        for start in range(0, len(rest), self._backend.chunk):
            logits = self._backend.prefill(rest[start : start + self._backend.chunk])
        assert logits is not None  # `plan` refuses an empty prompt
        return logits

    def _decode(self, prompt: list[int], limit: int) -> tuple[str, Constraint]:
        """The answer's text, and what it was held by."""
        constraint = self._schemas.constraint(self.purpose.answer, limit)
        logits, choose = self._prefill(prompt), Sampler(Sampling()).choose
        tokens: list[int] = []
        while len(tokens) < limit:
            tokens.append(constraint.choose(logits, limit - len(tokens), choose))
            if constraint.complete or len(tokens) == limit or self._backend.position >= self._backend.context:
                break
            logits = self._backend.decode(tokens[-1])
        return self._tokenizer.decode(tokens), constraint
