"""The labels of a sequence classifier: rows of its head, and the answer that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.checkpoints.fields import Fields
from converters.encoders.family import Recipe
from converters.encoders.network import EncoderConfig
from converters.network.weights import FloatArray
from device_runtime.errors import ArchitectureError
from device_runtime.records.printable import counted

__all__ = ["answer_of", "head_recipe", "label_rows", "labels_of"]

_MOST_LABELS = 1000


def labels_of(fields: Fields) -> list[str]:
    """The labels in the order of the head's rows.

    Raises:
        ArchitectureError: there are none to choose from: a regression, or a reranker.
    """
    named = fields.section("id2label").values
    try:
        labels = [str(named[key]) for key in sorted(named, key=int)]
    except ValueError:
        labels = []
    labels = labels or [f"LABEL_{i}" for i in range(fields.integer("num_labels", 2))]
    if fields.text("problem_type", "") == "regression" or len(labels) < 2:
        raise ArchitectureError(
            f"{fields.where}: the head gives {len(labels)} number{'s' * (len(labels) != 1)}, as a regression or a "
            "reranker does; expected at least two labels in id2label. Such a head is not supported."
        )
    if len(set(labels)) != len(labels) or len(labels) > _MOST_LABELS:
        raise ArchitectureError(
            f"{fields.where}: id2label has {counted(len(labels), 'label')}, {len(set(labels))} of them different; "
            f"expected up to {_MOST_LABELS}, each once. Give them names of their own in config.json."
        )
    return labels


def _is_multi_label(fields: Fields) -> bool:
    return fields.text("problem_type", "") == "multi_label_classification"


def label_rows(fields: Fields) -> int:
    """Rows of the head: one for each value of each field of `answer_of`."""
    return len(labels_of(fields)) * (2 if _is_multi_label(fields) else 1)


def head_recipe(name: str, part: str, config: EncoderConfig, fields: Fields) -> Recipe:
    """The head. Of several labels at once each is a field, false or true: the logit of false is 0."""
    count = len(labels_of(fields))
    shape = (count, config.width) if part == "weight" else (count,)

    def doubled(rows: FloatArray) -> FloatArray:
        pairs = np.zeros((count, 2, *rows.shape[1:]), np.float32)
        pairs[:, 1] = rows
        return pairs.reshape(2 * count, *rows.shape[1:])

    return Recipe((name,), doubled if _is_multi_label(fields) else None, (shape,))


def answer_of(fields: Fields) -> dict[str, Any]:
    """The JSON schema of an answer: `label`, one of them; or a field for each label where several may hold."""
    labels = labels_of(fields)
    if _is_multi_label(fields):
        properties: dict[str, Any] = {label: {"enum": [False, True]} for label in labels}
    else:
        properties = {"label": {"enum": labels}}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
