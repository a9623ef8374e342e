"""Home Assistant discovery: one retained message by which a device and its links show up there.

One message describes the whole device (Home Assistant 2024.11 or later): `homeassistant/device/<device>/config`. What a
link answers is read from `out/link/<name>`, because the link's own topic may differ from reading to reading. Where the
answer is held to a schema, each of its properties becomes an entity.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from device_runtime.device.extension import Device, Extension, Route
from device_runtime.fleet.links import Link
from device_runtime.fleet.settings import HEALTH_INTERVAL_S
from device_runtime.mqtt.messages import DeviceState, Info
from device_runtime.mqtt.packets import Incoming, Subscription
from device_runtime.mqtt.strict_json import dump
from device_runtime.mqtt.topics import HOME_ASSISTANT_STATUS as STATUS_TOPIC
from device_runtime.mqtt.topics import DeviceTopics
from device_runtime.mqtt.topics import home_assistant_config as config_topic

__all__ = ["STATUS_TOPIC", "HomeAssistant", "config_topic", "describe"]

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
    """Announces a device to Home Assistant, or takes back what an earlier start has announced."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._info: Info | None = None  # once it was announced

    def routes(self) -> Sequence[Route]:
        """Home Assistant reports when it has started, and has forgotten what is not retained."""
        if not self._device.config.home_assistant:
            return []
        return [Route(Subscription(STATUS_TOPIC, replay_retained=False), self._status)]

    def announce(self, info: Info) -> None:
        """Describe the device; an empty message takes back what an earlier start may have described."""
        with self._lock:
            self._info = info
        config = self._device.config
        message = describe(info, config.links) if config.home_assistant else b""
        self._device.client.publish(config_topic(config.device), message, qos=1, retain=True)

    def _status(self, message: Incoming) -> None:
        with self._lock:
            info = self._info
        if info is not None and message.payload == b"online" and self._device.limiter.admits("announcements"):
            self.announce(info)


def describe(info: Info, links: Sequence[Link]) -> bytes:
    """The discovery message of one device, to be retained."""
    topics = DeviceTopics(info.device)
    prefix = f"stonechat_{info.device}"
    components = dict(_own(topics))
    for link in links:
        components |= dict(_of_link(topics, link))
    for key, component in components.items():
        component["unique_id"] = f"{prefix}_{key}"
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
            "components": components,
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


def _of_link(topics: DeviceTopics, link: Link) -> Iterator[tuple[str, dict[str, Any]]]:
    topic, key = topics.link(link.name), f"link_{link.name}"
    about = {"state_topic": topic, "json_attributes_topic": topic}
    properties = _properties(link.answer)
    if not properties:
        value = "value_json.text" if link.answer is None else "value_json.answer | tojson"
        template = f"{{{{ ({value})[:{_LONGEST_STATE}] }}}}"
        yield key, {"platform": "sensor", "name": link.name, "value_template": template, **about}
    for name, schema in properties.items():
        value = f"value_json.answer[{json.dumps(name)}]"
        component: dict[str, Any] = {"platform": "sensor", "name": f"{link.name} {name}", **about}
        if schema.get("type") == "boolean":
            component["platform"] = "binary_sensor"
            component["value_template"] = f"{{{{ 'ON' if {value} | default(false) else 'OFF' }}}}"
        elif all(isinstance(word, str) for word in schema.get("enum", [None])):
            component |= {"device_class": "enum", "options": schema["enum"]}
            component["value_template"] = f"{{{{ {value} | default(none) }}}}"
        elif schema.get("type") in ("number", "integer"):
            component["state_class"] = "measurement"
            component["value_template"] = f"{{{{ {value} | default(none) }}}}"
        else:
            component["value_template"] = f"{{{{ ({value} | default('') | string)[:{_LONGEST_STATE}] }}}}"
        yield f"{key}_{re.sub('[^a-zA-Z0-9_-]', '_', name)}", component


def _properties(answer: Mapping[str, Any] | None) -> Mapping[str, Mapping[str, Any]]:
    """Names and schemas of an answer's properties, where it is an object."""
    properties = answer.get("properties") if answer is not None else None
    if not isinstance(properties, dict):
        return {}
    return {name: schema for name, schema in properties.items() if isinstance(schema, dict)}
