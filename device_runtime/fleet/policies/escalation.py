"""`escalate` in a fleet file: when a question goes on to a larger model, where that is, and what may go there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from device_runtime.brain.site import is_local_name
from device_runtime.errors import ConfigurationError
from device_runtime.fleet.yaml_schema import Choice, Field, Integer, ListOf, Number, Path_, Plain, Record, Report, Text
from device_runtime.mqtt.topics import check_id

__all__ = ["ESCALATION", "REDACTIONS", "Escalation", "Reason", "Redaction", "Target"]

Reason = Literal["unsure", "unfamiliar", "malformed", "late", "hot", "busy"]
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True)
class Target:
    """Where the larger model is: exactly one of an HTTP address, a device and a pool."""

    url: str | None = None  # of an OpenAI-compatible server, up to and with /v1
    device: str | None = None  # a device at the same broker
    pool: str | None = None  # a pool at the same broker
    model: str | None = None  # as the far side calls it; needed for a url
    key_file: str | None = None  # a file with the API key, relative to the fleet file

    @property
    def name(self) -> str:
        """As replies call it."""
        if self.url is not None:
            parts = urlsplit(self.url)
            return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        return f"device {self.device}" if self.device is not None else f"pool {self.pool}"


@dataclass(frozen=True)
class Redaction:
    """What does not leave the device: a field of readings, at any depth, or what matches a pattern."""

    field: str | None = None  # its name; `topic` is the reading's topic
    pattern: str | None = None  # a regular expression
    replace: str | None = None  # what takes its place, `with` in the file; None: the field is left out


@dataclass(frozen=True)
class Escalation:
    """When a question goes on to a larger model, and how."""

    to: Target  # where the larger model is
    when: tuple[Reason, ...] = REASONS  # the reasons that count
    below: float = 0.8  # the least confidence of an answer's fields, under which it is unsure
    decides: Literal["unsure", "all"] = "unsure"  # what the larger model decides of an unsure answer
    late_s: float | None = None  # what the answer of this device may take; None: half of the deadline
    hot_c: float = 80.0  # from this temperature of the processor on, the device is spared
    busy: int | None = None  # from so many that wait on, new ones go on; None: where the queue is full
    timeout_s: float = 20.0  # that the far side may take, where the deadline leaves as much
    allow: Literal["on-site", "off-site"] = "on-site"  # off-site: to addresses that are not of private networks
    redact: tuple[Redaction, ...] = ()  # what does not leave the device, and is in no record
    requests_a_day: int | None = None  # at most so many go on each day (UTC), also across restarts
    system: str | None = None  # the larger model's instruction; None: made of the task, where the bundle has one
    at_once: int = 2  # questions that are under way at the same time
    keep: int = 1000  # answers of the far side that are kept as examples; 0 keeps none


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{text!r} is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigurationError(f"{text!r} is no URL of a server; expected one such as http://server.local:8080/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError(f"found more than an address and a path in {parts.scheme}://{host}…; keys: key_file")
    return text.rstrip("/")


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ConfigurationError(f"{text!r} is no regular expression: {error}") from None
    return text


def _redaction(value: Any) -> Redaction:
    """One entry of `redact`: the name of a field, or a mapping."""
    if isinstance(value, str) and value:
        return Redaction(value)
    known = {"field", "pattern", "with"}
    if not isinstance(value, Mapping) or set(value) - known or ("field" in value) == ("pattern" in value):
        raise ConfigurationError(f"found {value!r}; expected a field's name, {{field: …}} or {{pattern: …, with: …}}")
    texts = {name: text for name, text in value.items() if isinstance(text, str) and (text or name == "with")}
    if len(texts) < len(value):
        raise ConfigurationError(f"found {value!r}; expected texts, in quotes where they are numbers")
    if "pattern" in texts and _pattern(texts["pattern"]) and "with" not in texts:
        raise ConfigurationError("a pattern needs `with`: the text that takes the place of what matches")
    return Redaction(texts.get("field"), texts.get("pattern"), texts.get("with"))


def _check_target(target: Target, path: Path_, report: Report) -> None:
    given = [name for name in ("url", "device", "pool") if getattr(target, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        report.add_at(path, f"found {found}; expected exactly one of url, device and pool")
    elif given == ["url"] and target.model is None:
        report.add_at(path, "an HTTP server is asked for a model by name; add `model: NAME`")
    elif given != ["url"] and target.key_file is not None:
        report.add_at(path, "`key_file` belongs to a url; devices and pools are asked over this device's broker")


def _check(policy: Escalation, path: Path_, report: Report) -> None:
    url = policy.to.url
    if url is None:
        return
    parts = urlsplit(url)
    if is_local_name(parts.hostname or ""):
        return
    if policy.allow != "off-site":
        text = (
            f"{parts.hostname} is outside of this site (private addresses, names without a dot, .local, .lan, "
            ".home.arpa, .internal); readings go there only with `allow: off-site`"
        )
        report.add_at((*path, "to"), text)
    elif parts.scheme != "https":
        report.add_at((*path, "to"), "off the site everybody on the way could read it; expected https://")


REDACTIONS = ListOf(Plain("the name of a field, or a mapping such as {field: badge, with: X}", _redaction), "a list")

ESCALATION = Record(
    Escalation,
    {
        "to": Field(
            Record(
                Target,
                {
                    "url": Field(Text("a URL such as http://server.local:8080/v1", check=_url), None),
                    "device": Field(Text("a device id", check=lambda text: check_id("device", text)), None),
                    "pool": Field(Text("a pool id", check=lambda text: check_id("group", text)), None),
                    "model": Field(Text("the name of a model at the far side"), None),
                    "key_file": Field(Text("the path of a file with an API key"), None),
                },
                expected="a mapping such as {url: http://server.local:8080/v1, model: qwen3}",
                check=_check_target,
            )
        ),
        "when": Field(ListOf(Choice(REASONS), f"a list of {', '.join(REASONS)}"), REASONS),
        "below": Field(Number(0, 1), 0.8),
        "decides": Field(Choice(("unsure", "all")), "unsure"),
        "late_s": Field(Number(0.001, 86_400, "s"), None),
        "hot_c": Field(Number(0, 150, "°C"), 80.0),
        "busy": Field(Integer(1, 10_000, "that wait"), None),
        "timeout_s": Field(Number(0.01, 3_600, "s"), 20.0),
        "allow": Field(Choice(("on-site", "off-site")), "on-site"),
        "redact": Field(REDACTIONS, ()),
        "requests_a_day": Field(Integer(0, 1_000_000_000, "requests"), None),
        "system": Field(Text("a system message"), None),
        "at_once": Field(Integer(1, 64, "questions"), 2),
        "keep": Field(Integer(0, 100_000, "examples"), 1000),
    },
    expected="a mapping such as {to: {url: http://server.local:8080/v1, model: qwen3}}",
    check=_check,
)
