"""A linear classifier of texts on hashed features: which model a text is for, or none of them. About 0.1 ms a text."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.brain.text_features import BUCKETS, feature_ids, word_ids
from device_runtime.errors import ConfigurationError

__all__ = ["NONE", "TextClassifier", "of_no_model"]

NONE = ""  # the class of texts that are for no model
FORMAT = 1
_LEAST_KNOWN = 0.55  # share of words; three files of examples that no generator made have 0.6 and more


@dataclass(frozen=True)
class TextClassifier:
    """Weights of one router."""

    classes: tuple[str, ...]  # names of models, and NONE
    weights: npt.NDArray[np.float32]  # (classes, BUCKETS)
    bias: npt.NDArray[np.float32]  # (classes,)
    known: npt.NDArray[np.bool_]  # (classes, BUCKETS), the words of each class's training

    def probabilities(self, text: str) -> Mapping[str, float]:
        """Of each class."""
        ids = feature_ids(text)
        logits = self.bias.astype(np.float64)
        if ids:
            logits = logits + self.weights[:, ids].sum(axis=1) / len(ids) ** 0.5  # unit length
        shares = np.exp(logits - logits.max())
        return dict(zip(self.classes, (shares / shares.sum()).tolist(), strict=True))

    def choose(self, text: str) -> tuple[str, float]:
        """The class of a text, and its probability; see `ranked`."""
        return self.ranked(text)[0]

    def ranked(self, text: str) -> list[tuple[str, float]]:
        """The classes of a text, the likeliest first. A text is for no model that knows only few of its words."""
        found = self.probabilities(text)
        words = word_ids(text)
        ranked = sorted(found.items(), key=lambda entry: -entry[1])
        best, share = ranked[0]
        if best != NONE and words and self.known[self.classes.index(best), words].mean() < _LEAST_KNOWN:
            return [(NONE, 1 - share), ranked[0], *(entry for entry in ranked[1:] if entry[0] != NONE)]
        return ranked

    def to_json(self) -> str:
        """As a file: the weights as int8 with a scale for each class."""
        scales = np.maximum(np.abs(self.weights).max(axis=1, keepdims=True), 1e-9) / 127
        rounded = np.round(self.weights / scales).astype(np.int8)
        return json.dumps({
            "router": FORMAT, "classes": list(self.classes), "buckets": BUCKETS, "bias": [float(b) for b in self.bias],
            "scales": [float(s) for s in scales[:, 0]], "weights": base64.b64encode(rounded.tobytes()).decode(),
            "known": base64.b64encode(np.packbits(self.known, axis=1).tobytes()).decode(),
        })  # fmt: skip

    @classmethod
    def open(cls, path: Path | str) -> TextClassifier:
        """Read what `stonechat router train` has written.

        Raises:
            ConfigurationError: it is something else.
        """
        try:
            found = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise ConfigurationError(
                f"{path} cannot be read: {error.strerror}. Make it with `stonechat router train`."
            ) from None
        except (ValueError, RecursionError):
            raise ConfigurationError(f"{path} is no router: not JSON. Make it with `stonechat router train`.") from None
        try:
            return cls._read(found)
        except (LookupError, TypeError, ValueError, AttributeError):
            raise ConfigurationError(
                f"{path} is no router of format {FORMAT}, or a damaged one. Make it with `stonechat router train`."
            ) from None

    @classmethod
    def _read(cls, found: Any) -> TextClassifier:
        classes = tuple(str(name) for name in found["classes"])
        raw = np.frombuffer(base64.b64decode(found["weights"], validate=True), np.int8)
        weights = raw.reshape(len(classes), BUCKETS).astype(np.float32)
        scales, bias = (np.asarray(found[name], np.float32).reshape(len(classes)) for name in ("scales", "bias"))
        bits = np.frombuffer(base64.b64decode(found["known"], validate=True), np.uint8).reshape(len(classes), -1)
        known = np.unpackbits(bits, axis=1).astype(bool).reshape(len(classes), BUCKETS)
        if found["router"] != FORMAT or found["buckets"] != BUCKETS or not np.isfinite([*scales, *bias]).all():
            raise ValueError
        return cls(classes, weights * scales[:, None], bias, known)


def of_no_model(path: str, classifier: TextClassifier, models: Collection[str]) -> str:
    """What to say where a classifier finds texts for models that are not there; else empty."""
    if not (others := sorted(set(classifier.classes) - {NONE, *models})):
        return ""
    verb = "is" if len(others) == 1 else "are"
    return (
        f"{path} finds texts for {', '.join(others)}, and there {verb} no such model here: they are taken as "
        "texts for none. Train it again with `stonechat router train`, unless that is meant."
    )
