"""What a bundle must be better than: the commonest answer, and a decision tree on the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.tree import DecisionTreeClassifier

from device_runtime.tasks.examples import Example
from device_runtime.tasks.file import Task

__all__ = ["MOST", "baselines"]

MOST = 60_000  # cases that the tree is fitted on
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
