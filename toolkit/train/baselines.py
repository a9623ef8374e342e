"""What a bundle must be better than: the commonest answer, a decision tree, and an untrained general model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.tree import DecisionTreeClassifier

from device_runtime.bundle.folder import Bundle
from device_runtime.errors import ConfigurationError
from device_runtime.records.printable import counted
from device_runtime.tasks.answering import Answerer
from device_runtime.tasks.examples import Example
from device_runtime.tasks.file import Task
from device_runtime.tasks.purpose import Purpose
from device_runtime.update.active import open_bundle

__all__ = ["MOST", "MOST_ASKED", "SHOWN", "baselines", "general_baseline", "open_general"]

MOST = 60_000  # cases that the tree is fitted on
MOST_ASKED = 200  # cases that a general model is asked: one takes it half a second and more
SHOWN = 8  # examples that it is shown
_DEPTH = 12
_WORDS = 300


def baselines(task: Task, train: Sequence[Example], test: Sequence[Example]) -> dict[str, dict[str, float]]:
    """Accuracy by field of `commonest answer` and `decision tree`.

    The tree sees the same numbers as the model, the features among them; of a text it sees which of the commonest
    words are in it.
    """
    names = [name for name, values in task.fields.items() if values]
    fitted, asked = _columns(task, train, test)
    common: dict[str, float] = {}
    tree: dict[str, float] = {}
    for name in names:
        labels = [str((e.answer or {}).get(name)) for e in train]
        right = [str((e.answer or {}).get(name)) for e in test]
        usual = Counter(labels).most_common(1)[0][0]
        common[name] = round(float(np.mean([usual == r for r in right])), 4)
        found = DecisionTreeClassifier(max_depth=_DEPTH, random_state=0).fit(fitted, labels).predict(asked)
        tree[name] = round(float(np.mean([f == r for f, r in zip(found, right, strict=True)])), 4)
    return {"commonest answer": common, "decision tree": tree}


def open_general(path: Path) -> Bundle:
    """The bundle of an untrained general model.

    Raises:
        ConfigurationError: it was trained for a task, or does not write text.
        BundleError: there is none at `path`, or it cannot be read.
    """
    bundle = open_bundle(path)
    bundle.manifest.require_task("generate")
    if bundle.manifest.purpose is not None:
        raise ConfigurationError(
            f"{path} was trained for a task; --baseline wants a general model as it came, such as a conversion of "
            "SmolLM2-135M-Instruct."
        )
    return bundle


def general_baseline(
    task: Task, path: Path, shown: Sequence[Example], test: Sequence[Example], progress: Callable[[float], None]
) -> dict[str, dict[str, float]]:
    """Accuracy by field of a general model that was trained for nothing, asked in the best way that there is.

    It gets the task's sentence and examples as turns of a conversation; labels are scored, and calibrated against an
    input that says nothing.

    Raises:
        ConfigurationError, BundleError: see `open_general`.
    """
    bundle = open_general(path)
    answerer = Answerer(bundle, Purpose.of_task(task), shown=shown)
    answers = []
    for number, example in enumerate(test):
        answers.append((answerer.answer(example.input).answer or {}, example.answer or {}))
        progress((number + 1) / len(test))
    answerer.close()
    typed = [name for name, values in task.fields.items() if values]
    right = {name: [said.get(name) == true.get(name) for said, true in answers] for name in typed}
    label = f"{bundle.manifest.name}, untrained, {counted(len(shown), 'example')} shown ({len(test)} asked)"
    return {label: {name: round(float(np.mean(found)), 4) for name, found in right.items()}}


def _columns(
    task: Task, train: Sequence[Example], test: Sequence[Example]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if task.inputs.text is not None:
        words = CountVectorizer(binary=True, max_features=_WORDS)
        texts = [[task.inputs.prompt(e.input).text for e in part] for part in (train, test)]
        return words.fit_transform(texts[0]).toarray(), words.transform(texts[1]).toarray()
    first, second = ([_row(task, task.inputs.names(e.input)) for e in part] for part in (train, test))
    return np.array(first, float), np.array(second, float)


def _row(task: Task, names: Mapping[str, Any]) -> list[float]:
    row: list[float] = []
    for name, field in (task.inputs.fields or {}).items():
        row += [float(names[name] == word) for word in field.one_of] if field.one_of else [_number(names[name])]
    return [*row, *(_number(names[name]) for name in task.inputs.features or {})]


def _number(value: Any) -> float:
    return -1e9 if value is None else float(np.clip(value, -1e9, 1e9))
