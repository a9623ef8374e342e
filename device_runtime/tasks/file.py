"""The task file: what comes in, what the answer looks like, what is true, and where examples come from.

Checked like a fleet file: every fault at once, each with its place. See docs/guides/train.md.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from device_runtime.errors import ConfigurationError
from device_runtime.fleet import yaml_schema
from device_runtime.fleet.answer_schema import Answer
from device_runtime.fleet.expression import Expression
from device_runtime.fleet.yaml_schema import (
    Boolean,
    Choice,
    Field,
    Integer,
    ListOf,
    MapOf,
    Number,
    OneOrMore,
    Plain,
    Record,
    Report,
    Text,
)
from device_runtime.tasks.inputs import Feature, InputField, Inputs, cut

__all__ = [
    "INPUTS",
    "TASK",
    "Distil",
    "Generate",
    "Network",
    "Rule",
    "Task",
    "Teacher",
    "expression_names",
    "load",
    "loads",
    "typed_fields",
    "with_kind",
]

Path_ = tuple[str | int, ...]
NUMBERS = (-1e12, 1e12)


@dataclass(frozen=True)
class Rule:
    """One line of a task's truth: the first whose `when` holds gives the answer."""

    answer: Mapping[str, Any]
    when: str | None = None  # an expression; None holds always


@dataclass(frozen=True)
class Generate:
    """How `generate` grows examples."""

    cases: int = 60_000
    near_borders: float = 0.5  # share of numeric cases that lie near a number that a rule compares with
    program: str | None = None  # a Python file that prints examples; a path, relative to the task file


@dataclass(frozen=True)
class Teacher:
    """A model that answers inputs which nobody has answered: a bundle, or a server that the user names."""

    bundle: str = ""  # a folder, relative to the task file
    url: str = ""  # of a chat completions interface, up to /v1
    model: str = ""  # as the server calls it
    key: str = ""  # name of the environment variable that holds the server's key
    inputs: str = ""  # a file of inputs without answers; without one they are generated


@dataclass(frozen=True)
class Distil:
    """Whose distributions a small model learns from, beside the right answers."""

    teacher: str  # a bundle's folder, relative to the task file
    soft: float = 0.5  # what they count in a decision; the right answer counts the rest
    cases: int = 2000  # that the teacher is asked about, at most


@dataclass(frozen=True)
class Network:
    """The shape of the network that is trained."""

    layers: int = 4
    width: int = 96
    heads: int = 4
    ffn: int = 256
    vocabulary: int = 512  # at most
    tied: bool = False  # a token is read by the row that it is predicted with: half the table
    embeddings: str = ""  # folder of a sentence encoder that words are understood by; relative to the task file


@dataclass(frozen=True)
class Task:
    """A task file."""

    name: str
    inputs: Inputs
    answer: Mapping[str, Any]  # a JSON schema
    about: str = ""
    kind: Literal["tiny", "classify"] = "tiny"
    none: Mapping[str, Any] = field(default_factory=dict)  # what an answer says when nothing was asked
    truth: tuple[Rule, ...] = ()
    examples: tuple[str, ...] = ()  # JSONL or CSV files, relative to the task file
    calibrate: tuple[str, ...] = ()  # files of examples that confidence is calibrated on, in place of generated ones
    generate: Generate = field(default_factory=Generate)
    network: Network = field(default_factory=Network)
    teacher: Teacher | None = None
    distil: Distil | None = None
    audit: Mapping[str, Any] = field(default_factory=dict)
    task: int = 1  # format of the file
    folder: Path = Path()  # of the task file

    @property
    def fields(self) -> dict[str, list[Any] | None]:
        """The answer's fields in order: the values of an enum, or None."""
        return typed_fields(self.answer)


def typed_fields(schema: Mapping[str, Any]) -> dict[str, list[Any] | None]:
    """The fields of an answer's schema in order: the values of an enum, or None for numbers and texts."""
    found = {}
    for name, inner in schema.get("properties", {}).items():
        values = inner.get("enum") if isinstance(inner, Mapping) else None
        found[name] = list(values) if values is not None else None
    return found


def load(path: Path | str) -> Task:
    """Read and check a task file.

    Raises:
        ConfigurationError: lists all its faults.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "task.yaml"
    return _placed(yaml_schema.load(path, TASK, _check), path)


def with_kind(task: Task, kind: Literal["tiny", "classify"]) -> Task:
    """The same task for another kind of model.

    Raises:
        ConfigurationError: the kind cannot give such answers.
    """
    free = [name for name, values in task.fields.items() if not values]
    if kind == "classify" and free:
        raise ConfigurationError(
            f"{task.name}: {free[0]!r} is no enum; a task of the kind classify has enums only. Use the kind tiny."
        )
    return replace(task, kind=kind)


def loads(text: str, file: str = "task.yaml") -> Task:
    """The same, of a text."""
    return _placed(yaml_schema.loads(text, TASK, _check, file=file), Path(file))


def _placed(task: Task, path: Path) -> Task:
    return replace(task, folder=path.parent)


def _expression(source: str) -> str:
    """`source`, if it is an expression; raises a ConfigurationError if not."""
    Expression(source)
    return source


_FIELD = Record(
    InputField,
    {
        "unit": Field(Text("a unit"), default=""),
        "from": Field(Number(*NUMBERS), default=None, to="low"),
        "to": Field(Number(*NUMBERS), default=None, to="high"),
        "step": Field(Number(1e-6, 1e9), default=1.0),
        "beyond": Field(Choice(("unfamiliar", "clamp")), default="unfamiliar"),
        "one_of": Field(OneOrMore(Text("a word", r"\S+")), default=()),
        "usual": Field(ListOf(Number(*NUMBERS), "[low, high]"), default=()),
    },
    "a mapping such as {from: 0, to: 120, step: 0.1, unit: °C} or {one_of: [open, shut]}",
    lambda made, path, report: _check_field(made, path, report),
)
_FEATURE = Record(
    Feature,
    {
        "value": Field(Text("an expression", check=_expression)),
        "from": Field(Number(*NUMBERS), to="low"),
        "to": Field(Number(*NUMBERS), to="high"),
        "step": Field(Number(1e-6, 1e9), default=1.0),
        "unit": Field(Text("a unit"), default=""),
    },
    "a mapping such as {value: temp_c - window[0].temp_c, from: -50, to: 50, step: 0.1}",
)
_NAME = Text("a name of letters, digits and _, such as temp_c", r"[A-Za-z_][A-Za-z0-9_]{0,31}")
INPUTS = Record(
    Inputs,
    {
        "text": Field(Integer(1, 2000, "characters"), default=None),
        "numbers": Field(Choice(("whole", "short")), default="whole"),
        "words": Field(Choice(("whole", "apart")), default="whole"),
        "fields": Field(MapOf(_NAME, _FIELD), default=None),
        "window": Field(Integer(0, 100, "readings"), default=0),
        "features": Field(MapOf(_NAME, _FEATURE), default=None),
    },
    "a mapping with `fields`, or with `text`",
    lambda made, path, report: _check_inputs(made, path, report),
)
_ANSWERS = Plain("a mapping from the answer's fields to values")
TASK = Record(
    Task,
    {
        "task": Field(Integer(1, 1)),
        "name": Field(Text("a name of small letters, digits and '-'", r"[a-z0-9][a-z0-9-]{0,63}")),
        "about": Field(Text("a sentence"), default=""),
        "kind": Field(Choice(("tiny", "classify")), default="tiny"),
        "input": Field(INPUTS, to="inputs"),
        "answer": Field(Answer()),
        "none": Field(_ANSWERS, default={}),
        "truth": Field(
            ListOf(
                Record(
                    Rule,
                    {
                        "when": Field(Text("an expression", check=_expression), default=None),
                        "answer": Field(_ANSWERS),
                    },
                    "a mapping such as {when: bar > 3, answer: {severity: alarm}}",
                )
            ),
            default=(),
        ),
        "examples": Field(OneOrMore(Text("a .jsonl or .csv file", r".+\.(jsonl|csv)")), default=()),
        "calibrate": Field(OneOrMore(Text("a .jsonl or .csv file", r".+\.(jsonl|csv)")), default=()),
        "generate": Field(
            Record(
                Generate,
                {
                    "cases": Field(Integer(100, 5_000_000), default=60_000),
                    "near_borders": Field(Number(0, 1), default=0.5),
                    "program": Field(Text("a Python file", r".+\.py"), default=None),
                },
            ),
            default=Generate(),
        ),
        "teacher": Field(
            Record(
                Teacher,
                {
                    "bundle": Field(Text("a bundle's folder"), default=""),
                    "url": Field(Text("an address such as http://localhost:8080/v1", r"https?://\S+"), default=""),
                    "model": Field(Text("a model's name, as the server calls it"), default=""),
                    "key": Field(Text("the name of an environment variable", r"[A-Za-z_][A-Za-z0-9_]*"), default=""),
                    "inputs": Field(Text("a .jsonl or .csv file", r".+\.(jsonl|csv)"), default=""),
                },
                "a mapping such as {bundle: build/smollm2-135m} or {url: 'http://localhost:8080/v1', model: NAME}",
                lambda made, path, report: _check_teacher(made, path, report),
            ),
            default=None,
        ),
        "distil": Field(
            Record(
                Distil,
                {
                    "teacher": Field(Text("a bundle's folder")),
                    "soft": Field(Number(0, 1), default=0.5),
                    "cases": Field(Integer(1, 5_000_000, "cases"), default=2000),
                },
                "a mapping such as {teacher: build/pump-tuned, soft: 0.5}",
            ),
            default=None,
        ),
        "network": Field(
            Record(
                Network,
                {
                    "layers": Field(Integer(1, 12), default=4),
                    "width": Field(Integer(32, 384), default=96),
                    "heads": Field(Integer(1, 12), default=4),
                    "ffn": Field(Integer(32, 1536), default=256),
                    "vocabulary": Field(Integer(300, 16384, "pieces"), default=512),
                    "tied": Field(Boolean(), default=False),
                    "embeddings": Field(Text("a folder"), default=""),
                },
            ),
            default=Network(),
        ),
        "audit": Field(Plain("a mapping from a name to what may be exchanged"), default={}),
    },
    "a task file",
    another={"devices": "this is a fleet file, and no task file; check it with `stonechat check`"},
)


def _check_field(made: InputField, path: Path_, report: Report) -> None:
    if made.one_of and (made.low is not None or made.high is not None):
        report.add_at(path, "has `one_of` as well as `from` and `to`; expected a number or words, not both")
    elif not made.one_of and (made.low is None or made.high is None):
        report.add_at(path, "needs `from` and `to` (what training covers), or `one_of`")
    elif made.low is not None and made.high is not None and made.low >= made.high:
        report.add_at(path, f"`from` is {made.low:g} and `to` {made.high:g}; expected the smaller one first")
    if made.usual and (len(made.usual) != 2 or made.usual[0] >= made.usual[1]):
        report.add_at((*path, "usual"), "expected two numbers, the smaller one first")
    elif made.usual and made.one_of:
        report.add_at((*path, "usual"), "is the range of most numbers, and this field has words; leave it out")
    elif made.usual and made.low is not None and made.high is not None and _is_beyond(made.usual, made.low, made.high):
        text = (
            f"{made.usual[0]:g} to {made.usual[1]:g} is not within the field's range; expected two numbers from "
            f"{made.low:g} to {made.high:g}"
        )
        report.add_at((*path, "usual"), text)


def _is_beyond(usual: tuple[float, ...], low: float, high: float) -> bool:
    return usual[0] < low or usual[1] > high


def _check_inputs(made: Inputs, path: Path_, report: Report) -> None:
    if (made.text is None) == (made.fields is None):
        report.add_at(path, "expected either `fields`, or `text` with the most characters that it may have")
    if made.fields is not None and not made.fields:
        report.add_at(path, "`fields` names none; expected at least one")
    if made.text is not None and (made.window or made.features):
        report.add_at(path, "`window` and `features` belong to `fields`; this task reads a text")
    known = {*(made.fields or {}), *({"window"} if made.window else ())}
    for name, feature in (made.features or {}).items():
        for word in sorted(expression_names(feature.value) - known):
            text = f"uses {word!r}, which is no field; {yaml_schema.nearest(word, sorted(known), 'the fields are')}"
            report.add_at((*path, "features"), f"{name} {text}")


def expression_names(source: str) -> set[str]:
    """The variables of an expression."""
    tree = ast.parse(source.strip(), mode="eval")
    bound = {n.id for c in ast.walk(tree) if isinstance(c, ast.comprehension) for n in ast.walk(c.target)
             if isinstance(n, ast.Name)}  # fmt: skip
    called = {id(c.func) for c in ast.walk(tree) if isinstance(c, ast.Call)}
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in called}
    return names - bound - {"true", "false", "null"}


def _check(task: Task, report: Report) -> None:
    """What concerns several fields."""
    fields = task.fields
    if not fields:
        report.add_at(("answer",), "has no `properties`; expected an object with at least one field")
    for name in sorted(set(fields) - set(task.answer.get("required", []))):
        report.add_at(("answer",), f"{name!r} is not in `required`; the model always writes every field")
    if not any(fields.values()):
        report.add_at(("answer",), "has no field with an `enum`; expected at least one: it says what is decided")
    if task.kind == "classify" and not all(fields.values()):
        free = next(name for name, values in fields.items() if not values)
        report.add_at(("answer",), f"{free!r} is no enum; a task of the kind classify has enums only")
    if task.network.width % task.network.heads or task.network.width // task.network.heads % 2:
        report.add_at(("network",), f"width {task.network.width} does not divide into {task.network.heads} even heads")
    if task.network.embeddings and not (
        task.kind == "classify" and task.inputs.text is not None and task.inputs.words == "apart" and task.network.tied
    ):
        report.add_at(
            ("network",),
            "`embeddings` are for tasks of the kind classify that read a text word by word; expected `kind: classify`, "
            "`input: {text: 240, words: apart}` and `network: {tied: true}`",
        )
    _check_ends(task.inputs, report)
    _check_answer(task.none, fields, ("none",), report)
    known = {*(task.inputs.fields or {}), *(task.inputs.features or {}), *({"window"} if task.inputs.window else ())}
    for i, rule in enumerate(task.truth):
        where = ("truth", i)
        _check_answer(rule.answer, fields, (*where, "answer"), report)
        for name in sorted(set(fields) - set(rule.answer)):
            report.add_at((*where, "answer"), f"{name!r} is missing")
        for word in sorted(expression_names(rule.when) - known) if rule.when else ():
            hint = yaml_schema.nearest(word, sorted(known), "there are")
            report.add_at((*where, "when"), f"uses {word!r}, which does not come in; {hint}")
    if task.truth and task.truth[-1].when is not None:
        report.add_at(("truth",), "the last rule has a `when`; expected one without, for all other inputs")
    if task.truth and task.inputs.text is not None:
        report.add_at(("truth",), "rules compute with fields; a task that reads a text needs `examples` or a `program`")
    if not (task.truth or task.examples or task.generate.program or task.teacher):
        report.add_at((), "says nothing of what is true; expected `truth`, `examples` or `generate: {program: …}`")


def _check_ends(inputs: Inputs, report: Report) -> None:
    """A number is cut downwards, so that an end between two steps would be read as one outside of the range.

    Of a task file alone: the bundles that were trained with such a range are read as they were trained.
    """
    groups = {"fields": inputs.fields or {}, "features": {n: f.field for n, f in (inputs.features or {}).items()}}
    for group, fields in groups.items():
        for name, found in fields.items():
            low = found.low
            if low is not None and (below := float(cut(low, found.step))) != low:
                text = (
                    f"{name}'s `from` is {low:g}, which lies between two steps of {found.step:g} and would be read as "
                    f"{below:g}, outside of the range; expected a multiple of the step: {below:g} or "
                    f"{below + found.step:g}"
                )
                report.add_at(("input", group, name), text)


def _check_teacher(made: Teacher, path: Path_, report: Report) -> None:
    if bool(made.bundle) == bool(made.url):
        report.add_at(path, "expected either `bundle` (a folder) or `url` (of a server)")
    if made.url and not made.model:
        report.add_at(path, "has a `url` and no `model`; expected the name that the server knows the model by")
    if made.bundle and (made.model or made.key):
        report.add_at(path, "has `model` or `key` beside `bundle`; those are of a server")


def _check_answer(answer: Any, fields: Mapping[str, Any], path: Path_, report: Report) -> None:
    if not isinstance(answer, Mapping):
        report.add_at(path, "expected a mapping from the answer's fields to values")
        return
    for name, value in answer.items():
        if name not in fields:
            report.add_at(path, f"{name!r} is no field; {yaml_schema.nearest(name, list(fields), 'the fields are')}")
        elif fields[name] is not None and value not in fields[name]:
            words = [str(v) for v in fields[name]]
            hint = yaml_schema.nearest(str(value), words, "expected one of")
            report.add_at(path, f"{name} is {json.dumps(value)}; {hint}")
