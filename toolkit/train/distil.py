"""A teacher's distributions as soft targets (Hinton et al. 2015): of each enum field how likely each value is, not only
which one is right.

The teacher is a bundle: a general model, a checkpoint or an encoder that was tuned, or a network of the task's own. It
is asked about as many cases as the task file says; its labels are scored. Where it writes field by field, what it says
of a field holds for its own earlier values, and is used where those are right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sentencepiece import SentencePieceProcessor

from device_runtime.bundle.manifest import MODEL
from device_runtime.errors import ConfigurationError
from device_runtime.tasks.answering import Answerer
from device_runtime.tasks.examples import Example
from device_runtime.tasks.file import Task
from device_runtime.update.active import open_bundle
from toolkit.examples.teacher import answerer_of
from toolkit.train.cases import Cases

__all__ = ["Soft", "ask_teacher", "described_teacher", "softened"]

_SHOWN = 8  # examples that a general model sees

Shares = list[list[float] | None]  # of each enum field: of each value, or nothing


@dataclass(frozen=True)
class Soft:
    """Soft targets of the decisions about enum fields."""

    places: npt.NDArray[np.int32]  # (cases, fields): the position after which a field is decided
    heads: tuple[tuple[int, ...], ...]  # of each field, the tokens of its values
    targets: tuple[npt.NDArray[np.float32], ...]  # of each field (cases, values): the teacher's shares
    weights: npt.NDArray[np.float32]  # (cases, fields): what they count, 0 where there are none


def ask_teacher(
    task: Task, examples: Sequence[Example], path: Path, progress: Callable[[str, float], None]
) -> list[Shares]:
    """What the task's teacher says of the first examples; kept at `path`, line by line, and continued there.

    Raises:
        ConfigurationError: the teacher was trained for another task.
    """
    assert task.distil is not None
    wanted = examples[: task.distil.cases]
    known = _kept(path)[: len(wanted)]
    if len(known) == len(wanted):
        return known
    path.write_text("".join(json.dumps(shares) + "\n" for shares in known), encoding="utf-8")
    with closing(_teacher(task, examples[-_SHOWN:])) as answerer, path.open("a", encoding="utf-8") as stream:
        for number, example in enumerate(wanted[len(known) :], start=len(known)):
            known.append(_shares(answerer, task, example))
            stream.write(json.dumps(known[-1]) + "\n")
            stream.flush()
            progress("asking the teacher", (number + 1) / len(wanted))
    return known


def described_teacher(task: Task) -> Mapping[str, Any]:
    """What a distillation's result depends on, beside the task."""
    if task.distil is None:
        raise ConfigurationError(
            f"{task.name} names no teacher to learn from; write `distil: {{teacher: DIR}}` into its task file, "
            "where DIR is a bundle."
        )
    manifest = open_bundle(task.folder / task.distil.teacher).manifest
    return {**asdict(task.distil), "sha256": manifest.files[MODEL].sha256}


def _kept(path: Path) -> list[Shares]:
    """Whole lines of an earlier run; the last one may be cut."""
    found: list[Shares] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _teacher(task: Task, shown: Sequence[Example]) -> Answerer:
    assert task.distil is not None
    bundle = open_bundle(task.folder / task.distil.teacher)
    bundle.manifest.require_task("generate", "classify")
    return answerer_of(task, bundle, shown)


def _shares(answerer: Answerer, task: Task, example: Example) -> Shares:
    said, right = answerer.answer(example.input), example.answer or {}
    found: Shares = []
    follows = True  # whether all earlier values are the right ones
    for name, values in task.fields.items():
        if values:
            shares = answerer.shares(said, name) if follows else None
            found.append(None if shares is None else [round(share, 5) for share in shares])
        if not answerer.purpose.at_once:
            follows = follows and (said.answer or {}).get(name) == right.get(name)
    return found


def softened(
    task: Task, cases: Cases, examples: Sequence[Example], said: Sequence[Shares], tokenizer: SentencePieceProcessor
) -> tuple[Cases, Soft]:
    """Cases whose decisions count less by what the soft targets count, and those."""
    assert task.distil is not None
    fields: Mapping[str, Sequence[Any]] = {name: values for name, values in task.fields.items() if values}
    labels = np.array([[v.index((e.answer or {})[n]) for n, v in fields.items()] for e in examples], np.int32)
    if cases.ends is not None:
        heads, places = cases.heads, np.repeat(cases.ends[:, None], len(fields), axis=1)
    else:
        heads = tuple(tuple(map(tokenizer.piece_to_id, _pieces(values))) for values in fields.values())
        places = _places(cases, heads, labels)
    targets = [np.zeros((len(cases.tokens), len(values)), np.float32) for values in fields.values()]
    weights = np.zeros((len(cases.tokens), len(fields)), np.float32)
    for row, shares in enumerate(said):
        for field, share in enumerate(shares):
            if share is not None and places[row, field] >= 0:
                targets[field][row] = np.array(share) / max(sum(share), 1e-9)
                weights[row, field] = task.distil.soft
    learnt = cases.learnt.copy()
    if cases.ends is None:
        for field in range(len(fields)):
            rows = np.flatnonzero(weights[:, field])
            learnt[rows, places[rows, field]] *= 1 - task.distil.soft
    soft = Soft(np.maximum(places, 0), heads, tuple(targets), weights)
    return Cases(cases.tokens, learnt, cases.ends, cases.labels, cases.heads), soft


def _pieces(values: Sequence[Any]) -> list[str]:
    """How values are spelled as tokens; see vocabulary.py."""
    return [json.dumps(value, ensure_ascii=False).replace(" ", "\u2581") for value in values]


def _places(cases: Cases, heads: Sequence[Sequence[int]], labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """(cases, fields): the position before the token of each field's value, -1 where it is not found.

    Values of several fields may be spelled alike: they are looked for in the fields' order, among what is learnt fully.
    """
    found = np.full(labels.shape, -1, np.int32)
    for row, tokens in enumerate(cases.tokens):
        after = -1
        for field, head in enumerate(heads):
            here = np.flatnonzero((tokens[1:] == head[labels[row, field]]) & (cases.learnt[row] == 1.0))
            here = here[here > after]
            if len(here):
                found[row, field] = after = here[0]
    return found
