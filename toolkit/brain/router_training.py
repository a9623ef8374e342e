"""Trains the classifier of a router from the examples of each task, against texts that are for none of them."""

from __future__ import annotations

import json
import pydoc_data.topics
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import converters
from device_runtime.brain.text_classifier import NONE, TextClassifier
from device_runtime.brain.text_features import BUCKETS, feature_ids, word_ids
from device_runtime.errors import ConfigurationError, MissingExtraError
from device_runtime.records.printable import counted
from device_runtime.records.text_file import lines_in, read_text
from toolkit.brain.other_texts import other_readings, other_texts

__all__ = ["TrainedRouter", "background_texts", "lines_of", "require_scikit_learn", "train_router"]

_HELD_BACK = 10  # one text of so many is not trained on, but counted
_OFTEN = 2  # texts in which a word has to be, so that it is known
_OTHERS = 1000  # texts of people
_READINGS = 500  # of sensors that no task knows
_TOPICS = 3000  # pieces of Python's own documentation
_STRENGTH = 30.0  # of the fit; the inverse of scikit-learn's regularization


@dataclass(frozen=True)
class TrainedRouter:
    """A classifier, and how it did on texts that it was not trained on."""

    classifier: TextClassifier
    right: int
    count: int


def background_texts() -> Iterator[str]:
    """Texts that are for no task: prose, documentation and questions, in pieces as long as a message, and readings."""
    topics = "\n\n".join(pydoc_data.topics.topics.values())
    pieces = [" ".join(piece.split()) for piece in re.split(r"(?<=[.!?])\s+|\n\n", topics)]
    yield from random.Random(0).sample([piece for piece in pieces if len(piece.split()) > 2], _TOPICS)
    yield from other_texts(_OTHERS)
    yield from other_readings(_READINGS)
    folder = Path(converters.__file__).parent / "texts" / "calibration"
    for name in ("prose.txt", "documentation.txt"):
        text = (folder / name).read_text(encoding="utf-8")
        yield from (line.strip() for line in text.splitlines() if len(line.split()) > 1)
        yield from (
            " ".join(found.split()) for found in re.split(r"(?<=[.!?])\s+|\n\n", text) if len(found.split()) > 1
        )
    for message in _messages(json.loads((folder / "chat.json").read_text(encoding="utf-8"))):
        yield from (found for found in re.split(r"(?<=[.!?])\s+", message) if found)


def require_scikit_learn() -> None:
    """Ask for what training needs, before there is anything to train on: making examples takes minutes.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import sklearn.linear_model  # noqa: F401  (with scipy, which it needs)
    except ImportError:
        raise MissingExtraError.of("Training a router", "scikit-learn", "train") from None


def train_router(texts: Mapping[str, Sequence[str]], others: Sequence[str], *, seed: int = 0) -> TrainedRouter:
    """Train on the texts of each model, and on `others`, which are for none.

    Raises:
        ConfigurationError: a model has too few texts.
        MissingExtraError: scikit-learn is not installed.
    """
    require_scikit_learn()
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    rows = [(NONE, text) for text in dict.fromkeys(others)]
    for name, own in texts.items():
        found = list(dict.fromkeys(own))
        if len(found) < 2 * _HELD_BACK:
            raise ConfigurationError(
                f"{name} has {counted(len(found), 'text')} to train a router on; it needs {2 * _HELD_BACK}."
            )
        rows += [(name, text) for text in found]
    random.Random(seed).shuffle(rows)
    held, kept = rows[::_HELD_BACK], [row for place, row in enumerate(rows) if place % _HELD_BACK]
    ids = [feature_ids(text) for _, text in kept]
    starts = np.cumsum([0, *map(len, ids)])
    data = np.concatenate([np.full(len(row), len(row) ** -0.5) for row in ids])
    features = csr_matrix((data, np.concatenate(ids), starts), shape=(len(kept), BUCKETS))
    fit = LogisticRegression(C=_STRENGTH, max_iter=300, class_weight="balanced").fit(
        features, [name for name, _ in kept]
    )
    weights, bias = fit.coef_, fit.intercept_
    if len(fit.classes_) == 2:  # scikit-learn gives one row for two classes
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    classes = tuple(str(name) for name in fit.classes_)
    known = np.zeros((len(classes), BUCKETS), bool)
    for number, name in enumerate(classes):
        counts = Counter(place for of, text in kept if of == name for place in set(word_ids(text)))
        known[number, [place for place, count in counts.items() if count >= _OFTEN]] = True
    classifier = TextClassifier(classes, weights.astype(np.float32), bias.astype(np.float32), known)
    right = sum(classifier.choose(text)[0] == name for name, text in held)
    return TrainedRouter(classifier, right, len(held))


def _messages(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _messages(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _messages(inner)


def lines_of(path: Path) -> list[str]:
    """The lines of a file of texts.

    Raises:
        ConfigurationError: it cannot be read.
    """
    return [line.strip() for line in lines_in(read_text(path)) if line.strip()]
