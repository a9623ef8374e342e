"""A teacher: a model that answers inputs which nobody has answered, so that a small model can learn from it.

It is a bundle on this machine, or a server that speaks the chat completions interface of OpenAI and that the user
names. No answer is believed unseen: it must fit the task's schema, and say what the task's rules say where it has any.
"""

from __future__ import annotations

import json
import os
import random
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from device_runtime.bundle.folder import Bundle
from device_runtime.errors import ConfigurationError, UnreachableError
from device_runtime.tasks.answering import Answerer
from device_runtime.tasks.examples import Example, answer_faults, read_examples
from device_runtime.tasks.file import Task, Teacher
from device_runtime.tasks.purpose import Purpose
from device_runtime.tasks.rules import Truth
from device_runtime.update.active import open_bundle

__all__ = ["Answers", "Taught", "answerer_of", "taught", "teacher_of", "unanswered"]

_SHOWN = 8  # of the task's own examples, as turns of the conversation
_TIMEOUT_S = 120.0
_TRIES = 4
_LONGEST_WAIT_S = 60.0
_KEPT = 5  # rejected answers that are shown


class Answers(Protocol):
    """What answers inputs."""

    def ask(self, given: Mapping[str, Any]) -> Any:
        """Whatever it says of one input."""


@dataclass
class Taught:
    """What came of asking a teacher."""

    believed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # why, and how often
    shown: list[dict[str, Any]] = field(default_factory=list)  # some that were rejected

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"believed": self.believed, "rejected": dict(self.rejected), "rejected_examples": self.shown}


def taught(task: Task, teacher: Answers, inputs: Iterable[Mapping[str, Any]], result: Taught) -> Iterator[Example]:
    """The inputs with those answers that are believed; `result` says how many were and why others were not."""
    truth = Truth(task) if task.truth else None
    for given in inputs:
        said = teacher.ask(given)
        if not (fault := _fault(task, truth, given, said)):
            result.believed += 1
            yield Example(given, {name: said[name] for name in task.fields})
            continue
        result.rejected[fault.partition(":")[0]] += 1
        if len(result.shown) < _KEPT:
            result.shown.append({"input": dict(given), "said": said, "fault": fault})


def unanswered(task: Task, count: int, seed: int) -> Iterator[Mapping[str, Any]]:
    """Inputs to ask about: those of the teacher's `inputs` file, else inputs that are generated.

    Raises:
        ConfigurationError: there is neither a file nor anything to generate from.
    """
    from toolkit.examples.readings import drawn
    from toolkit.examples.sources import generated_examples

    if task.teacher is not None and task.teacher.inputs:
        path = task.folder / task.teacher.inputs
        found = [e.input for e in read_examples(path, task.inputs, task.answer, need_answers=False)]
        random.Random(seed).shuffle(found)
        yield from found[:count]
    elif task.inputs.fields:
        yield from islice(drawn(task, seed), count)
    else:
        yield from (example.input for example in generated_examples(task, count, seed))


def teacher_of(task: Task) -> AbstractContextManager[Answers]:
    """The teacher that a task file names, opened.

    Raises:
        ConfigurationError: it names none, or the bundle was trained for another task.
    """
    if task.teacher is None:
        raise ConfigurationError(
            f"{task.name} names no teacher; write `teacher: {{bundle: DIR}}` or "
            "`teacher: {url: 'http://HOST:PORT/v1', model: NAME}` into its task file."
        )
    shown = [e for name in task.examples for e in read_examples(task.folder / name, task.inputs, task.answer)][:_SHOWN]
    if task.teacher.url:
        return nullcontext(_Server(task, task.teacher, shown))
    return closing(_Bundle(task, task.teacher, shown))


def answerer_of(task: Task, bundle: Bundle, shown: Sequence[Example]) -> Answerer:
    """A bundle on this machine, opened to answer as the task does.

    Raises:
        ConfigurationError: it was trained for something else.
    """
    own = Purpose.of_manifest(bundle.manifest, task.name)
    if own is not None and not own.answers_as(task):
        raise ConfigurationError(
            f"The teacher {bundle.path} was trained for {own.name} ({', '.join(own.fields)}), and {task.name} answers "
            f"with {', '.join(task.fields)}; name a general model, or a bundle of the same task."
        )
    return Answerer(bundle, own or Purpose.of_task(task), shown=shown)


class _Bundle:
    """See `answerer_of`."""

    def __init__(self, task: Task, teacher: Teacher, shown: Sequence[Example]) -> None:
        self._answerer = answerer_of(task, open_bundle(task.folder / teacher.bundle), shown)

    def ask(self, given: Mapping[str, Any]) -> Any:
        return self._answerer.answer(given).answer

    def close(self) -> None:
        self._answerer.close()


class _Server:
    """A server with the chat completions interface."""

    def __init__(self, task: Task, teacher: Teacher, shown: Sequence[Example]) -> None:
        self._task, self._shown, self._model = task, shown, teacher.model
        self._url = teacher.url.rstrip("/") + "/chat/completions"
        self._headers = {"Content-Type": "application/json"}
        if teacher.key:
            if teacher.key not in os.environ:
                raise ConfigurationError(
                    f"The teacher's key is read from the environment variable {teacher.key}, which is not set."
                )
            self._headers["Authorization"] = f"Bearer {os.environ[teacher.key]}"

    def ask(self, given: Mapping[str, Any]) -> Any:
        asked = self._task.inputs.prompt(given)
        body = {
            "model": self._model,
            "messages": Purpose.of_task(self._task).conversation(self._shown, asked.text),
            "temperature": 0,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": self._task.answer},
            },
        }
        try:
            text = self._post(json.dumps(body).encode())["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise UnreachableError(f"{self._url} answers, but not as a chat completions interface does.") from None
        try:
            return json.loads(_without_fence(text))
        except (ValueError, TypeError, RecursionError):
            return text

    def _post(self, body: bytes) -> Any:
        """The server's answer; a server that is busy is asked again.

        Raises:
            UnreachableError: it does not answer, or refuses.
        """
        for left in reversed(range(_TRIES)):
            request = urllib.request.Request(self._url, body, self._headers)
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                said = error.read(300).decode("utf-8", "replace")
                if error.code not in (429, 500, 502, 503, 504) or not left:
                    raise UnreachableError(f"The teacher {self._url} refuses with {error.code}: {said:.200}") from None
                wait_s = _seconds(error.headers.get("Retry-After"), 2.0 ** (_TRIES - left))
            except (OSError, ValueError) as error:
                if not left:
                    raise UnreachableError(
                        f"The teacher {self._url} gives no answer ({error}); check `teacher: url` and that it runs."
                    ) from None
                wait_s = 2.0 ** (_TRIES - left) / 4
            time.sleep(wait_s)
        raise AssertionError  # the last try returns or raises


def _fault(task: Task, truth: Truth | None, given: Mapping[str, Any], said: Any) -> str:
    """Why an answer is not believed; empty where it is."""
    if not isinstance(said, Mapping):
        return "no JSON object"
    if faults := answer_faults(said, task.answer):
        return f"not of the schema: {faults[0]}"
    expected = truth.answer(given) if truth is not None else None
    for name, values in task.fields.items():
        if expected is not None and values and said[name] != expected[name]:
            return f"against the rules: {name} is {said[name]!r}, they say {expected[name]!r}"
    return ""


def _without_fence(text: str) -> str:
    """Without the three backticks that chat models like to put around JSON."""
    lines = text.strip().splitlines()
    return "\n".join(lines[1:-1]) if len(lines) > 2 and lines[0].startswith("```") else text


def _seconds(header: str | None, otherwise: float) -> float:
    try:
        return min(max(float(header or ""), 0.0), _LONGEST_WAIT_S)
    except ValueError:
        return otherwise
