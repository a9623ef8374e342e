"""A bundle that answers with another schema: an update brought it, or the router has found it. Links, records, Home
Assistant and the larger model go with it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from device_runtime.bundle.manifest import Manifest
from device_runtime.client.records import kept_records
from device_runtime.device.extensions import escalation as desks
from device_runtime.device.queue import Job
from device_runtime.fleet.links import Link
from device_runtime.fleet.policies.escalation import Escalation, Target
from device_runtime.fleet.policies.recording import Recording
from device_runtime.fleet.policies.routing import RouteRule, Routing
from device_runtime.fleet.settings import ModelSettings
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.update.active import open_bundle
from tests.device_runtime.conftest import OnAir
from tests.support.far_server import FarServer
from tests.support.mqtt_peer import Peer
from tests.support.scripted_fleet import wait_until
from tests.support.scripted_model import ScriptedModel

BUNDLE = Path(__file__).parents[3] / "examples" / "log-triage" / "bundle"
KIND = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}, "required": ["kind"]}
LEVEL = {"type": "object", "properties": {"level": {"enum": ["low", "high"]}}, "required": ["level"]}


def trained(answer: dict[str, Any], said: dict[str, Any], confidence: float = 0.9) -> ScriptedModel:
    """A bundle of a task with this answer."""
    manifest: Manifest = open_bundle(BUNDLE).manifest
    purpose = {
        **(manifest.purpose or {}),
        "answer": answer,
        "order": {"answer": list(answer["properties"])},
        "none": {},
    }
    made = ScriptedModel([json.dumps(said)])
    made.confidence = {next(iter(said)): confidence}
    made.manifest = replace(manifest, version=next(iter(said)), purpose=purpose)  # type: ignore[attr-defined]
    return made


def link(**fields: Any) -> Link:
    """As `Fleet.links_of` makes it, of a link without an answer."""
    made = Link(name="sort", source="in/note", prompt="{{ reading | tojson }}", to="out/kind", answer=KIND)
    return replace(made, answer_of_model=True, **fields)


class Reopen(Job):
    """What an update does once the new bundle has passed its trial."""

    def __init__(self, device: OnAir) -> None:
        self._runner = device.service._device.runner

    def run(self) -> None:
        self._runner.reopen("default")


def test_an_update_changes_what_a_link_answers_also_for_what_waits(
    on_air: Callable[..., OnAir], peer: Callable[..., Peer]
) -> None:
    scripts = {"default": trained(KIND, {"kind": "a"})}
    scripts["default"].gate = threading.Semaphore(0)
    device = on_air(
        scripts=scripts, links=(link(overload="every"),), recording=Recording(keep=9), home_assistant=True
    )  # fmt: skip
    listener, home = peer(), peer()
    listener.subscribe("out/kind")
    home.subscribe(f"homeassistant/device/{device.topics.device}/config")
    home.until(lambda topic, value: "link_sort_kind" in value["components"])
    before, scripts["default"] = scripts["default"], trained(LEVEL, {"level": "high"})
    device.client.publish("in/note", {"note": "one"})
    wait_until(lambda: before.asked)
    device.service._device.queue.add_task(Reopen(device))
    device.client.publish("in/note", {"note": "two"})  # it wakes the link while the old bundle answers
    device.until_waiting(2)
    before.gate.release(9)
    assert listener.next()[1]["answer"] == {"kind": "a"}
    said = listener.next()[1]
    assert said["answer"] == {"level": "high"} and said["confidence"] == {"level": 0.9}
    assert scripts["default"].asked[0][1]["schema"] == LEVEL
    components = home.until(lambda topic, value: "link_sort_level" in value["components"])[-1][1]["components"]
    assert components["link_sort_level"]["options"] == ["low", "high"]
    assert components["link_sort_kind"] == {"platform": "sensor"}  # taken back
    records = list(kept_records(BrokerAddress("127.0.0.1", device.client.port), device.topics.device))
    assert [record["schema"] for record in records] == [KIND, LEVEL]
    assert [record["bundle"]["version"] for record in records] == ["kind", "level"]


def test_the_larger_model_is_asked_for_the_new_answer(
    on_air: Callable[..., OnAir], peer: Callable[..., Peer], far: FarServer
) -> None:
    far.say = lambda body: json.dumps({"level": "low"})
    scripts = {"default": trained(KIND, {"kind": "a"})}
    policy = Escalation(Target(url=far.url, model="large"))
    device, listener = on_air(scripts=scripts, links=(link(escalate=policy),)), peer()
    listener.subscribe("out/kind")
    scripts["default"] = trained(LEVEL, {"level": "high"}, confidence=0.2)
    device.service._device.queue.add_task(Reopen(device))
    device.client.publish("in/note", {"note": "x"})
    assert listener.next()[1]["answer"] == {"level": "low"}
    form = far.asked[0]["response_format"]["json_schema"]["schema"]
    assert list(form["properties"]) == ["level"]
    found = next(e for e in device.service._extensions if isinstance(e, desks.Escalations))
    assert found.examples.entries()[0]["answer"] == {"level": "low"}


def test_the_router_finds_the_answer_with_the_model(
    on_air: Callable[..., OnAir], peer: Callable[..., Peer], far: FarServer
) -> None:
    """A link that names no model and no answer has those that the router finds, not the first model's answer."""
    scripts = {"kinds": trained(KIND, {"kind": "a"}), "levels": trained(LEVEL, {"level": "high"})}
    models, routing = (ModelSettings("kinds"), ModelSettings("levels")), Routing((RouteRule("x > 1", "levels"),))
    policy = Escalation(Target(url=far.url, model="large"), busy=1)
    device = on_air(scripts=scripts, models=models, routing=routing, links=(link(escalate=policy, overload="every"),))
    listener = peer()
    listener.subscribe("out/kind")
    device.client.publish("in/note", {"note": "n", "x": 2})
    said = listener.next()[1]
    assert said["answer"] == {"level": "high"} and said["route"]["why"] == "rule 1"
    far.say = lambda body: json.dumps({"level": "low"})
    scripts["levels"].gate = threading.Semaphore(0)
    for number in range(3):  # one under way, one waits, one goes on
        device.client.publish("in/note", {"note": str(number), "x": 2})
    said = listener.next()[1]
    assert said["answer"] == {"level": "low"} and said["route"]["why"].startswith("busy")
    assert scripts["levels"].asked[-1][1]["schema"] == LEVEL
    scripts["levels"].gate.release(9)
