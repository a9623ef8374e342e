"""Home Assistant discovery: one retained message by which a device and its links show up there.

One message describes the whole device (Home Assistant 2024.11 or later): `homeassistant/device/<device>/config`. What
a link answers is read from `out/link/<name>`, because the link's own topic may differ from reading to reading; a link
that reads several topics has entities for each, on `out/link/<name>/<place>`. Where the answer is held to a schema,
each of its properties becomes an entity. An entity that is no more is in the message once more with its platform alone,
which has Home Assistant remove it.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from device_runtime.device.extension import Device, Extension, Route
from device_runtime.device.extensions.link_places import place_of, varies
from device_runtime.device.extensions.link_runner import LinkRunner
from device_runtime.fleet.links import Link, looks_back
from device_runtime.fleet.questions import typed_names
from device_runtime.fleet.settings import HEALTH_INTERVAL_S
from device_runtime.mqtt.messages import DeviceState, Info
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.strict_json import dump
from device_runtime.mqtt.topics import HOME_ASSISTANT_STATUS as STATUS_TOPIC
from device_runtime.mqtt.topics import DeviceTopics
from device_runtime.mqtt.topics import home_assistant_config as config_topic

__all__ = ["STATUS_TOPIC", "HomeAssistant", "components_of", "config_topic", "describe"]

CLEAN_S = 600.0  # that a removed entity stays in the message, by its platform alone: Home Assistant may be away
NEW_TOPICS_S = 5.0  # between messages about topics that were answered for the first time
_LONGEST_STATE = 255  # characters of an entity's state in Home Assistant
_ON_AIR = (DeviceState.READY.value, DeviceState.BUSY.value)

# key, name, field of out/health, unit, device class, digits shown
_HEALTH: tuple[tuple[str, str, str, str | None, str | None, int], ...] = (
    ("speed", "Speed", "tps_p50", "tok/s", None, 1),
    ("first_token", "Time to first token", "ttft_ms_p95", "ms", "duration", 0),
    ("queue", "Waiting", "queue", None, None, 0),
    ("answers", "Answers", "answers", None, None, 0),
    ("errors", "Errors", "errors", None, None, 0),
    ("memory", "Memory", "rss_mb", "MB", "data_size", 0),
    ("temperature", "Temperature", "temperature_c", "°C", "temperature", 1),
)


class HomeAssistant(Extension):
    """Announces a device to Home Assistant, and takes back what is no more."""

    def __init__(self, device: Device, links: LinkRunner) -> None:
        self._device, self._links, self._places = device, links, links.places
        self._lock = threading.Lock()
        self._info: Info | None = None  # once it was announced
        self._described: Mapping[str, Mapping[str, str]] | None = None  # the places that the last message has
        self._gone = {  # components of an earlier start, until Home Assistant has had the time to remove them
            key: platform for key, platform in links.places.components.items()
        }
        self._known: dict[str, str] = {}  # components that the last message has, with their platforms
        self._waits = False  # for models to be opened
        self._clean_s = time.monotonic() + CLEAN_S
        self._next_s = 0.0

    def routes(self) -> Sequence[Route]:
        """Home Assistant reports when it has started, and has forgotten what is not retained."""
        if not self._device.config.home_assistant:
            return []
        return [Route(Subscription(STATUS_TOPIC, replay_retained=False), self._status)]

    def announce(self, info: Info) -> None:
        """Describe the device; an empty message takes back what an earlier start may have described."""
        with self._lock:
            self._info = info
            for link, place in self._places.left_behind:
                topic = self._device.topics.link(link, place)
                self._device.client.publish(topic, b"", qos=1, retain=True)
            self._describe(info)

    def tick(self) -> None:
        """Describe topics that were answered for the first time, and clean up after a while."""
        with self._lock:
            now_s = time.monotonic()
            clean = bool(self._gone) and now_s >= self._clean_s
            new = self._described is not None and now_s >= self._next_s and self._places.places() != self._described
            if self._info is not None and (clean or new or self._waits):
                if clean:
                    self._gone = {}
                self._describe(self._info)

    def _describe(self, info: Info) -> None:
        config, self._next_s = self._device.config, time.monotonic() + NEW_TOPICS_S
        self._waits = config.home_assistant and any(map(self._is_awaited, config.links))
        if self._waits:  # what an earlier start described holds
            return
        self._described = self._places.places()
        message = b""
        if config.home_assistant:
            links = [link for link in config.links if link.name not in (info.links_refused or {})]
            links = [shown for link in links for shown in self._shown(link)]
            components = components_of(info, links, self._described)
            if gone := self._known.keys() - components.keys():  # another bundle has another answer
                self._gone |= {key: self._known[key] for key in gone}
                self._clean_s = time.monotonic() + CLEAN_S
            self._gone = {key: platform for key, platform in self._gone.items() if key not in components}
            removed = {key: {"platform": platform} for key, platform in self._gone.items()}
            message = describe(info, components | removed)
            self._known = {key: component["platform"] for key, component in components.items()}
            self._places.described(self._known | self._gone)
        self._device.client.publish(config_topic(config.device), message, qos=1, retain=True)

    def _models_of(self, link: Link) -> Sequence[str]:
        return link.may_ask(self._device.runner.names, routed=self._device.router is not None)

    def _is_awaited(self, link: Link) -> bool:
        """Whether a model is still being opened that says what fields a link's answer has."""
        runner = self._device.runner
        return link.answer_of_model and not runner.open_names.union(runner.not_open).issuperset(self._models_of(link))

    def _shown(self, link: Link) -> list[Link]:
        """A link with all fields that an answer may have, whichever of its models the router finds, and once more
        without any where that may be a text."""
        if not link.answer_of_model:
            return [link]
        opened = self._device.runner.open_names
        names = [name for name in self._models_of(link) if name in opened]
        answers = [self._device.answering(link, name).answer for name in names if not self._links.refusal(link, name)]
        desk = self._links.escalations.of(link)
        if self._device.router is not None and link.model is None and desk and "unfamiliar" in desk.policy.when:
            answers.append(None)  # what is for none of the models is passed on, and a text comes back
        held = [answer for answer in answers if answer is not None]
        shown = [link.answered_with(held[0] if len(held) == 1 else _together(held))] if held else []
        return [*shown, link.answered_with(None)] if None in answers else shown

    def _status(self, message: Incoming) -> None:
        with self._lock:
            info = self._info
        if info is not None and message.payload == b"online" and self._device.limiter.admits("announcements"):
            self.announce(info)


def _together(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A schema with the properties of all; where two have one of a name, it has the labels of both, or is any value."""
    found: dict[str, Any] = {}
    for name, schema in (pair for answer in answers for pair in _properties(answer).items()):
        before = found.setdefault(name, schema)
        if before != schema:
            labels = [*dict.fromkeys([*before.get("enum", []), *schema.get("enum", [])])]
            found[name] = {"enum": labels} if "enum" in before and "enum" in schema else {}
    return {"type": "object", "properties": found}


def components_of(
    info: Info, links: Sequence[Link], places: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, Any]]:
    """What Home Assistant shows of a device, by key.

    Args:
        places: the topics that its links have answered, by link and place; a link with wildcards has entities for
            each.
    """
    topics = DeviceTopics(info.device)
    components = dict(_own(topics))
    for link in links:
        if not varies(link):
            components |= dict(_of_link(link, f"link_{link.name}", link.name, topics.link(link.name)))
        for place, topic in places.get(link.name, {}).items():
            name = f"{link.name} {place_of(link, topic)[1]}"
            components |= dict(_of_link(link, f"link_{link.name}_{place}", name, topics.link(link.name, place)))
    taken: set[str] = set()
    for key, component in components.items():
        component["unique_id"] = f"stonechat_{info.device}_{key}"
        component["name"] = _free(component["name"], taken)
    return components


def _free(name: str, taken: set[str]) -> str:
    """A name that no other entity of the device has, as Home Assistant compares them."""
    free, number = name, 1
    while re.sub("[^a-z0-9]+", "_", free.casefold()) in taken:
        number += 1
        free = f"{name} (link)" if number == 2 else f"{name} ({number})"
    taken.add(re.sub("[^a-z0-9]+", "_", free.casefold()))
    return free


def describe(info: Info, components: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The discovery message of one device, to be retained."""
    topics = DeviceTopics(info.device)
    prefix = f"stonechat_{info.device}"
    available = f"{{{{ 'online' if value_json.state in {list(_ON_AIR)} else 'offline' }}}}"
    return dump(
        {
            "device": {
                "identifiers": [prefix],
                "name": info.device,
                "manufacturer": "stonechat",
                "model": info.board,
                "sw_version": info.version,
            },
            "origin": {"name": "stonechat", "sw_version": info.version},
            "availability": [{"topic": topics.state, "value_template": available}],
            "components": dict(components),
        }
    )


def _own(topics: DeviceTopics) -> Iterator[tuple[str, dict[str, Any]]]:
    """What every device has."""
    yield (
        "state",
        {
            "platform": "sensor",
            "name": "State",
            "device_class": "enum",
            "options": [state.value for state in DeviceState],
            "state_topic": topics.state,
            "value_template": "{{ value_json.state }}",
            "availability": [],  # `lost` is a state worth showing
            "entity_category": "diagnostic",
        },
    )
    for key, name, field, unit, device_class, digits in _HEALTH:
        component = {
            "platform": "sensor",
            "name": name,
            "state_topic": topics.health,
            "value_template": f"{{{{ value_json.{field} | default(none) }}}}",
            "state_class": "measurement",
            "unit_of_measurement": unit,
            "device_class": device_class,
            "suggested_display_precision": digits,
            "expire_after": round(2.5 * HEALTH_INTERVAL_S),
            "entity_category": "diagnostic",
        }
        yield key, {name: value for name, value in component.items() if value is not None}


def _of_link(link: Link, key: str, label: str, topic: str) -> Iterator[tuple[str, dict[str, Any]]]:
    about = {"state_topic": topic, "json_attributes_topic": topic}
    if looks_back(link):  # Home Assistant keeps no attributes of more than 16 KiB
        about["json_attributes_template"] = "{{ dict(value_json.items() | rejectattr(0, 'eq', 'window')) | tojson }}"
    properties = _properties(link.answer)
    if not properties:
        text = ("value_json.text", "string") if link.answer is None else ("value_json.answer", "tojson")
        template = _cut(*text)
        yield key, {"platform": "sensor", "name": label, "value_template": template, **about}
    for name, schema in properties.items():
        value = f"(value_json.answer or {{}})[{json.dumps(name)}]"  # null, where the model has no answer
        component: dict[str, Any] = {"platform": "sensor", "name": f"{label} {name}", **about}
        if schema.get("type") == "boolean":
            component["platform"] = "binary_sensor"
            component["value_template"] = f"{{{{ ('ON' if {value} else 'OFF') if {value} is boolean else none }}}}"
        elif all(isinstance(word, str) for word in schema.get("enum", [None])):
            component |= {"device_class": "enum", "options": schema["enum"]}
            component["value_template"] = f"{{{{ {value} | default(none) }}}}"
        elif schema.get("type") in ("number", "integer"):
            component["state_class"] = "measurement"
            component["value_template"] = f"{{{{ {value} | default(none) }}}}"
        else:
            component["value_template"] = _cut(value, "string")
        yield f"{key}_{_safe(name)}", component
    yield from _of_confidence(link, key, label, topic)


def _cut(value: str, written: str) -> str:
    """A template for a text; unknown where there is no value, as an empty text would be a state."""
    return f"{{{{ ({value} | {written})[:{_LONGEST_STATE}] if ({value} | default(none)) is not none else none }}}}"


def _of_confidence(link: Link, key: str, label: str, topic: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """How sure the model is of the answer: the least of its fields."""
    if set(typed_names(link.answer)) - set(link.decide):
        yield (
            f"confidence_{key}",  # no property's key begins so
            {
                "platform": "sensor",
                "name": f"{label} confidence",
                "state_topic": topic,
                "value_template": "{{ (value_json.confidence.values() | min * 100) | round(0) "
                "if value_json.confidence | default(none) else none }}",
                "unit_of_measurement": "%",
                "state_class": "measurement",
                "entity_category": "diagnostic",
            },
        )


def _safe(name: str) -> str:
    """A property's name as part of a key; two names never become one."""
    safe = re.sub("[^a-zA-Z0-9_-]", "_", name)
    return safe if safe == name else f"{safe[:64]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _properties(answer: Mapping[str, Any] | None) -> Mapping[str, Mapping[str, Any]]:
    """Names and schemas of an answer's properties, where it is an object."""
    properties = answer.get("properties") if answer is not None else None
    if not isinstance(properties, dict):
        return {}
    return {name: schema for name, schema in properties.items() if isinstance(schema, dict)}
