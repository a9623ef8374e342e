"""Home Assistant finds a device and its links without configuration.

The schema below is what homeassistant/components/mqtt/{schemas,sensor,binary_sensor}.py of Home Assistant accept, as
far as stonechat uses it; unknown keys are faults. Templates are rendered as Home Assistant does, from real messages.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from jinja2.nativetypes import NativeEnvironment

from device_runtime.device.extensions import home_assistant
from device_runtime.device.extensions.home_assistant import STATUS_TOPIC, components_of, config_topic, describe
from device_runtime.device.extensions.link_places import place_of
from device_runtime.errors import BundleError, SchemaError
from device_runtime.fleet.links import Link, Window
from device_runtime.fleet.policies.escalation import REASONS, Escalation, Reason, Target
from device_runtime.fleet.policies.routing import RouteRule, Routing
from device_runtime.fleet.settings import ModelSettings
from device_runtime.mqtt.messages import Info
from device_runtime.mqtt.topics import DeviceTopics, check_topic, parse
from device_runtime.update.active import open_bundle
from tests.support.far_server import far_server
from tests.support.scripted_fleet import wait_until
from tests.support.scripted_model import ScriptedModel

ROOT = Path(__file__).parents[3]
TEXT = {"type": "string", "minLength": 1}
COMPONENT = {
    "name": TEXT, "unique_id": TEXT, "state_topic": TEXT, "value_template": TEXT, "json_attributes_topic": TEXT,
    "json_attributes_template": TEXT,
    "entity_category": {"enum": ["config", "diagnostic"]}, "expire_after": {"type": "integer", "minimum": 0},
    "availability": {"$ref": "#/$defs/availability"},
}  # fmt: skip
HOME_ASSISTANT = {
    "$defs": {
        "availability": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"topic": TEXT, "value_template": TEXT, "payload_available": TEXT},
                "required": ["topic"],
                "additionalProperties": False,
            },
        },
    },
    "type": "object",
    "properties": {
        "device": {
            "type": "object",
            "properties": {
                "identifiers": {"type": "array", "items": TEXT, "minItems": 1},
                "name": TEXT, "manufacturer": TEXT, "model": TEXT, "sw_version": TEXT,
            },
            "required": ["identifiers"],
            "additionalProperties": False,
        },
        "origin": {
            "type": "object",
            "properties": {"name": TEXT, "sw_version": TEXT},
            "required": ["name"],
            "additionalProperties": False,
        },
        "availability": {"$ref": "#/$defs/availability"},
        "components": {
            "type": "object",
            "additionalProperties": {
                "oneOf": [
                    {
                        "properties": COMPONENT | {
                            "platform": {"const": "sensor"},
                            "device_class": {"enum": ["enum", "duration", "data_size", "temperature"]},
                            "options": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                            "state_class": {"enum": ["measurement", "total", "total_increasing"]},
                            "unit_of_measurement": TEXT,
                            "suggested_display_precision": {"type": "integer", "minimum": 0},
                        },
                        # options belong to the class enum, which has neither a unit nor a state class
                        "if": {"properties": {"device_class": {"const": "enum"}}, "required": ["device_class"]},
                        "then": {
                            "required": ["options"],
                            "not": {"anyOf": [{"required": ["state_class"]}, {"required": ["unit_of_measurement"]}]},
                        },
                        "else": {"not": {"required": ["options"]}},
                        "required": ["platform", "unique_id", "state_topic"],
                        "additionalProperties": False,
                    },
                    {
                        "properties": COMPONENT | {"platform": {"const": "binary_sensor"}},
                        "required": ["platform", "unique_id", "state_topic"],
                        "additionalProperties": False,
                    },
                ]
            },
        },
    },
    "required": ["device", "origin", "components"],
    "additionalProperties": False,
}  # fmt: skip
UNITS = {"duration": {"ms", "s", "min"}, "data_size": {"B", "kB", "MB", "MiB"}, "temperature": {"°C", "°F", "K"}}
ANSWER = {
    "type": "object",
    "properties": {
        "severity": {"enum": ["ok", "warn", "alarm"]},
        "advice": {"type": "string", "maxLength": 400},
        "open": {"type": "boolean"},
        "target °C": {"type": "number"},
    },
}
PLAIN = Link(name="too-hot", source="plant/south/air", prompt="p", to="plant/{{ topic[1] }}/advice")
HELD = Link(name="decide", source="plant/south/soil", prompt="p", to="plant/decision", answer=ANSWER)
LIST = Link(name="list", source="plant/south/soil", prompt="p", to="plant/list", answer={"type": "array"})
ROOMS = Link(name="air", source="building/+/co2", prompt="p", to="advice/{{ topic[1] }}")
INFO = Info("north", "Raspberry Pi 5", "0.1.0")


def message_of(info: Info, links: tuple[Link, ...], places: dict[str, dict[str, str]] | None = None) -> dict[str, Any]:
    return json.loads(describe(info, components_of(info, links, places or {})))


def described(*links: Link) -> dict[str, Any]:
    message = message_of(INFO, links)
    jsonschema.Draft202012Validator(HOME_ASSISTANT).validate(message)
    return message


def state(component: dict[str, Any], payload: dict[str, Any]) -> Any:
    """The entity's state after a message, as Home Assistant's templates give it."""
    return NativeEnvironment().from_string(component["value_template"]).render(value_json=payload)


TARGET = "link_decide_target__C_" + hashlib.sha256("target °C".encode()).hexdigest()[:8]


class TestTheMessage:
    @pytest.mark.parametrize("links", [(), (PLAIN,), (HELD,), (LIST,), (PLAIN, HELD, LIST)])
    def test_it_is_what_home_assistant_accepts(self, links: tuple[Link, ...]) -> None:
        components = described(*links)["components"]
        ids = [component["unique_id"] for component in components.values()]
        assert len(set(ids)) == len(ids)
        for component in components.values():
            assert check_topic(component["state_topic"]).startswith("stonechat/1/north/out/")
            if unit := component.get("unit_of_measurement"):
                assert unit in UNITS.get(component.get("device_class"), {unit})

    def test_two_devices_have_nothing_in_common(self) -> None:
        other = message_of(Info("south", "x", "y"), (PLAIN,))
        mine = described(PLAIN)
        assert not set(mine["device"]["identifiers"]) & set(other["device"]["identifiers"])
        assert not {c["unique_id"] for c in mine["components"].values()} & {
            c["unique_id"] for c in other["components"].values()
        }

    @pytest.mark.parametrize("said, shown", [("ready", "online"), ("busy", "online"), ("lost", "offline")])
    def test_a_device_is_available_while_it_can_answer(self, said: str, shown: str) -> None:
        (availability,) = described()["availability"]
        assert availability["topic"] == DeviceTopics("north").state
        assert state(availability, {"state": said, "boot": 1}) == shown

    def test_health_becomes_sensors(self) -> None:
        components = described()["components"]
        health = {"tps_p50": 51.25, "ttft_ms_p95": 84.0, "queue": 0, "answers": 3, "errors": 0, "rss_mb": 240.1}
        assert state(components["speed"], health) == 51.25
        assert state(components["memory"], health) == 240.1
        assert state(components["temperature"], health) is None  # unknown
        assert state(components["state"], {"state": "lost"}) == "lost"
        assert components["state"]["availability"] == []


class TestLinks:
    def test_a_text_is_a_sensor_cut_to_what_a_state_may_hold(self) -> None:
        component = described(PLAIN)["components"]["link_too-hot"]
        assert state(component, {"text": "Open the roof."}) == "Open the roof."
        assert len(state(component, {"text": "long " * 100})) == 255

    def test_each_property_of_an_answer_is_an_entity(self) -> None:
        components = described(HELD)["components"]
        said = {"answer": {"severity": "warn", "advice": "x" * 300, "open": True, "target °C": 21.5}}
        shown = {name: state(c, said) for name, c in components.items() if name.startswith("link_")}
        assert shown == {
            "link_decide_severity": "warn", "link_decide_advice": "x" * 255, "link_decide_open": "ON",
            TARGET: 21.5,
        }  # fmt: skip
        assert state(components["link_decide_open"], {"answer": {"open": False}}) == "OFF"
        assert components["link_decide_severity"]["options"] == ["ok", "warn", "alarm"]
        assert components["link_decide_open"]["platform"] == "binary_sensor"

    def test_a_property_that_is_not_there_is_unknown(self) -> None:
        components = described(HELD)["components"]
        shown = {name: state(c, {"answer": {}}) for name, c in components.items() if name.startswith("link_")}
        assert shown == {
            "link_decide_severity": None, "link_decide_advice": None, "link_decide_open": None,
            TARGET: None,
        }  # fmt: skip

    @pytest.mark.parametrize("said", [{"answer": None, "confidence": {}}, {"answer": None}])
    @pytest.mark.parametrize(
        "kind",
        [
            {"enum": ["ok", "warn"]}, {"type": "string"}, {"type": "boolean"}, {"type": "number"}, {"type": "integer"},
            {"enum": [1, 2]}, {"enum": [True, False]}, {"enum": ["ok", None]}, {"const": "on"}, {},
            {"type": ["string", "null"]}, {"type": "array"}, {"type": "object"},
        ],
    )  # fmt: skip
    def test_an_answer_that_was_held_back_is_unknown(self, said: dict[str, Any], kind: dict[str, Any]) -> None:
        """Of all kinds: no empty text, and not OFF, as nobody knows. Home Assistant takes `None` for it."""
        answer = {"type": "object", "properties": {"it is": kind}}
        components = described(replace(HELD, answer=answer))["components"]
        shown = [state(c, said) for name, c in components.items() if name.startswith(("link_", "confidence_"))]
        assert shown and set(shown) == {None}

    @pytest.mark.parametrize("answer", [{"type": "array"}, {"enum": ["a", "b"]}, {"type": "string"}])
    def test_an_answer_that_is_no_object_and_was_held_back_is_unknown(self, answer: dict[str, Any]) -> None:
        component = described(replace(HELD, answer=answer))["components"]["link_decide"]
        assert state(component, {"answer": None}) is None

    def test_an_empty_text_is_one(self) -> None:
        assert state(described(HELD)["components"]["link_decide_advice"], {"answer": {"advice": ""}}) == ""

    def test_earlier_readings_are_no_attributes(self) -> None:
        """Its recorder keeps none of an entity that has more than 16 KiB of them."""
        looking_back = replace(HELD, window=Window(), prompt="{{ window | tojson }}")
        components = described(looking_back)["components"].values()
        (template, *others) = {c["json_attributes_template"] for c in components if "json_attributes_topic" in c}
        said = {"answer": {"open": True}, "reading": {"t": "21 °C < 3"}, "window": [{"t": 3}]}
        shown = NativeEnvironment().from_string(template).render(value_json=said)
        assert json.loads(shown if isinstance(shown, str) else json.dumps(shown)) == {
            name: value for name, value in said.items() if name != "window"
        }
        assert not others and "json_attributes_template" not in described(HELD)["components"]["link_decide_severity"]

    def test_the_least_confidence_is_shown(self) -> None:
        said = {"answer": {}, "confidence": {"severity": 0.914, "open": 0.5}}
        assert state(described(HELD)["components"]["confidence_link_decide"], said) == 50
        assert "confidence_link_too-hot" not in described(PLAIN)["components"]

    def test_names_and_keys_of_entities_do_not_collide(self) -> None:
        """A link may be called as a figure of the device is, and properties may differ in a character that a key
        cannot have."""
        properties = {name: {"type": "number"} for name in ("temp c", "temp_c", "temp-c", "Temp C")}
        answer = {"type": "object", "properties": properties}
        links = [Link(name=name, source=f"x/{name}", prompt="p", to="y") for name in ("state", "memory", "a", "a-b")]
        links += [Link(name="held", source="x/h", prompt="p", to="y", answer=answer)]
        components = described(*links)["components"]
        names = [re.sub("[^a-z0-9]+", "_", component["name"].casefold()) for component in components.values()]
        assert len(set(names)) == len(names)
        assert len([key for key in components if key.startswith("link_held_")]) == 4

    def test_each_topic_of_a_link_has_entities_of_its_own(self) -> None:
        """One sensor for all rooms showed whichever came last."""
        topics = ["building/a/co2", "building/b/co2", "building/A b/co2"]
        places = {"air": {place_of(ROOMS, topic)[0]: topic for topic in topics}}
        components = message_of(INFO, (ROOMS,), places)["components"]
        rooms = {key: component for key, component in components.items() if key.startswith("link_air")}
        assert [component["name"] for component in rooms.values()] == ["air a", "air b", "air A b"]
        assert len({component["state_topic"] for component in rooms.values()}) == 3
        assert all(parse(component["state_topic"]) is not None for component in rooms.values())

    def test_any_other_answer_is_shown_as_json(self) -> None:
        assert state(described(LIST)["components"]["link_list"], {"answer": [1, 2]}) in ("[1, 2]", [1, 2])


class Narrow(ScriptedModel):
    """A model that has no tokens for answers with a schema."""

    def check_schema(self, schema: Any, max_new: int | None = None) -> None:
        raise SchemaError("no tokens.")


class TestOnAir:
    def heard(self, peer, device: str):
        client = peer()
        client.subscribe(config_topic(device))
        return client

    def test_it_is_retained_and_valid(self, on_air, peer) -> None:
        device = on_air(links=(PLAIN,))
        topic, message = self.heard(peer, device.topics.device).next()
        jsonschema.Draft202012Validator(HOME_ASSISTANT).validate(message)
        assert topic == f"homeassistant/device/{device.topics.device}/config"
        assert "link_too-hot" in message["components"]

    def test_a_link_that_no_model_can_answer_does_not_show_up(self, on_air, peer) -> None:
        device = on_air(Narrow(), links=(PLAIN, HELD))
        client = self.heard(peer, device.topics.device)

        def shows(value: dict[str, Any], start: str) -> bool:  # and does not take it back
            return any(key.startswith(start) and len(c) > 1 for key, c in value["components"].items())

        message = client.until(lambda topic, value: not shows(value, "link_decide"))[-1][1]
        assert shows(message, "link_too-hot")

    def test_a_link_is_described_once_it_is_known_what_its_model_answers(self, on_air, peer) -> None:
        """While it is opened, what an earlier start described holds; a text's sensor came, and was taken back."""
        model = ScriptedModel(["{}"])
        model.manifest = open_bundle(ROOT / "examples/log-triage/bundle").manifest
        client = self.heard(peer, "dev-opening")

        class Slow(dict[str, ScriptedModel]):
            def get(self, *_: Any) -> Any:
                time.sleep(2.0)
                return model

        link = Link(name="any", source="any/x", prompt="{{ t }}", to="any", answer_of_model=True)
        on_air(device="dev-opening", scripts=Slow(), links=(link,))
        components = client.next()[1]["components"]
        assert "link_any_priority" in components
        assert "link_any" not in components and {"platform": "sensor"} not in components.values()

    def test_a_link_of_several_models_has_the_fields_of_each(self, on_air, peer) -> None:
        """Whichever the router finds, the answer has a place; two that have a field have it with the labels of both."""
        made = {}
        for name in ("log-triage", "fall-alert"):
            made[name] = ScriptedModel(["{}"])
            made[name].manifest = open_bundle(ROOT / f"examples/{name}/bundle").manifest
        purpose = made["log-triage"].manifest.purpose
        level = {"enum": ["low", "unknown"]}
        other = {**made["fall-alert"].manifest.purpose["answer"]["properties"], "priority": level}
        answer = {**made["fall-alert"].manifest.purpose["answer"], "properties": other}
        more = {**made["fall-alert"].manifest.purpose, "answer": answer}
        made["fall-alert"].manifest = replace(made["fall-alert"].manifest, purpose=more)
        link = Link(name="any", source="any/x", prompt="{{ t }}", to="any", answer_of_model=True)
        models = tuple(ModelSettings(name) for name in made)
        routing = Routing((RouteRule("t is none", "log-triage"),))
        device = on_air(scripts=made, models=models, links=(link,), routing=routing)
        message = self.heard(peer, device.topics.device).next()[1]
        jsonschema.Draft202012Validator(HOME_ASSISTANT).validate(message)
        components = message["components"]
        found = {key for key in components if key.startswith("link_any_")}
        assert found == {f"link_any_{name}" for name in [*purpose["answer"]["properties"], *other]}
        assert components["link_any_priority"]["options"] == ["low", "normal", "high", "unknown"]

    @pytest.mark.parametrize(
        "others",
        [(), ("log-triage",), ("none-is-open",), ("embeddings",)],
        ids=lambda others: "".join(others) or "alone",
    )
    def test_a_text_of_a_link_of_several_models_has_a_place(self, on_air, peer, others: tuple[str, ...]) -> None:
        """A model that was trained for no task answers with a text, beside others that answer with fields."""
        manifest = open_bundle(ROOT / "examples/log-triage/bundle").manifest
        made: dict[str, Any] = {}
        for name in ("plain", "general"):
            made[name] = ScriptedModel([name])
            made[name].manifest = replace(manifest, name=name, purpose=None)
        for name in others:
            made[name] = ScriptedModel(['{"priority": "high"}'])
            made[name].manifest = manifest
        if "embeddings" in others:
            made["embeddings"].manifest = replace(manifest, name="embeddings", purpose=None, task="embed")
        if "none-is-open" in others:
            made["none-is-open"] = BundleError("damaged")
        link = Link(name="any", source="any/+/x", prompt="{{ t }}", to="any", answer_of_model=True)
        routing = Routing(tuple(RouteRule(f"text == '{name}'", name) for name in made))
        models = tuple(ModelSettings(name) for name in made)
        device = on_air(
            scripts=made, models=models, links=(link, replace(link, name="one", source="one")), routing=routing
        )
        message = self.heard(peer, device.topics.device).next()[1]
        jsonschema.Draft202012Validator(HOME_ASSISTANT).validate(message)
        components = {key: c for key, c in message["components"].items() if key.startswith("link_one")}
        priorities = {"link_one_priority"} & components.keys()
        assert priorities == ({"link_one_priority"} if "log-triage" in others else set())
        assert len([key for key in message["components"] if "link_one" in key]) == (
            1 if not priorities else 2 + len(manifest.purpose["answer"]["properties"])
        )
        sensor = peer()
        for name in ("general", "plain", *(["log-triage"] if priorities else [])):
            sensor.publish("one", {"t": name})
            said = device.client.until(lambda topic, value: topic == device.topics.link("one"))[-1][1]
            shown = {key: state(component, said) for key, component in components.items()}
            assert shown["link_one"] == (name if name in ("general", "plain") else None)
            for key in priorities:
                assert shown[key] == (None if name in ("general", "plain") else "high")

    @pytest.mark.parametrize("when", [REASONS, ("unsure",)])
    def test_a_text_of_a_larger_model_has_a_place(self, on_air, peer, when: tuple[Reason, ...]) -> None:
        """What is for no model of the device goes on without a schema, where that is a reason to pass it on."""
        model = ScriptedModel(["{}"])
        model.manifest = open_bundle(ROOT / "examples/log-triage/bundle").manifest
        link = Link("any", "in/any", "{{ text }}", "out/any", answer_of_model=True)
        routing = Routing(file=str(ROOT / "examples/router/router.json"))
        with far_server() as far:
            far.say = lambda body: "Lisbon."
            policy = Escalation(Target(url=far.url, model="m"), when=when)
            models = (ModelSettings("log-triage"),)
            device = on_air(model, models=models, links=(link,), routing=routing, escalate=policy)
            components = self.heard(peer, device.topics.device).next()[1]["components"]
            assert ("link_any" in components) == ("unfamiliar" in when) and "link_any_priority" in components
            if "unfamiliar" in when:
                peer().publish("in/any", {"text": "What is the capital of Portugal?"})
                said = device.client.until(lambda topic, value: topic == device.topics.link("any"))[-1][1]
                assert state(components["link_any"], said) == "Lisbon."
                assert state(components["link_any_priority"], said) is None

    def test_it_comes_again_when_home_assistant_starts(self, on_air, peer) -> None:
        device = on_air()
        client = self.heard(peer, device.topics.device)
        client.next()
        client.client.publish(STATUS_TOPIC, b"offline", qos=1).wait_for_publish(30)
        assert client.silent()
        client.client.publish(STATUS_TOPIC, b"online", qos=1).wait_for_publish(30)
        assert client.next()[1]["device"]["name"] == device.topics.device

    def test_a_device_that_shall_not_show_up_takes_back_what_it_said(self, on_air, peer) -> None:
        device = on_air(device="hidden")
        client = self.heard(peer, "hidden")
        assert client.next()
        device.service.stop()
        device.client.until(lambda topic, value: value.get("state") == "disconnected")
        on_air(device="hidden", home_assistant=False)
        assert client.heard.get(timeout=5).payload == b""
        client.client.publish(STATUS_TOPIC, b"online", qos=1).wait_for_publish(30)
        while not client.heard.empty() or not client.silent():
            assert client.heard.empty() or client.heard.get().payload == b""

    def test_rooms_show_up_as_they_are_answered_and_each_keeps_its_own_answer(self, on_air, peer, monkeypatch) -> None:
        monkeypatch.setattr(home_assistant, "NEW_TOPICS_S", 0.1)
        device = on_air(links=(replace(ROOMS, prompt="{{ topic[1] }} {{ value }}"),))
        client = self.heard(peer, device.topics.device)
        sensor = peer()
        for room, value in (("one", 1), ("two", 2)):
            sensor.publish(f"building/{room}/co2", value)

        def has_both(topic: str, value: dict[str, Any]) -> bool:
            return sum(key.startswith("link_air_") for key in value["components"]) == 2

        message = client.until(has_both)[-1][1]
        rooms = {c["name"]: c for key, c in message["components"].items() if key.startswith("link_air_")}
        late = peer()
        for room, answer in (("one", "ONE 1"), ("two", "TWO 2")):
            late.subscribe(rooms[f"air {room}"]["state_topic"])
            said = late.next()[1]
            assert state(rooms[f"air {room}"], said) == answer
            assert said["topic"] == f"building/{room}/co2"
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", said["time"])

    def test_a_link_that_is_removed_or_renamed_is_taken_back(self, on_air, peer, monkeypatch) -> None:
        monkeypatch.setattr(home_assistant, "NEW_TOPICS_S", 0.1)
        device = on_air(device="renamed", links=(PLAIN, ROOMS))
        sensor, client = peer(), self.heard(peer, "renamed")
        sensor.publish("plant/south/air", {"temp_c": 40})
        sensor.publish("building/one/co2", 4)
        client.until(lambda topic, value: any(key.startswith("link_air_") for key in value["components"]))
        wait_until(lambda: (device.service.config.state_dir / "links.json").read_text().count("link_") == 2)
        device.client.until(lambda topic, value: topic == device.topics.link("air"))
        device.service.stop()
        device.client.until(lambda topic, value: value.get("state") == "disconnected")
        monkeypatch.setattr(home_assistant, "CLEAN_S", 1.0)
        on_air(device="renamed", links=(replace(PLAIN, name="hot"),))
        message = client.until(lambda topic, value: value.get("components", {}).get("link_hot") is not None)[-1][1]
        removed = {key: c for key, c in message["components"].items() if set(c) == {"platform"}}
        assert len(removed) == 2 and removed["link_too-hot"] == {"platform": "sensor"}
        client.until(
            lambda topic, value: "link_hot" in value["components"] and not removed.keys() & value["components"].keys()
        )
        late = peer()
        late.subscribe("stonechat/1/renamed/out/link/#", "stonechat/1/renamed/out/state")
        assert [late.next()[0] for _ in range(1)] == ["stonechat/1/renamed/out/state"]  # nothing else is retained

    def test_a_links_answer_is_where_its_sensor_looks(self, on_air, peer) -> None:
        device = on_air(ScriptedModel(["Open", " it."]), links=(PLAIN,))
        message = self.heard(peer, device.topics.device).next()[1]
        component = message["components"]["link_too-hot"]
        client = peer()
        client.publish("plant/south/air", {"temp_c": 40})
        seen = device.client.until(lambda topic, value: topic == component["state_topic"])
        assert state(component, seen[-1][1]) == "Open it."
        late = peer()
        late.subscribe(component["state_topic"])
        assert state(component, late.next()[1]) == "Open it."  # retained: Home Assistant may have restarted
