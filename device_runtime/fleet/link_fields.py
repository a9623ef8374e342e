"""The fields of a link in a fleet file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from device_runtime.errors import ConfigurationError
from device_runtime.fleet.answer_schema import Answer
from device_runtime.fleet.link_faults import faults
from device_runtime.fleet.links import Link, Window, check_expression, check_template
from device_runtime.fleet.policies.escalation import ESCALATION
from device_runtime.fleet.questions import LinkExample, Unsure
from device_runtime.fleet.yaml_schema import (
    Choice,
    Field,
    Integer,
    ListOf,
    MapOf,
    Number,
    Plain,
    Record,
    Reference,
    Report,
    Text,
)
from device_runtime.mqtt.topics import DeviceTopics, check_filter, check_id, check_topic, matches

__all__ = ["LINK"]


def _source(pattern: str) -> str:
    check_filter(pattern)
    if pattern.startswith("$"):
        raise ConfigurationError(f"topic filter {pattern!r} starts with '$', where brokers keep their own topics")
    levels = pattern.split("/")
    any_device = "/".join([*levels[:2], *("+" if level != "#" else level for level in levels[2:3]), *levels[3:]])
    topics = DeviceTopics("any")
    if any(matches(any_device, topic) for topic in (topics.generate, topics.cancel, topics.reply("any", "any"))):
        raise ConfigurationError(f"topic filter {pattern!r} also matches stonechat's own topics; narrow it")
    return pattern


def _reading_of(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {"value": value}


def _check_link(link: Link, path: tuple[str | int, ...], report: Report) -> None:
    for name, text in faults(link):
        report.add_at((*path, name), text)


_WINDOW = Record(
    Window,
    {"seconds": Field(Number(0.001, 31_536_000, "s"), 3600.0), "keep": Field(Integer(1, 1000, "readings"), 20)},
    expected="a mapping such as {seconds: 30, keep: 20}",
)

_EXAMPLE = Record(
    LinkExample,
    {
        "reading": Field(Plain("a reading: a mapping, or a bare value", _reading_of), None),
        "prompt": Field(Text("a prompt"), None),
        "topic": Field(Text("a topic", check=check_topic), None),
        "answer": Field(Plain("the right answer")),
    },
    expected="a mapping such as {reading: {temp_c: 91}, answer: {severity: alarm}}",
)

_UNSURE = Record(
    Unsure,
    {
        "below": Field(Number(0, 1), 0.8),
        "do": Field(Choice(("skip", "flag", "escalate")), "flag"),
    },
    expected="a mapping such as {below: 0.8, do: flag}",
)

LINK = Record(
    Link,
    {
        "name": Field(Text("a link id", check=lambda text: check_id("link", text))),
        "from": Field(Text("a topic filter", check=_source), to="source"),
        "model": Field(Reference("model", "models"), None),
        "when": Field(Text("an expression such as temp_c > 80", check=check_expression), None),
        "window": Field(_WINDOW, None),
        "prompt": Field(Text("a template", check=check_template)),
        "answer": Field(Answer(), None),
        "to": Field(Text("a topic, or a template of one", check=check_template)),
        "deadline_s": Field(Number(0.001, 86_400, "s"), 30.0),
        "overload": Field(Choice(("newest", "oldest", "every")), "newest"),
        "parse": Field(Choice(("json", "text", "number", "auto")), "json"),
        "system": Field(Text("a system message"), None),
        "examples": Field(ListOf(_EXAMPLE, "a list of examples"), ()),
        "decide": Field(MapOf(Text("a field of the answer"), Text("an expression", check=check_expression)), {}),
        "unsure": Field(_UNSURE, None),
        "escalate": Field(ESCALATION, None),
    },
    check=_check_link,
)
