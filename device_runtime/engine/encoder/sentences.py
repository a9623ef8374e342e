"""What runs a sentence encoder's graph: LiteRT, or TFLite Micro's interpreter for checking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import Arena
from device_runtime.engine.backends.tflm import open_interpreter, taken_arena
from device_runtime.engine.encoder.graph import SignatureGraph, read_floats, signature_for
from device_runtime.errors import BackendError, ConfigurationError

__all__ = ["BACKENDS", "LitertSentences", "Sentences", "TflmSentences", "open_sentences"]

BACKENDS = ("litert", "tflm")
Vectors = npt.NDArray[np.float32]


class Sentences(Protocol):
    """One run for one text."""

    def read(self, tokens: Sequence[int]) -> Vectors:
        """The graph's result for the tokens of a text, its frame included: (values,)."""

    def close(self) -> None:
        """Give back memory."""


def open_sentences(bundle: Bundle, backend: str | None, threads: int | None) -> Sentences:
    """Open the graph of a bundle.

    Args:
        backend: one of BACKENDS; None takes LiteRT.
        threads: of LiteRT.

    Raises:
        ConfigurationError: there is no such backend, or it does not run this profile.
        BackendError: it refuses the graph.
    """
    if backend not in (None, *BACKENDS):
        raise ConfigurationError(f"There is no backend {backend!r} for encoders; there are {', '.join(BACKENDS)}.")
    if backend != "tflm":
        return LitertSentences(bundle, threads)
    if bundle.manifest.profile != "micro":
        raise ConfigurationError(
            f"{bundle.path} has the profile {bundle.manifest.profile}; TFLite Micro runs bundles of the profile micro."
        )
    return TflmSentences(bundle)


class LitertSentences:
    """In LiteRT, one signature for each padded length."""

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        self._windows = bundle.manifest.graph.windows
        assert bundle.manifest.encoder is not None
        self._info = bundle.manifest.encoder
        self._graph = SignatureGraph(bundle, threads)
        self._proven: set[str] = set()  # signatures that have run

    def read(self, tokens: Sequence[int]) -> Vectors:
        """As in `Sentences`."""
        length = signature_for(len(tokens), self._windows)
        signature = f"encode_{length}"
        _, outputs = self._graph.bind(signature)
        if signature not in self._proven:  # LiteRT 2.3 reports some failed runs only on stderr
            outputs["result"].write(np.full(self._info.values, np.nan, np.float32))
        padded = [*tokens, *[self._info.pad_id] * (length - len(tokens))]
        self._graph.run(signature, {"tokens": padded, "length": [len(tokens)]})
        values = read_floats(outputs["result"], self._info.values)
        if not np.isfinite(values).all():
            raise BackendError(f"LiteRT did not complete {signature}; its messages are on stderr.")
        self._proven.add(signature)
        return values

    def close(self) -> None:
        """As in `Sentences`."""
        self._graph.close()


class TflmSentences:
    """In TFLite Micro: what a microcontroller computes."""

    arena: Arena | None  # what the graph takes of it; None if it was not reported

    def __init__(self, bundle: Bundle) -> None:
        self._length = bundle.manifest.context
        assert bundle.manifest.encoder is not None
        self._info = bundle.manifest.encoder
        self._interpreter = open_interpreter(bundle)
        self.arena = taken_arena(self._interpreter)

    def read(self, tokens: Sequence[int]) -> Vectors:
        """As in `Sentences`."""
        padded = [*tokens, *[self._info.pad_id] * (self._length - len(tokens))]
        self._interpreter.set_input(np.array(padded, np.int32), 0)
        self._interpreter.set_input(np.array([len(tokens)], np.int32), 1)
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise BackendError(f"TFLite Micro failed at a text of {len(tokens)} tokens: {error}") from None
        values: Vectors = np.array(self._interpreter.get_output(0), np.float32).reshape(-1)
        return values

    def close(self) -> None:
        """As in `Sentences`."""
        self._interpreter = None
