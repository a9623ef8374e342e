"""Translators: a text in, its translation out, greedy.

The encoder reads the text once; what the decoder needs of it stays in LiteRT's buffers, as its kv_cache does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import Manifest
from device_runtime.bundle.trust import TrustStore
from device_runtime.engine.chat import Message
from device_runtime.engine.encoder.answers import check_schema
from device_runtime.engine.encoder.encoder_model import asked_text
from device_runtime.engine.encoder.graph import SignatureGraph, read_floats, signature_for
from device_runtime.engine.encoder.vocabulary import Vocabulary
from device_runtime.engine.generation import Completion
from device_runtime.engine.sampler import Sampling
from device_runtime.engine.stop_strings import Finish
from device_runtime.errors import BackendError
from device_runtime.update.active import open_bundle

__all__ = ["Translation", "Translator"]


class Translation:
    """A translation that is under way: an iterator of pieces of text."""

    result: Completion  # set when the iteration has ended

    def __init__(self, translator: Translator, tokens: Sequence[int], max_new: int) -> None:
        self._cancelled = threading.Event()
        self._pieces = self._run(translator, tokens, max_new)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def cancel(self) -> None:
        """End after the token that is being computed. From any thread."""
        self._cancelled.set()

    def _run(self, translator: Translator, source: Sequence[int], max_new: int) -> Iterator[str]:
        started_s = time.perf_counter()
        first_s = last_s = started_s
        tokens: list[int] = []
        text, finish = "", "length"
        for token in translator.steps(source, max_new):
            last_s = time.perf_counter()
            first_s = last_s if not tokens else first_s
            if token is None:
                finish = "stop"
                break
            tokens.append(token)
            if self._cancelled.is_set():
                finish = "cancelled"
                break
            whole = translator.vocabulary.decode(tokens)
            if whole.startswith(text) and len(whole) > len(text) and not whole.endswith("\ufffd"):
                piece, text = whole[len(text) :], whole
                yield piece
        whole = translator.vocabulary.decode(tokens)
        if len(whole) > len(text) and whole.startswith(text):
            yield whole[len(text) :]
        count, spent_s = len(tokens), last_s - first_s
        rate = (count - 1) / spent_s if count > 1 and spent_s > 0 else 0.0
        ended: Finish = finish  # type: ignore[assignment]  # one of its words
        self.result = Completion(whole, ended, len(source), 0, count, (first_s - started_s) * 1e3, rate)


class Translator:
    """A bundle of the task translate, opened. Not thread-safe: one translation at a time."""

    def __init__(self, bundle: Bundle, graph: SignatureGraph, vocabulary: Vocabulary) -> None:
        self.manifest: Manifest = bundle.manifest
        self.vocabulary = vocabulary
        self._graph = graph
        assert self.manifest.encoder is not None and self.manifest.translator is not None  # of every such bundle
        self._info, self._writing = self.manifest.encoder, self.manifest.translator
        self._bound: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._proven: set[int] = set()  # windows whose decoder has run
        self.position = 0  # tokens that were computed; may be read from any thread

    @classmethod
    def open(
        cls, path: Path | str, *, threads: int | None = None, verify: bool = False, trust: TrustStore | None = None
    ) -> Translator:
        """Open a bundle folder, or the active bundle of a slot folder; see `EncoderModel.open`."""
        bundle = open_bundle(path, verify=verify, trust=trust)
        bundle.manifest.require_task("translate")
        vocabulary = Vocabulary(bundle)
        return cls(bundle, SignatureGraph(bundle, threads), vocabulary)

    def translate(self, text: str, *, to: str | None = None, max_new: int | None = None, truncate: bool = False) -> str:
        """The translation of a text.

        Args:
            to: the language, where the model writes several.
            max_new: tokens, at most.
            truncate: leave out what is too long; else it is an error.

        Raises:
            ConfigurationError: the text is empty, or the language is not known.
            ContextOverflowError: the text is too long.
        """
        answer = self.generate(text, max_new=max_new, to=to, truncate=truncate)
        for _ in answer:
            pass
        return answer.result.text

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
        to: str | None = None,
        truncate: bool = False,
    ) -> Translation:
        """Start a translation; of messages the last one of a user is the text.

        Args:
            sampling, stop, head, nothing: of no effect: the likeliest token is taken, always.
            schema: an error: a translation fits none.
        """
        if schema is not None:
            self.check_schema(schema)
        encoded = self.vocabulary.encode(asked_text(prompt), to=to, truncate=truncate)
        room = self.manifest.context - 1
        return Translation(self, encoded.tokens, min(max_new or room, room))

    def check_schema(self, schema: Mapping[str, Any], max_new: int | None = None) -> None:
        """Raise a `SchemaError`: a translation is text."""
        check_schema(self.manifest, schema)

    def steps(self, source: Sequence[int], max_new: int) -> Iterator[int | None]:
        """The tokens of a translation, then None if it ends by itself.

        Args:
            source: the tokens of the text, its frame included.
        """
        for logits in self.logits(source, max_new):
            logits[list(self._writing.banned_ids)] = -np.inf
            token = int(np.argmax(logits))
            if token in self._writing.end_ids:
                yield None
                return
            yield token
            self._next = token

    def logits(self, source: Sequence[int], max_new: int) -> Iterator[npt.NDArray[np.float32]]:
        """Logits after the start token, and after each token that `_next` is set to before the next step."""
        windows = self.manifest.graph.windows
        window = signature_for(len(source), windows)
        self._encode(source, window)
        self._next = self._writing.start_id
        for position in range(max_new):
            if position >= window:  # the cache of this window is full
                larger = signature_for(position + 1, windows)
                self._move(window, larger)
                window = larger
            _, outputs = self._bound[window]
            if window not in self._proven:  # LiteRT 2.3 reports some failed runs only on stderr
                outputs["logits"].write(np.full(self._info.values, np.nan, np.float32))
            values = {"tokens": [self._next], "position": [position], "length": [len(source)]}
            self._graph.run(f"decode_{window}", values)
            self.position += 1
            found = read_floats(outputs["logits"], self._info.values)
            if not np.isfinite(found).all():
                raise BackendError(f"LiteRT did not complete decode_{window}; its messages are on stderr.")
            self._proven.add(window)
            yield found

    def force(self, source: Sequence[int], target: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits after each token of a given translation's beginning, (tokens, vocabulary): for measuring quality.

        Args:
            target: its first token is the start token.
        """
        rows = []
        for position, found in enumerate(self.logits(source, len(target))):
            rows.append(found.copy())
            if position + 1 < len(target):
                self._next = target[position + 1]
        return np.stack(rows)

    def measure(self, tokens: int, max_new: int) -> Completion:
        """Read a text of so many tokens and write as many as `max_new`, whatever they say: for measuring speed."""
        source = [1] * max(1, min(tokens, self.manifest.context))
        started_s = time.perf_counter()
        first_s, count = started_s, 0
        for _ in self.logits(source, max(1, min(max_new, self.manifest.context))):
            count += 1
            first_s = time.perf_counter() if count == 1 else first_s
        spent_s = time.perf_counter() - first_s
        rate = (count - 1) / spent_s if count > 1 and spent_s > 0 else 0.0
        return Completion("", "length", len(source), 0, count, (first_s - started_s) * 1e3, rate)

    def close(self) -> None:
        """Give back memory."""
        self._bound.clear()
        self._graph.close()

    def __enter__(self) -> Translator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _bind(self, window: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The decoder's buffers of a window; the encoder writes its keys and values into them."""
        if window not in self._bound:
            inputs, outputs = self._graph.bind(f"decode_{window}")
            for name, buffer in inputs.items():
                if name not in ("tokens", "position", "length"):
                    buffer.write(np.zeros(self._rows(window), np.float32).reshape(-1))  # garbage could be NaN
            self._graph.bind(f"encode_{window}", {k: v for k, v in inputs.items() if k.startswith("cross_")})
            self._bound[window] = (inputs, outputs)
        return self._bound[window]

    def _encode(self, source: Sequence[int], window: int) -> None:
        self._bind(window)
        padded = [*source, *[self._info.pad_id] * (window - len(source))]
        self._graph.run(f"encode_{window}", {"tokens": padded, "length": [len(source)]})

    def _move(self, window: int, larger: int) -> None:
        """Copy keys and values of a full window into the next one's buffers."""
        before, _ = self._bind(window)
        after, _ = self._bind(larger)
        for name, buffer in before.items():
            if name in ("tokens", "position", "length"):
                continue
            rows = np.zeros(self._rows(larger), np.float32)
            rows[:, :window] = read_floats(buffer, int(np.prod(self._rows(window)))).reshape(self._rows(window))
            after[name].write(rows.reshape(-1))

    def _rows(self, window: int) -> tuple[int, int, int]:
        shape = self.manifest.graph
        return shape.kv_heads, window, shape.head_dim
