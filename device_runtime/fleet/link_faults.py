"""What can be seen to be wrong with a link before there is a reading: by itself, and with the model that answers it."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.defaults import DEFAULT_NAMESPACE

from device_runtime.errors import ConfigurationError, LinkError, SchemaError
from device_runtime.fleet.expression import names_in
from device_runtime.fleet.links import Link, Windows, parsed, shape, variables_of
from device_runtime.fleet.questions import typed_names
from device_runtime.mqtt.topics import check_topic, matches
from device_runtime.tasks.examples import answer_faults

if TYPE_CHECKING:
    from device_runtime.bundle.manifest import Manifest

__all__ = ["faults", "judged_numbers", "why_left_out", "why_refused"]

# A value with one of these after it is a number: `{{ temp_c }} °C`.
_UNIT = re.compile(r"\s*(?:°|%|(?:m?[KVAWNΩ]|[kmM]?(?:Pa|Hz|Wh|g|m|s|l)|bar|ppm|rpm|degrees|percent|lux|dB|hPa)\b)")
_IF_IT_IS_THERE = ("default", "d", "defined", "undefined")  # of Jinja2: a name in them need not be there
_NUMERIC_FILTERS = ("round", "int", "float", "abs")


def faults(link: Link) -> list[tuple[str, str]]:
    """What can be seen to be wrong with a link before there is a reading: the field, as the file calls it, and why."""
    found = _faults_of_to(link)
    uses = {"prompt": _template_uses(link.prompt), "to": _template_uses(link.to)}
    if link.when is not None:
        uses["when"] = _expression_uses(link.when)
    levels = link.source.split("/")
    for name, (variables, indices) in uses.items():
        if "window" in variables and link.window is None:
            found.append((name, "uses `window`, which is empty without the field `window`: {seconds: 3600, keep: 20}"))
        for index in sorted(indices):
            if levels[-1] != "#" and not -len(levels) <= index < len(levels):
                found.append(
                    (name, f"topic[{index}] is not there: {link.source!r} has topic[0] to [{len(levels) - 1}]")
                )
        found += [(name, text) for text in _unknown_names(link, variables)]
    for name, source in (("prompt", link.prompt), ("to", link.to)):
        for node in parsed(source).find_all((jinja2.nodes.Mod, jinja2.nodes.Mul)):
            if any(
                isinstance(side, jinja2.nodes.Const) and isinstance(side.value, str) for side in (node.left, node.right)
            ):
                hint = "; round with {{ x | round(1) }}" if node.operator == "%" else ""
                found.append((name, f"{node.operator!r} takes numbers only{hint}"))
    return found + _faults_of_answers(link)


def why_refused(
    link: Link,
    model: str,
    manifest: Manifest | None,
    max_new: int | None,
    check_schema: Callable[[Mapping[str, Any], int | None], None] | None,
) -> str:
    """Why a model cannot answer a link; empty where it can.

    Args:
        model: its name.
        manifest: of its bundle; None where there is none to look at.
        max_new: tokens of its answers, where a request does not say.
        check_schema: called with a schema and `max_new`; raises a `SchemaError` if no answer can be held to it.
    """
    found = []
    own = None if link.answer_of_model else link.answer
    if manifest is not None:
        if link.system is not None and manifest.instruction not in (None, link.system):
            found.append(
                f"link {link.name!r} has a system message, and the bundle of {model!r} has an instruction baked in; "
                "leave out `system`, or convert without --prefix."
            )
        if own is None and manifest.task == "embed":
            found.append(
                f"link {link.name!r} asks the model {model!r}, whose bundle gives vectors: those answer requests "
                "alone; take a bundle of another task."
            )
        if own is None and manifest.purpose is None and link.unsure:
            found.append(
                f"link {link.name!r} has `unsure` and no `answer`, and the bundle of {model!r} was trained for no "
                "task; give it an `answer` with a field that the model chooses: an enum, a number, true or false."
            )
    if own is not None and check_schema is not None:
        try:
            check_schema(own, max_new)
        except SchemaError as error:
            found.append(f"the answer of link {link.name!r} cannot be given: {error}")
    return " ".join(found)


def why_left_out(link: Link, models: Sequence[str], refusals: Mapping[str, str]) -> str:
    """Why a device leaves out a link: none of the models that it may ask can answer it. Empty where one can.

    Args:
        models: that it may ask, see `Link.may_ask`.
        refusals: what `why_refused` says, by model. A model that is not there may be able to: nobody has looked.
    """
    whys = [refusals.get(name, "") for name in models]
    if not all(whys):
        return ""
    if len(models) == 1:
        return whys[0]
    each = " ".join(f"{name}: {why}" for name, why in zip(models, whys, strict=True))
    return f"no model that the router may find for link {link.name!r} can answer it. {each}"


def _unknown_names(link: Link, variables: Set[str]) -> list[str]:
    """Names that no reading of this link can have: one that is text, or a number, has no fields."""
    if link.parse not in ("text", "number"):
        return []
    has = ("value", "unit") if link.parse == "number" else ("value",)
    unknown = variables - {*has, "topic", "window", "reading", "decided"}
    return [
        f"{name!r} is not there: with `parse: {link.parse}` a reading is {' and '.join(has)}"
        for name in sorted(unknown)
    ]


def judged_numbers(link: Link) -> list[str]:
    """Numbers of a reading from which the model is to choose a label; a general model guesses there.

    What is a number can be seen from how the link uses it: with `parse: number`, compared with a number, rounded, or
    written with a unit after it.
    """
    if not set(typed_names(link.answer)) - set(link.decide):
        return []
    tree = parsed(link.prompt)
    printed = {name.name for name in tree.find_all(jinja2.nodes.Name)} - {"topic", "window", "reading", "decided"}
    numbers = {"value"} if link.parse == "number" else set()
    for source in (link.when, *link.decide.values()):
        numbers |= _compared_with_numbers(source) if source is not None else set()
    for output in tree.find_all(jinja2.nodes.Output):
        for part, after in zip(output.nodes, [*output.nodes[1:], None], strict=True):
            inside = [part, *part.find_all((jinja2.nodes.Name, jinja2.nodes.Filter))]
            filters = [node for node in inside if isinstance(node, jinja2.nodes.Filter)]
            names = {node.name for node in inside if isinstance(node, jinja2.nodes.Name)}
            with_unit = isinstance(after, jinja2.nodes.TemplateData) and _UNIT.match(after.data)
            if with_unit or any(node.name in _NUMERIC_FILTERS for node in filters):
                numbers |= names
    return sorted(printed & numbers)


def _compared_with_numbers(source: str) -> set[str]:
    """Names that an expression compares with a number."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.strip(), mode="eval")):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(isinstance(s, ast.Constant) and isinstance(s.value, int | float) for s in sides):
                found |= {side.id for side in sides if isinstance(side, ast.Name)}
    return found


def _faults_of_answers(link: Link) -> list[tuple[str, str]]:
    """What is wrong with examples, with what is decided, and with `unsure`."""
    found: list[tuple[str, str]] = []
    properties = (link.answer or {}).get("properties", {})
    levels = link.source.split("/")
    for name, source in link.decide.items():
        if name not in properties:
            has = f"has {', '.join(properties)}" if properties else "has no properties"
            found.append(("decide", f"{name!r} is no property of `answer`, which {has}"))
        elif link.answer is not None:
            for value in _literal_results(ast.parse(source.strip(), mode="eval").body):
                found += [("decide", fault) for fault in answer_faults({name: value}, link.answer, whole=False)]
        variables, indices = _expression_uses(source)
        found += [("decide", text) for text in _unknown_names(link, variables)]
        if "window" in variables and link.window is None:
            found.append(
                ("decide", "uses `window`, which is empty without the field `window`: {seconds: 60, keep: 20}")
            )
        if any(levels[-1] != "#" and not -len(levels) <= index < len(levels) for index in indices):
            found.append(("decide", f"{link.source!r} has topic[0] to [{len(levels) - 1}]"))
    for number, example in enumerate(link.examples):
        if (example.reading is None) == (example.prompt is None):
            found.append(("examples", f"[{number}] needs either `reading` or `prompt`, and not both"))
        elif link.answer is None and not isinstance(example.answer, str):
            found.append(("examples", f"[{number}] has data as its answer; without `answer` the link asks for text"))
        elif properties and not isinstance(example.answer, Mapping):
            found.append(("examples", f"[{number}] has no fields in its answer; expected {', '.join(properties)}"))
        elif properties and link.answer is not None:
            known = set(link.decide) if example.reading is not None else set()
            missing = [name for name in properties if name not in example.answer and name not in known]
            wrong = answer_faults(example.answer, link.answer, whole=False)
            found += [("examples", f"[{number}]: {fault}") for fault in wrong]
            found += [("examples", f"[{number}]: {name!r} is missing") for name in missing]
    # Without an answer the bundle may have one: see `why_refused`.
    if link.unsure is not None and link.answer is not None and not set(typed_names(link.answer)) - set(link.decide):
        text = "needs an `answer` with a field that the model chooses: an enum, a number, true or false"
        found.append(("unsure", text))
    if link.examples and not found:
        try:
            Windows(link)
        except LinkError as error:
            found.append(("examples", str(error)))
    return found


def _faults_of_to(link: Link) -> list[tuple[str, str]]:
    texts = [node.data for node in parsed(link.to).find_all(jinja2.nodes.TemplateData)]
    if any(sign in text for text in texts for sign in "+#"):
        return [
            ("to", "holds a wildcard; '+' and '#' belong to `from`. A level of the reading's topic is {{ topic[1] }}")
        ]
    to = shape(link)
    if to is None:
        return []
    if to.startswith(("stonechat/", "$")):
        return [("to", f"{link.to!r} leads to where devices are commanded; choose another topic")]
    if matches(link.source, to):
        return [
            ("to", f"its answers come back to this link: {link.source!r} matches {link.to!r}; choose another topic")
        ]
    try:
        check_topic(to.replace("+", "x"))
    except ConfigurationError as e:
        return [("to", str(e))]
    return []


def _template_uses(source: str) -> tuple[Set[str], Set[int]]:
    """The variables that a template needs, and the levels of `topic` in it."""
    tree = parsed(source)
    indices = set()
    for node in tree.find_all(jinja2.nodes.Getitem):
        if isinstance(node.node, jinja2.nodes.Name) and node.node.name == "topic":
            with contextlib.suppress(jinja2.nodes.Impossible):
                indices.add(node.arg.as_const())
    asked = [node for node in tree.find_all((jinja2.nodes.Filter, jinja2.nodes.Test)) if node.name in _IF_IT_IS_THERE]
    optional = {name.name for node in asked for name in node.find_all(jinja2.nodes.Name)}
    return variables_of(source) - optional - set(DEFAULT_NAMESPACE), {
        index for index in indices if isinstance(index, int)
    }


def _expression_uses(source: str) -> tuple[Set[str], Set[int]]:
    """The same for an expression."""
    tree = ast.parse(source.strip(), mode="eval")
    indices = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "topic":
            with contextlib.suppress(ValueError):
                indices.add(ast.literal_eval(node.slice))
    return names_in(tree), {index for index in indices if isinstance(index, int)}


def _literal_results(node: ast.expr) -> list[object]:
    """What an expression can be as it is written out: of `'alarm' if bar > 3 else 'ok'` both texts."""
    if isinstance(node, ast.IfExp):
        return _literal_results(node.body) + _literal_results(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) else []
