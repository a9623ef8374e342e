"""Sentence encoders: texts in, vectors or labels out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import Manifest
from device_runtime.engine.chat import Message
from device_runtime.engine.encoder.answers import check_schema
from device_runtime.engine.encoder.sentences import Sentences, open_sentences
from device_runtime.engine.encoder.vocabulary import Vocabulary
from device_runtime.engine.generation import Completion
from device_runtime.engine.sampler import Sampling
from device_runtime.engine.typed.choice import shares_of, value_name
from device_runtime.errors import ConfigurationError
from device_runtime.update.active import open_bundle

if TYPE_CHECKING:
    from device_runtime.bundle.trust import TrustStore
    from device_runtime.engine.typed.choice import Choice
    from device_runtime.tasks.classify import Heads
    from device_runtime.tasks.inputs import Prompt
    from device_runtime.tasks.purpose import Purpose

__all__ = ["Classification", "Decided", "EncoderModel", "ReadText", "asked_text"]

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Classification:
    """What a classifier says of a text."""

    answer: Mapping[str, Any]  # by field: {"label": "POSITIVE"}
    probabilities: Mapping[str, Mapping[str, float]]  # of every value, by field; of each they sum to 1
    tokens: int  # of the text, its frame included
    cut: bool  # whether its end was left out
    unfamiliar: tuple[str, ...] = ()  # why the text is unlike those that the bundle was tuned on

    @property
    def confidence(self) -> dict[str, float]:
        """The probability of what was chosen, by field."""
        return {name: self.probabilities[name][value_name(value)] for name, value in self.answer.items()}


@dataclass(frozen=True)
class Decided:
    """What the heads say of a text, before it is calibrated."""

    answer: Mapping[str, Any]  # by field
    choices: Mapping[str, Sequence[Choice]]  # one of each field
    tokens: int  # of the text, its frame included
    cut: bool  # whether its end was left out


class ReadText:
    """What `EncoderModel.generate` returns: one step, whose result is a vector or an answer."""

    result: Completion

    def __init__(self, read: Any) -> None:
        self._steps: Iterator[str] = self._run(read)
        self._cancelled = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._steps)

    def cancel(self) -> None:
        """Have it not start; a run of the graph that is under way is not ended."""
        self._cancelled = True

    def _run(self, read: Any) -> Iterator[str]:
        started_s = time.perf_counter()
        if self._cancelled:
            self.result = Completion("", "cancelled", 0, 0, 0, 0.0, 0.0)
            return
        text, tokens, extra = read()
        spent_ms = (time.perf_counter() - started_s) * 1e3
        self.result = Completion(text, "stop", tokens, 0, 0, spent_ms, 0.0, **extra)
        if text:
            yield text


class EncoderModel:
    """A bundle of the task embed or classify, opened. Not thread-safe."""

    def __init__(self, bundle: Bundle, graph: Sentences, vocabulary: Vocabulary) -> None:
        self.manifest: Manifest = bundle.manifest
        self._graph, self._vocabulary = graph, vocabulary
        assert self.manifest.encoder is not None  # of every bundle of these tasks
        self._info = self.manifest.encoder
        self.position = 0  # how many texts were read; may be read from any thread
        self._heads: Heads | None = None
        self._purpose: Purpose | None = None
        if self.manifest.purpose is not None:  # reading one needs YAML, which takes its time at start-up
            from device_runtime.tasks.classify import Heads
            from device_runtime.tasks.purpose import Purpose

            self._purpose = Purpose.of_manifest(self.manifest)
            assert self._purpose is not None
            self._heads = Heads.in_order(self._purpose.fields, self._info.values)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        backend: str | None = None,
        threads: int | None = None,
        verify: bool = False,
        trust: TrustStore | None = None,
    ) -> EncoderModel:
        """Open a bundle folder, or the active bundle of a slot folder.

        Args:
            backend: `litert`, or `tflm` for what a microcontroller computes with a bundle of the profile micro; None
                takes LiteRT, which runs both profiles.
            threads: CPU threads; None takes one per core, at most 4.
            verify: check every file's hash even if it has not changed since the last check.
            trust: whose signature the bundle must have; None asks for none.

        Raises:
            ConfigurationError: there is no bundle at `path`, or one of another task.
            SignatureError: nobody who is trusted has signed it.
            BundleError: the bundle is damaged.
            BackendError: LiteRT cannot run it.
        """
        return cls.of(open_bundle(path, verify=verify, trust=trust), backend=backend, threads=threads)

    @classmethod
    def of(cls, bundle: Bundle, *, backend: str | None = None, threads: int | None = None) -> EncoderModel:
        """See `open`."""
        bundle.manifest.require_task("embed", "classify")
        vocabulary = Vocabulary(bundle)  # first: reading it takes and frees memory that the graph can then have
        return cls(bundle, open_sentences(bundle, backend, threads), vocabulary)

    def embed(self, texts: str | Sequence[str], *, prompt_name: str | None = None, truncate: bool = False) -> Vectors:
        """The vectors of texts, (texts, width), float32; of length 1 where the model's authors normalize them.

        Args:
            prompt_name: what the texts are for, such as "query", where the bundle has prompts.
            truncate: leave out what is too long; else it is an error.

        Raises:
            ConfigurationError: the bundle is a classifier, a text is empty, or there is no such prompt.
            ContextOverflowError: a text is too long.
        """
        self.manifest.require_task("embed")
        texts = [texts] if isinstance(texts, str) else texts
        found = [self._run(text, prompt_name, truncate)[0] for text in texts]
        return np.stack(found) if found else np.zeros((0, self._info.values), np.float32)

    def nearest(
        self, texts: Sequence[str], labels: Sequence[str], *, prompt_name: str | None = None, truncate: bool = False
    ) -> list[tuple[str, float]]:
        """For each text the label whose vector is nearest, and the cosine of the two: labels that nobody trained.

        Args:
            labels: words or sentences, such as "the pump is too hot".
        """
        if not labels:
            raise ConfigurationError("There are no labels to choose from; give at least one.")
        found = _unit(self.embed(texts, prompt_name=prompt_name, truncate=truncate)) @ _unit(self.embed(labels)).T
        return [(labels[int(np.argmax(row))], float(row.max())) for row in found]

    def classify(self, text: str, *, truncate: bool = False) -> Classification:
        """The label of a text, with the probability of every label.

        Raises:
            ConfigurationError: the bundle is no classifier, or the text is empty.
            ContextOverflowError: the text is too long.
        """
        self.manifest.require_task("classify")
        return self._classified(self.asked(text), truncate)

    def asked(self, text: str) -> Prompt:
        """What the network reads of a text: what its task says where it was tuned for one, else the text as it is."""
        from device_runtime.tasks.inputs import Prompt

        return self._purpose.inputs.prompt({"text": text}) if self._purpose and self._is_tuned else Prompt(text)

    @property
    def _is_tuned(self) -> bool:
        """For a task, whose prompts it reads."""
        return self._purpose is not None and self._purpose.kind == "tune"

    def decide(self, prompt: Prompt, *, truncate: bool = False) -> Decided:
        """What the heads say of it; see `classify`."""
        assert self._heads is not None  # the manifest of such a bundle has a purpose
        text = prompt.text.strip() if self._is_tuned else prompt.text
        logits, tokens, cut = self._run(text, None, truncate)
        return Decided(*self._heads.decide(logits), tokens, cut)

    def inner_tokens(self, tokens: int) -> int:
        """Without the frame."""
        return tokens - len(self._info.start_ids) - len(self._info.end_ids)

    def _classified(self, prompt: Prompt, truncate: bool) -> Classification:
        assert self._heads is not None and self._purpose is not None
        found = self.decide(prompt, truncate=truncate)
        probabilities = shares_of(found.choices, self._heads.fields, self._purpose.temperatures)
        strange = self._purpose.unknown_words(prompt.text, self.inner_tokens(found.tokens))
        return Classification(found.answer, probabilities, found.tokens, found.cut, prompt.unfamiliar + strange)

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        max_new: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        schema: Mapping[str, Any] | None = None,
        head: str | None = None,
        nothing: str | None = None,
        prompt_name: str | None = None,
        truncate: bool = False,
    ) -> ReadText:
        """What a device answers a request with: the last user's message is the text.

        Of a classifier the answer is JSON, `{"label": "POSITIVE"}`; of an encoder it is the result's `embedding`.

        Args:
            max_new, sampling, head, nothing: of no effect: nothing is written.
            stop: of no effect either, and refused of a bundle that was tuned for a task, as of the others for a task.
            schema: what every answer has to fit.

        Raises:
            SchemaError: not every answer fits the schema.
            ConfigurationError: an option is for another task.
        """
        if stop and self._is_tuned:
            raise ConfigurationError("a bundle of a task answers with data, which stop cannot end; leave it out.")
        text = asked_text(prompt)
        if schema is not None:
            self.check_schema(schema)
        if self.manifest.task == "embed":

            def vector() -> tuple[str, int, dict[str, Any]]:
                values, tokens, _ = self._run(text, prompt_name, truncate)
                return "", tokens, {"embedding": tuple(float(value) for value in values)}

            return ReadText(vector)
        if prompt_name is not None:
            raise ConfigurationError("prompt_name belongs to bundles of the task embed; leave it out.")

        def labels() -> tuple[str, int, dict[str, Any]]:
            asked = self.asked(text)
            if not asked.readable:  # a task's own way to say that there is nothing to answer
                return "null", 0, {"confidence": {}, "unfamiliar": asked.unfamiliar}
            found = self._classified(asked, truncate)
            given = {} if schema is None else self._given(schema)
            more = {
                "probabilities": {name: shares for name, shares in found.probabilities.items() if name not in given},
                "confidence": {name: share for name, share in found.confidence.items() if name not in given},
            }
            answer = json.dumps({**found.answer, **given}, ensure_ascii=False)
            return answer, found.tokens, {**more, "unfamiliar": found.unfamiliar}

        return ReadText(labels)

    def _given(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of an answer that a schema gives as constants."""
        from device_runtime.tasks.fixed_answers import constants

        return constants({} if self._purpose is None else self._purpose.fields, schema)

    def check_schema(self, schema: Mapping[str, Any], max_new: int | None = None) -> None:
        """Raise a `SchemaError` unless all answers have the fields that `schema` wants, with values that it allows."""
        check_schema(self.manifest, schema)

    def measure(self, tokens: int) -> Completion:
        """Read a text of so many tokens, whatever they say: for measuring speed."""
        started_s = time.perf_counter()
        self.read([1] * max(1, min(tokens, self.manifest.context)))
        return Completion("", "length", tokens, 0, 0, (time.perf_counter() - started_s) * 1e3, 0.0)

    def close(self) -> None:
        """Give back memory."""
        self._graph.close()

    def __enter__(self) -> EncoderModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, text: str, prompt_name: str | None, truncate: bool) -> tuple[Vectors, int, bool]:
        """The graph's result for a text, (values,); the text's tokens, and whether it was cut."""
        encoded = self._vocabulary.encode(text, prompt=prompt_name, truncate=truncate)
        return self.read(encoded.tokens), len(encoded.tokens), encoded.cut

    def read(self, tokens: Sequence[int]) -> Vectors:
        """The graph's result for the tokens of a text, its frame included: (values,)."""
        values = self._graph.read(tokens)
        self.position += 1
        return values


def asked_text(prompt: str | Sequence[Message]) -> str:
    """The text of a request: a plain one, or the last message of a user."""
    if isinstance(prompt, str):
        return prompt
    return next((str(m.get("content")) for m in reversed(prompt) if m.get("role") == "user"), "")


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
