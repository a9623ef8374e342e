"""Recorded readings through a fleet file's links, without a broker: what would be answered, and how often right."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.brain.question import last_of_user
from device_runtime.brain.router import Router
from device_runtime.engine.opening import open_model
from device_runtime.errors import ConfigurationError, ContextOverflowError, IncompleteError, LinkError, SchemaError
from device_runtime.fleet.file import Fleet
from device_runtime.fleet.link_faults import why_refused
from device_runtime.fleet.links import Link, Wakeup, Windows, read
from device_runtime.fleet.questions import answer_fields, is_decided
from device_runtime.mqtt.messages import Route
from device_runtime.mqtt.strict_json import MessageError, parse_line
from device_runtime.mqtt.topics import matches
from device_runtime.records.text_file import lines_in, read_text
from device_runtime.records.typed_json import write

if TYPE_CHECKING:
    from device_runtime.engine.opening import OpenedModel

__all__ = ["Recorded", "Replay", "Replayed", "parse_recorded", "read_recorded"]


@dataclass(frozen=True)
class Recorded:
    """A reading, and what is right for it as far as that is known."""

    topic: str | None  # None: of whichever link there is
    payload: bytes
    truth: Mapping[str, Any] = field(default_factory=dict)
    time_s: float | None = None


@dataclass(frozen=True)
class Replayed:
    """What a link made of a reading."""

    link: str
    topic: str
    said: Mapping[str, Any]  # as the link would publish it; `error` where there is no answer
    truth: Mapping[str, Any]
    held_back: bool = False  # it would not go to the link's topic
    seconds: float = 0.0
    prompt_tokens: int = 0
    reused_tokens: int = 0

    @property
    def right(self) -> dict[str, bool]:
        """By field whose truth is known."""
        answer = self.said.get("answer")
        found = answer if isinstance(answer, Mapping) else {}
        return {name: found.get(name) == value for name, value in self.truth.items()}

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        truth = {"truth": dict(self.truth), "right": self.right} if self.truth else {}
        held = {"held_back": True} if self.held_back else {}
        return {"link": self.link, "topic": self.topic, **self.said, **held, **truth, "seconds": round(self.seconds, 3)}


def read_recorded(path: Path) -> list[Recorded]:
    """Read a file of readings, a line each: `{"topic": …, "reading": …, "answer": {…}}`, or `topic payload` as
    `mosquitto_sub -v` prints it.

    Raises:
        ConfigurationError: it cannot be read, or names the first lines that are neither.
    """
    return parse_recorded(read_text(path), str(path), str(path))


def parse_recorded(text: str, where: str, line_of: str) -> list[Recorded]:
    """The same of the text of such a file; an error names the whole by `where`, and a line by `line_of` and its number.

    Raises:
        ConfigurationError: it names the first lines that are no readings.
    """
    found, faults = [], []
    for number, line in enumerate(lines_in(text.removeprefix("\ufeff")), 1):
        if not line.strip():
            continue
        try:
            found.append(_recorded(line))
        except ValueError as error:
            faults.append(f"{line_of}:{number}: {error}")
    if faults:
        more = f"\n… and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ConfigurationError("\n".join(faults[:10]) + more)
    if not found:
        raise ConfigurationError(f'{where} holds no readings; a line is {{"topic": "plant/3", "reading": {{…}}}}.')
    return found


def _recorded(line: str) -> Recorded:
    if not line.startswith("{"):
        topic, _, payload = line.partition(" ")
        if not payload:
            raise ValueError(f"found {line[:60]!r}; expected a JSON object, or a topic, a space and a payload")
        return Recorded(topic, payload.encode())
    try:
        row = parse_line(line)
    except MessageError as error:
        raise ValueError(str(error).rstrip(".")) from None
    known = {"topic", "reading", "answer", "time"}
    if "reading" not in row or set(row) - known:
        wrong = ", ".join(map(repr, sorted(set(row) - known))) or "no `reading`"
        raise ValueError(f"found {wrong[:80]}; expected `reading`, and maybe `topic`, `answer` and `time`")
    truth, topic, time_s = row.get("answer") or {}, row.get("topic"), row.get("time")
    if (
        not isinstance(truth, Mapping)
        or not isinstance(topic, str | None)
        or not isinstance(time_s, int | float | None)
    ):
        raise ValueError("`answer` is an object, `topic` a text and `time` a number of seconds")
    return Recorded(topic, json.dumps(row["reading"], ensure_ascii=False).encode(), truth, time_s)


def _listens(link: Link, recorded: Recorded) -> bool:
    return recorded.topic is None or matches(link.source, recorded.topic)


class Replay:
    """The links of one device, with its models opened."""

    def __init__(
        self,
        fleet: Fleet,
        device: str,
        *,
        only: str | None = None,
        threads: int | None = None,
        models: Mapping[str, Any] | None = None,
    ) -> None:
        """Open what is needed.

        Args:
            only: one link's name; None takes all that the device serves.
            models: by name, in place of the fleet file's bundles; they are closed at the end.

        Raises:
            ConfigurationError: there is no such device or link.
            StonechatError: a bundle cannot be opened.
        """
        if device not in fleet.devices:
            raise ConfigurationError(
                f"{fleet.path} has no device {device!r}; its devices are: {', '.join(fleet.devices) or 'none'}"
            )
        served = fleet.devices[device].links
        links = [link for link in fleet.links_of(device) if only in (None, link.name)]
        if not links:
            raise ConfigurationError(
                f"{fleet.path}: the device {device!r} serves "
                + (f"no link {only!r}" if only else "no links")
                + f"; its links are {', '.join(served) or 'none'}."
            )
        self._now_s = 0.0
        self.of_no_link = 0  # readings whose topic no link listens to, as far as `run` has come
        self.links = [Windows(link, clock=lambda: self._now_s) for link in links]
        entries = fleet.models_of(device)
        names = tuple(entries)
        self._default = names[0]
        self._limits = {name: entry.max_new for name, entry in entries.items()}
        self._systems = {name: entry.system for name, entry in entries.items()}
        self._models: dict[str, OpenedModel] = {}
        routing = fleet.routing(device) if any(link.model is None for link in links) else None
        self._routed = routing is not None
        self._router = None
        if routing is not None and models is None:  # a device that is asked in place of a bundle finds the model itself
            self._router = Router.of_bundles(routing, {name: entry.bundle for name, entry in entries.items()})
        for name in dict.fromkeys(name for link in links for name in self._may_ask(link)):
            entry = entries[name]
            given = None if models is None else models[name]
            self._models[name] = given or open_model(entry.bundle, threads=threads or entry.threads)

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_: object) -> None:
        for model in self._models.values():
            model.close()

    def _may_ask(self, link: Link) -> tuple[str, ...]:
        return link.may_ask(tuple(self._limits), routed=self._routed)

    def _schemas(self, link: Link) -> Iterator[Mapping[str, Any] | None]:
        """What its answers may be held to, by whichever model gives them; None: nothing that is known here."""
        names = self._may_ask(link)
        if not link.answer_of_model or len(names) == 1:
            yield link.answer
            return
        for name in names:
            purpose = None if self._router is None else self._router.purpose_of(name)
            yield None if purpose is None else purpose.answer

    def _refusal(self, link: Link, name: str) -> str:
        """Why a model cannot answer a link; empty where it can."""
        model = self._models[name]
        return why_refused(link, name, model.manifest, self._limits[name], getattr(model, "check_schema", None))

    def run(self, readings: Sequence[Recorded]) -> Iterator[Replayed | None]:
        """What comes of each reading, for each link that it concerns; None where it does not wake one.

        Raises:
            ConfigurationError: before the first, an `answer` that no link of its topic can give.
        """
        faults = [fault for recorded in readings for fault in self._impossible(recorded)]
        if faults:
            more = f"\n… and {len(faults) - 10} more" if len(faults) > 10 else ""
            raise ConfigurationError("\n".join(faults[:10]) + more)
        for number, recorded in enumerate(readings):
            self._now_s = float(number) if recorded.time_s is None else recorded.time_s
            concerned = [windows for windows in self.links if _listens(windows.link, recorded)]
            self.of_no_link += not concerned
            for windows in concerned:
                topic = recorded.topic or windows.link.source.replace("+", "example").replace("#", "example")
                yield self._one(windows, topic, recorded)

    def _impossible(self, recorded: Recorded) -> Iterator[str]:
        """The faults of an `answer`: fields that no link has, values that none can say, whichever of its models the
        router finds; none where a link's answers may be anything.
        """
        links = [windows.link for windows in self.links if _listens(windows.link, recorded)]
        schemas = [schema for link in links for schema in self._schemas(link)]
        fields: dict[str, list[Mapping[str, Any]]] = {}
        for schema in schemas:
            if schema is None or not isinstance(schema.get("properties"), Mapping):
                return
            for name, what in schema["properties"].items():
                fields.setdefault(name, []).append(what if isinstance(what, Mapping) else {})
        for name, value in recorded.truth.items() if schemas else ():
            where = f"the right answer of {recorded.payload.decode()[:60]}"
            if name not in fields:
                yield f"{where}: found the field {name!r}; expected {', '.join(fields)}"
            elif all("enum" in what and value not in what["enum"] for what in fields[name]):
                known = ", ".join(dict.fromkeys(str(label) for what in fields[name] for label in what["enum"]))
                yield f"{where}: {name} is {json.dumps(value, ensure_ascii=False)}; expected one of {known}"

    def _one(self, windows: Windows, topic: str, recorded: Recorded) -> Replayed | None:
        link = windows.link
        try:
            wakeup = windows.consider(read(topic, recorded.payload, self._now_s, link.parse))
        except (LinkError, MessageError) as error:
            return Replayed(link.name, topic, {"error": str(error)}, recorded.truth)
        return None if wakeup is None else self._ask(link, topic, wakeup, recorded.truth)

    def _ask(self, link: Link, topic: str, wakeup: Wakeup, truth: Mapping[str, Any]) -> Replayed:
        started_s = time.perf_counter()
        if is_decided(link, wakeup.decided):
            fields, held_back = answer_fields(link, json.dumps(wakeup.decided), {}, "")
            return Replayed(link.name, topic, fields, truth, held_back)
        name, route = link.model or self._default, dict[str, Any]()
        if link.model is None and self._router is not None:
            chosen = self._router.choose(last_of_user(wakeup.question.messages), topic.split("/"))
            name, purpose = chosen.model, self._router.purpose_of(chosen.model)
            route = {"route": write(Route(model=name, why=chosen.why))}
            if why := self._refusal(link, name):
                return Replayed(link.name, topic, {"error": why} | route, truth)
            wakeup = wakeup.of(link.answered_with(None if purpose is None else purpose.answer))
        link, question = wakeup.link, wakeup.question
        messages, system = list(question.messages), self._systems[name]
        if system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        try:
            generation = self._models[name].generate(
                messages, max_new=self._limits[name], schema=question.schema, head=question.head,
                nothing=question.nothing,
            )  # fmt: skip
            text = "".join(generation)
        except (ContextOverflowError, IncompleteError, SchemaError) as error:  # of this reading, as on a device
            return Replayed(link.name, topic, {"error": str(error)} | route, truth)
        result = generation.result
        confidence = {field: round(share, 4) for field, share in (result.confidence or {}).items()}
        fields, held_back = answer_fields(link, text, confidence, "; ".join(result.unfamiliar))
        return Replayed(
            link.name, topic, fields | route, truth, held_back, time.perf_counter() - started_s, result.prompt_tokens,
            result.cached_tokens,
        )  # fmt: skip
