"""Links that a device's model cannot answer: they are left out, and the others go on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from device_runtime.bundle.trust import TrustStore
from device_runtime.device.models import DeviceModels
from device_runtime.device.watchdog import ServiceManager
from device_runtime.engine.opening import open_model
from device_runtime.errors import SchemaError
from device_runtime.fleet.file import load
from device_runtime.fleet.links import Link
from device_runtime.fleet.policies.escalation import Escalation, Target
from device_runtime.fleet.policies.routing import RouteRule, Routing
from device_runtime.fleet.settings import ModelSettings
from device_runtime.update.active import read_state
from device_runtime.update.install import install
from device_runtime.update.probe import Measured
from device_runtime.update.slots import lock
from tests.support.far_server import FarServer, far_server
from tests.support.scripted_model import ScriptedModel
from tests.support.update_bundles import confirm, variant
from toolkit.cli import main

ANSWER = {"type": "object", "properties": {"open": {"type": "boolean"}}, "required": ["open"]}


@pytest.fixture
def far() -> Iterator[FarServer]:
    with far_server() as server:
        yield server


class Narrow(ScriptedModel):
    """A model that has no tokens for answers with a schema."""

    def check_schema(self, schema: Mapping[str, Any], max_new: int | None = None) -> None:
        raise SchemaError(f"no tokens, of at most {max_new}.")


def test_it_is_left_out_and_the_others_are_answered(
    on_air: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    links = (
        Link(name="own", source="refused/1/+", prompt="{{ t }}", to="refused/own", answer=ANSWER),
        Link(name="words", source="refused/1/+", prompt="{{ t }}", to="refused/words"),
    )
    with caplog.at_level(logging.INFO, "stonechat"):
        device = on_air(Narrow(), links=links, models=(ModelSettings("assistant", max_new=9),))
        device.client.subscribe("refused/+")
        device.client.publish("refused/1/air", {"t": 21})
        seen = device.client.until(lambda topic, value: topic == "refused/words")
    why = "the answer of link 'own' cannot be given: no tokens, of at most 9."
    assert not [topic for topic, _ in seen if topic == "refused/own"]
    (event,) = [value for topic, value in seen if topic == device.topics.event]
    assert (event["event"], event["link"], event["message"]) == ("link_refused", "own", why)
    device.client.subscribe(device.topics.info)
    info = device.client.until(lambda topic, value: topic == device.topics.info)[-1][1]
    assert info["links_refused"] == {"own": why}  # retained: who looks later knows it, too
    assert refused_by(device) == {"links": {"own": {"link_refused": 1}}, "links_refused": {"own": why}}
    assert "link own is left out until its model or the fleet file is another: the answer of link" in caplog.text


def test_a_model_that_is_opened_later_takes_it_up_again(on_air: Callable[..., Any]) -> None:
    narrow = Narrow(['{"open": true}'])
    link = Link(name="own", source="refused/2/+", prompt="{{ t }}", to="refused/2", answer=ANSWER)
    device = on_air(narrow, links=(link,))
    narrow.check_schema = lambda schema, max_new=None: None  # type: ignore[method-assign]
    device.service._device.runner.reopen(device.service._device.runner.names[0])
    device.client.until(lambda topic, value: topic == device.topics.info and "links_refused" not in value)
    device.client.subscribe("refused/2")
    device.client.publish("refused/2/air", {"t": 21})
    answer = device.client.until(lambda topic, value: topic == "refused/2")[-1][1]
    assert answer["answer"] == {"open": True}


def refused_by(device: Any) -> dict[str, Any]:
    """What `out/health` counts of its links, and what `out/info` says of those that are left out."""
    said: dict[str, Any] = {}
    for extension in device.service._extensions:
        said |= {**extension.health(), **extension.info()}
    return {name: said[name] for name in ("links", "links_refused") if said.get(name)}


def test_with_a_router_another_model_may_answer_it(
    on_air: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A reading is for the model that the router finds; where that cannot answer the link, the others still do."""
    scripts = {"narrow": Narrow(["never"]), "wide": ScriptedModel(['{"open": true}'])}
    link = Link(name="any", source="refused/3/+", prompt="{{ t }}", to="refused/3", answer=ANSWER)
    named = Link(name="named", source="refused/4/+", prompt="{{ t }}", to="refused/4", answer=ANSWER, model="narrow")
    routing = Routing((RouteRule("topic[2] == 'wide'", "wide"),))
    models = tuple(ModelSettings(name) for name in scripts)
    device = on_air(scripts=scripts, models=models, links=(link, named), routing=routing)
    why = "the answer of link 'any' cannot be given: no tokens, of at most None."
    assert f"link any has no answer to what the router finds narrow for: {why}" in caplog.text
    device.client.subscribe("refused/3")
    device.client.publish("refused/3/air", {"t": 21})
    event = device.client.until(lambda topic, value: topic == device.topics.event)[-1][1]
    assert (event["event"], event["link"], event["message"]) == ("link_refused", "any", why)
    device.client.publish("refused/3/wide", {"t": 21})
    answer = device.client.until(lambda topic, value: topic == "refused/3")[-1][1]
    assert (answer["answer"], answer["route"]["model"]) == ({"open": True}, "wide")
    assert refused_by(device) == {
        "links": {"any": {"link_refused": 1}}, "links_refused": {"named": why.replace("any", "named")},
    }  # fmt: skip
    assert not scripts["narrow"].asked  # it would not have known better


def test_it_is_left_out_where_no_model_of_the_router_can(on_air: Callable[..., Any]) -> None:
    narrow = Narrow(['{"open": true}'])
    scripts = {"one": Narrow(), "two": narrow}
    link = Link(name="any", source="refused/5/+", prompt="{{ t }}", to="refused/5", answer=ANSWER)
    models = (ModelSettings("one"), ModelSettings("two", max_new=9))
    routing = Routing((RouteRule("topic[2] == 'air'", "two"),))
    device = on_air(scripts=scripts, models=models, links=(link,), routing=routing)
    why = (
        "no model that the router may find for link 'any' can answer it. "
        "one: the answer of link 'any' cannot be given: no tokens, of at most None. "
        "two: the answer of link 'any' cannot be given: no tokens, of at most 9."
    )
    assert refused_by(device)["links_refused"] == {"any": why}
    narrow.check_schema = lambda schema, max_new=None: None  # type: ignore[method-assign]
    device.service._device.runner.reopen("two")
    assert "links_refused" not in refused_by(device)
    device.client.subscribe("refused/5")
    device.client.publish("refused/5/air", {"t": 21})
    assert device.client.until(lambda topic, value: topic == "refused/5")[-1][1]["answer"] == {"open": True}


def test_what_the_model_of_the_router_cannot_answer_goes_on(on_air: Callable[..., Any], far: FarServer) -> None:
    far.say = lambda body: '{"open": false}'
    scripts = {"narrow": Narrow(["never"]), "wide": ScriptedModel(['{"open": true}'])}
    link = Link(name="any", source="refused/6/+", prompt="{{ t }}", to="refused/6", answer=ANSWER)
    models, policy = tuple(ModelSettings(name) for name in scripts), Escalation(Target(url=far.url, model="large"))
    device = on_air(scripts=scripts, models=models, links=(link,), routing=Routing(), escalate=policy)
    device.client.subscribe("refused/6")
    device.client.publish("refused/6/air", {"t": 21})
    said = device.client.until(lambda topic, value: topic == "refused/6")[-1][1]
    assert said["answer"] == {"open": False}
    assert said["route"]["why"] == "malformed: the answer of link 'any' cannot be given: no tokens, of at most None."
    far.status = 500
    device.client.publish("refused/6/air", {"t": 22})
    event = device.client.until(lambda topic, value: topic == device.topics.event)[-1][1]
    assert event["event"] == "link_refused" and "no tokens" in event["message"] and "500" in event["message"]


EXAMPLES = Path(__file__).parents[3] / "examples"
BAKED_IN = "link 'own' has a system message, and the bundle of 'tiny' has an instruction baked in"
ROUTER: dict[str, Any] = {"router": {"rules": []}}
KNOWN = ["none", "network", "storage", "memory", "auth", "hardware", "application"]  # categories of log-triage
CATEGORY = {"type": "object", "properties": {"category": {"enum": [*KNOWN, "disk"]}}, "required": ["category"]}
NARROW = {"type": "object", "properties": {"category": {"enum": KNOWN[1:]}}, "required": ["category"]}


@pytest.mark.parametrize(
    ("models", "device", "link", "left_out", "warned"),
    [
        (("boiler-advisor", "log-triage"), ROUTER, {"answer": CATEGORY}, False, ["boiler-advisor"]),
        (("log-triage", "boiler-advisor"), ROUTER, {"answer": CATEGORY}, False, ["boiler-advisor"]),
        (("boiler-advisor", "log-triage"), {}, {"answer": CATEGORY}, True, []),
        (("log-triage", "boiler-advisor"), {}, {"answer": CATEGORY}, False, []),
        (("boiler-advisor", "fall-alert"), ROUTER, {"answer": CATEGORY}, True, []),
        (("log-triage",), {}, {"answer": NARROW}, True, []),
        (("boiler-advisor", "log-triage"), ROUTER, {"answer": CATEGORY, "model": "boiler-advisor"}, True, []),
        (("boiler-advisor", "log-triage"), ROUTER, {"answer": CATEGORY, "model": "log-triage"}, False, []),
        (("tiny", "log-triage"), ROUTER, {"unsure": {}}, False, ["tiny"]),
        (("tiny", "log-triage"), {}, {"unsure": {}}, True, []),
    ],
)
def test_check_says_what_serve_does(
    on_air: Callable[..., Any], pi_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture, models: tuple[str, ...], device: dict[str, Any], link: dict[str, Any],
    left_out: bool, warned: list[str],
) -> None:  # fmt: skip
    pytest.importorskip("llguidance", reason="llguidance has packages for 64-bit machines only")
    bundles = {name: pi_bundle if name == "tiny" else EXAMPLES / name / "bundle" for name in models}
    known = {"name": "any", "from": "refused/7/+", "prompt": "{{ reading | tojson }}", "to": "refused/7", **link}
    fleet = {
        "schema": 1, "models": {name: {"bundle": str(path)} for name, path in bundles.items()}, "links": [known],
        "devices": {"pi": {"model": list(models), "links": ["any"], **device}},
    }  # fmt: skip
    (tmp_path / "fleet.yaml").write_text(json.dumps(fleet))
    code = main(["check", str(tmp_path / "fleet.yaml")])
    out, err = capfd.readouterr()
    plan = load(tmp_path / "fleet.yaml")
    config = plan.device("pi", plan.address("pi"), tmp_path / "state")
    with ExitStack() as stack:
        opened = {name: stack.enter_context(closing(open_model(path, threads=1))) for name, path in bundles.items()}
        served = on_air(scripts=opened, models=config.models, links=config.links, routing=config.routing)
        refused = refused_by(served).get("links_refused", {})
    assert (code, list(refused)) == ((2, ["any"]) if left_out else (0, []))
    assert all(why in err for why in refused.values())
    for name in models:
        says = f"a reading of link 'any' for which the router finds the model '{name}' has no answer, but the event"
        assert (says in out) == (f"has no answer to what the router finds {name} for" in caplog.text and not left_out)
        assert (says in out) == (name in warned)


@pytest.fixture
def slots_of(pi_bundle: Path, tmp_path: Path) -> Callable[..., DeviceModels]:
    """A device with version 1 of a bundle in a slot folder, and a link with a system message of its own."""

    def make(instruction: str | None, **device: Any) -> DeviceModels:
        with lock(tmp_path / "slots", make=True) as slots:
            install(variant(pi_bundle, tmp_path / "v1", "1", instruction=instruction), slots)
            confirm(slots)
        link = {"name": "own", "from": "a/+", "prompt": "{{ t }}", "to": "b", "system": "Sing."}
        fleet = {
            "schema": 1, "models": {"tiny": {"bundle": "slots"}, "other": {"bundle": "elsewhere"}}, "links": [link],
            "devices": {"pi": {"model": "tiny", "links": ["own"], **device}},
        }  # fmt: skip
        (tmp_path / "fleet.yaml").write_text(json.dumps(fleet))
        plan = load(tmp_path / "fleet.yaml")
        measured = Measured("", True, 10.0, 10.0)
        return DeviceModels(
            "pi", plan.models_of("pi"), TrustStore.load(tmp_path / "no-keys"), plan, lambda *_: measured
        )

    return make


@pytest.mark.parametrize(
    ("device", "now", "outcome", "why"),
    [
        ({}, None, "rolled_back", BAKED_IN),
        ({}, "Dance.", "confirmed", None),  # which could not answer the link before
        ({"model": ["other", "tiny"]}, None, "confirmed", None),  # the link asks the first
        ({"model": ["other", "tiny"], **ROUTER}, None, "rolled_back", BAKED_IN),
    ],
)
def test_an_update_that_would_silence_a_link_is_given_back(
    slots_of: Callable[..., DeviceModels], pi_bundle: Path, tmp_path: Path, device: dict[str, Any], now: str | None,
    outcome: str, why: str | None,
) -> None:  # fmt: skip
    models = slots_of(now, **device)
    with lock(tmp_path / "slots") as slots:
        install(variant(pi_bundle, tmp_path / "v2", "2", instruction="Be brief."), slots)
    models.ready("tiny", ServiceManager())
    last = read_state(tmp_path / "slots").last
    assert last is not None and (last.version, last.outcome) == ("2", outcome)
    assert (last.reason or "").startswith(why or "")
