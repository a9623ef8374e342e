"""What names no model goes to the right one, and the reply says which and why."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.brain.router import Router
from device_runtime.brain.text_classifier import NONE, TextClassifier
from device_runtime.brain.text_features import BUCKETS, feature_ids, word_ids
from device_runtime.engine.opening import open_model
from device_runtime.errors import ConfigurationError
from device_runtime.fleet import yaml_schema
from device_runtime.fleet.file import FLEET, check_fleet, load
from device_runtime.fleet.links import Link
from device_runtime.fleet.policies.escalation import Escalation, Redaction, Target
from device_runtime.fleet.policies.routing import RouteRule, Routing
from device_runtime.fleet.settings import ModelSettings
from device_runtime.tasks.purpose import Purpose, is_general
from device_runtime.update.active import open_bundle
from tests.device_runtime.conftest import OnAir
from tests.support.far_server import FarServer
from tests.support.mqtt_peer import Peer
from tests.support.scripted_model import ScriptedModel

EXAMPLES = Path(__file__).parents[3] / "examples"
LOGS = ModelSettings("log-triage")
NAMES = ("boiler-advisor", "fall-alert", "home-commands", "log-triage")
CLASSIFIER = TextClassifier.open(EXAMPLES / "router" / "router.json")
ROUTER = Routing(file=str(EXAMPLES / "router" / "router.json"))


def router_of(routing: Routing) -> Router:
    """Of the four examples' bundles."""
    return Router.of_bundles(routing, {name: str(EXAMPLES / name / "bundle") for name in NAMES})


@pytest.mark.parametrize(
    ("asked", "model", "why"),
    [
        ('{"temp_c": 96, "bar": 1.4, "flow_l_min": 12}', "boiler-advisor", "its fields are those of the task"),
        ("kernel: igb 0000:01:00.0 eth3: Link is Down", "log-triage", "the router's classifier"),
        ("put the blinds down in the kitchen", "home-commands", "the router's classifier"),
        ("What is the capital of Portugal?", None, "no model of this device is for it"),
        ('{"humidity": 40}', None, "no model of this device is for it"),
        ('{"text": "put the blinds down in the kitchen"}', "home-commands", "the router's classifier"),  # an example's
        ('{"ts": 1711, "level": "error", "msg": "no route to host 10.0.0.4"}', "log-triage", "the router's classifier"),
        ('{"sensor": "wine cellar", "humidity": 40}', None, "no model of this device is for it"),
        ('{"rain_mm": 3.2, "station": "old mill"}', None, "no model of this device is for it"),
        ('{"level": "warn", "component": "db pool", "message": "refused"}', "log-triage", "the router's classifier"),
    ],
)
def test_the_four_examples(asked: str, model: str | None, why: str) -> None:
    found = router_of(ROUTER).choose(asked)
    assert (None if found.stray else found.model) == model and found.why.startswith(why)


@pytest.mark.parametrize("empty", ["", "  ", "?!"])
def test_a_text_without_words_is_for_none(empty: str) -> None:
    assert router_of(ROUTER).choose(empty).stray


def test_rules_come_first() -> None:
    rules = (RouteRule("topic[0] == 'logs'", "log-triage"), RouteRule("'bar' in reading and bar > 9", "fall-alert"))
    router = router_of(Routing(rules))
    assert router.choose("blinds down", ["logs", "x"]).why == "rule 1"
    assert router.choose('{"bar": 10}', ["x"]).model == "fall-alert"  # though it lacks most of the boiler's fields


def test_what_is_for_no_task_goes_to_a_general_model() -> None:
    """And not to one that makes vectors or translates, which was trained for no task either."""
    names = ("log-triage", "vectors", "chat")
    router = Router(ROUTER, names, lambda name: None, lambda name: name == "chat")
    found = router.choose("What is the capital of Portugal?")
    assert (found.model, found.stray) == ("chat", False)
    assert Router(ROUTER, names[:2], lambda name: None, lambda name: False).choose("the capital of Portugal?").stray


@pytest.mark.parametrize(
    ("change", "general"),
    [
        ({}, False),
        ({"purpose": None}, True),
        ({"purpose": None, "task": "embed"}, False),
        ({"purpose": None, "task": "translate"}, False),
    ],
)
def test_a_general_model_is_one_that_writes_and_has_no_task(change: dict[str, Any], general: bool) -> None:
    manifest = open_bundle(EXAMPLES / "home-commands" / "bundle").manifest
    assert is_general(replace(manifest, **change)) == general


@given(st.text(max_size=60))
def test_any_text_has_features_and_a_class(text: str) -> None:
    ids = feature_ids(text)
    assert ids == sorted(set(ids)) and all(0 <= place < BUCKETS for place in [*ids, *word_ids(text)])
    name, share = (
        TextClassifier.open(EXAMPLES / "router" / "router.json").choose(text) if len(text) < 3 else (NONE, 0.0)
    )
    assert name in (*NAMES, NONE) and 0 <= share <= 1


def test_features_are_the_same_on_every_machine() -> None:
    assert feature_ids("Disk 7 full") == feature_ids("disk  12 FULL") != feature_ids("disk full")


@pytest.mark.parametrize("damage", ["{", "[]", '{"router": 2}', '{"router": 1, "classes": ["a"], "weights": "AA=="}'])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "r.json").write_text(damage)
    with pytest.raises(ConfigurationError, match="stonechat router train"):
        TextClassifier.open(tmp_path / "r.json")
    with pytest.raises(ConfigurationError, match="stonechat router train"):
        TextClassifier.open(tmp_path / "missing.json")


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    known = rng.random((2, BUCKETS)) > 0.5
    made = TextClassifier(("a", NONE), rng.normal(size=(2, BUCKETS)).astype(np.float32), np.zeros(2, np.float32), known)
    (tmp_path / "r.json").write_text(made.to_json())
    found = TextClassifier.open(tmp_path / "r.json")
    assert found.classes == made.classes and (found.known == known).all()
    assert np.abs(found.weights - made.weights).max() < np.abs(made.weights).max() / 100  # int8: half a step of 1/127


def test_the_fleet_file_names_models_of_the_device() -> None:
    load(EXAMPLES / "router" / "fleet.yaml")
    text = "schema: 1\nmodels: {a: {bundle: x}, b: {bundle: y}}\ndevices:\n"
    text += '  d: {model: a, router: {rules: [{when: "1", model: b}]}}\n'
    with pytest.raises(ConfigurationError, match=r"f:4:.*this device has no model 'b'; it has a"):
        yaml_schema.loads(text, FLEET, check_fleet, file="f")


def test_a_request_and_a_reading_find_their_model(
    on_air: Callable[..., OnAir], peer: Callable[..., Peer], far: FarServer
) -> None:
    routing = Routing((RouteRule("'bar' in reading", "boiler"),))
    link = Link(name="all", source="in/#", prompt="{{ reading | tojson }}", to="out/all")
    scripts = {"general": ScriptedModel(["general"]), "boiler": ScriptedModel(["boiler"])}
    models = (ModelSettings("general"), ModelSettings("boiler"))
    device, listener = on_air(scripts=scripts, models=models, routing=routing, links=(link,)), peer()
    listener.subscribe("out/all")
    device.client.publish("in/x", {"bar": 3})
    said = listener.next()[1]
    assert said["text"] == "boiler" and said["route"] == {"where": "here", "model": "boiler", "why": "rule 1"}
    reply_to = device.ask(prompt="hello")
    final = device.client.until(lambda topic, value: topic == reply_to)[-1][1]
    assert final["text"] == "general" and final["route"]["why"] == "it is for none of the trained tasks"
    reply_to = device.ask(prompt='{"bar": 1}', model="general", session="2", correlation=b"2")
    final = device.client.until(lambda topic, value: topic == reply_to)[-1][1]
    assert final["text"] == "general" and "why" not in final["route"]  # a model that is named is asked


def test_a_stray_question_goes_on_as_it_is_and_not_as_one_of_the_first_model(
    on_air: Callable[..., OnAir], far: FarServer
) -> None:
    model = ScriptedModel(["{}"])
    model.manifest = open_bundle(EXAMPLES / "log-triage" / "bundle").manifest  # type: ignore[attr-defined]
    far.say = lambda body: "Lisbon."
    device = on_air(model, models=(LOGS,), routing=ROUTER, escalate=Escalation(Target(url=far.url, model="m")))
    for number, more in enumerate(({}, {"unfamiliar": True})):
        reply_to = device.ask(
            prompt="What is the capital of Portugal?", session=str(number), correlation=b"%d" % number, record=True,
            **more,
        )  # fmt: skip
        final = device.client.until(lambda topic, value: topic == reply_to)[-1][1]  # noqa: B023
        assert final["text"] == "Lisbon." and final["route"]["where"] == far.url.removesuffix("/v1")
        (message,) = far.asked[-1]["messages"]
        assert message["role"] == "user" and "response_format" not in far.asked[-1]
        record = final["record"]  # the first model has nothing to do with it
        assert record["model"] == "m" and record["route"]["where"] == final["route"]["where"]
        assert record["messages"] == [message] and not {"bundle", "tokens"} & record.keys()
    assert not model.asked and not (device.service.config.state_dir / "examples.jsonl").exists()


def test_a_stray_question_that_may_not_leave_is_refused_for_that_and_not_by_the_first_model(
    on_air: Callable[..., OnAir], far: FarServer
) -> None:
    bundle = EXAMPLES / "boiler-advisor" / "bundle"
    policy = Escalation(Target(url=far.url, model="m"), redact=(Redaction("badge"),))
    with closing(open_model(bundle, threads=1)) as model:
        device = on_air(model, models=(ModelSettings("boiler-advisor"),), routing=Routing(), escalate=policy)
        reply_to = device.ask(prompt="What is the capital of Portugal?")
        final = device.client.until(lambda topic, value: topic == reply_to)[-1][1]
    assert final["error"]["code"] == "unfamiliar" and not far.asked
    assert final["error"]["message"] == (
        "no model of this device is for it; and the prompt is no JSON object, so badge cannot be found in it and "
        "withheld."
    )


def test_a_stray_text_that_the_first_model_cannot_read_is_refused_as_unfamiliar(on_air: Callable[..., OnAir]) -> None:
    """It was a fault of the configuration, of a task that nobody had asked for."""
    with closing(open_model(EXAMPLES / "boiler-advisor" / "bundle", threads=1)) as model:
        device = on_air(model, models=(ModelSettings("boiler-advisor"),), routing=Routing())
        reply_to = device.ask(prompt="What is the capital of Portugal?")
        final = device.client.until(lambda topic, value: topic == reply_to)[-1][1]
    assert final["error"] == {"code": "unfamiliar", "message": "no model of this device is for it."}


def test_a_router_of_other_models_says_so(caplog: pytest.LogCaptureFixture) -> None:
    Router(ROUTER, ("log-triage", "home"), lambda name: None, lambda name: False)
    assert "finds texts for home-commands, and there is no such model here" in caplog.text
    caplog.clear()
    Router(ROUTER, NAMES, lambda name: None, lambda name: False)
    assert not caplog.text


def test_a_stray_reading_goes_on_as_it_is_too(on_air: Callable[..., OnAir], far: FarServer) -> None:
    model = ScriptedModel(["{}"])
    model.manifest = open_bundle(EXAMPLES / "log-triage" / "bundle").manifest  # type: ignore[attr-defined]
    purpose = Purpose.of_manifest(model.manifest)  # type: ignore[attr-defined]
    assert purpose is not None
    link = Link("any", "in/any", "{{ text }}", "out/any", answer=purpose.answer, answer_of_model=True)
    own = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"]}
    typed = Link("typed", "in/typed", "{{ text }}", "out/typed", answer=own)
    policy = Escalation(Target(url=far.url, model="m"))
    device = on_air(model, models=(LOGS,), routing=ROUTER, escalate=policy, links=(link, typed))
    said = []
    for name, answer in (("any", "Lisbon."), ("typed", '{"a": "x"}'), ("any", "Lisbon.")):
        far.say = lambda body, answer=answer: answer  # type: ignore[misc]
        device.client.publish(f"in/{name}", {"text": "What is the capital of Portugal?"})
        topic = f"/out/link/{name}"
        said.append(device.client.until(lambda found, value: found.endswith(topic))[-1][1])  # noqa: B023
    assert [value.get("text", value.get("answer")) for value in said] == ["Lisbon.", {"a": "x"}, "Lisbon."]
    assert [[message["role"] for message in body["messages"]] for body in far.asked] == [["user"]] * 3
    assert ["response_format" in body for body in far.asked] == [False, True, False]
    far.status = 500
    device.client.publish("in/any", {"text": "What is the capital of Portugal?"})
    event = device.client.until(lambda topic, value: topic.endswith("/out/event"))[-1][1]
    assert event["event"] == "unfamiliar" and "500" in event["message"] and not event["message"].endswith("..")
    kept = (device.service.config.state_dir / "examples.jsonl").read_text().splitlines()
    assert [json.loads(line)["task"] for line in kept] == [None] and not model.asked


@pytest.mark.parametrize("when", [None, ("unsure",)])
def test_a_question_that_somebody_knows_to_be_for_no_model_is_refused_where_nothing_is_passed_on(
    on_air: Callable[..., OnAir], far: FarServer, when: tuple[str, ...] | None
) -> None:
    policy = None if when is None else Escalation(Target(url=far.url, model="m"), when=when)  # type: ignore[arg-type]
    device = on_air(models=(LOGS,), escalate=policy)
    reply_to = device.ask(prompt="What is the capital of Portugal?", unfamiliar=True)
    final = device.client.until(lambda topic, value: topic == reply_to)[-1][1]
    assert (
        final["error"]["code"] == "unfamiliar" and "passes on nothing that is unfamiliar" in final["error"]["message"]
    )
    assert not device.model.asked and not far.asked


@pytest.mark.parametrize("status", [200, 500])
def test_a_stray_question_goes_to_a_larger_model(on_air: Callable[..., OnAir], far: FarServer, status: int) -> None:
    far.say, far.status = (lambda body: "Lisbon."), status
    bundle = open_bundle(EXAMPLES / "log-triage" / "bundle")
    model = ScriptedModel([json.dumps({"category": "none", "priority": "low"})])
    model.manifest = bundle.manifest  # type: ignore[attr-defined]
    policy = Escalation(Target(url=far.url, model="m"))
    device = on_air(model, models=(ModelSettings("log-triage"),), routing=ROUTER, escalate=policy)
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}}
    reply_to = device.ask(prompt="What is the capital of Portugal?", schema=schema)
    far.say = lambda body: '{"a": "x"}'
    final = device.client.until(lambda topic, value: topic == reply_to)[-1][1]
    if status == 200:
        assert (
            final["text"] == '{"a": "x"}' and final["route"]["why"] == "unfamiliar: no model of this device is for it"
        )
    else:
        assert final["error"]["code"] == "unfamiliar" and "500" in final["error"]["message"]
        assert "no model of this device is for it" in final["error"]["message"] and not model.asked


MISTAKEN = "fan 1 works again"  # the classifier says home-commands, which is not sure of it
STRAY = "toner low and fuser unit near end of life"  # the classifier says that it is for none


@pytest.fixture(scope="module")
def two_models() -> Iterator[dict[str, Any]]:
    names = ("home-commands", "log-triage")
    opened = {name: open_model(EXAMPLES / name / "bundle", threads=1) for name in names}
    yield opened
    for model in opened.values():
        model.close()


def test_the_classifier_names_a_second_model_only_where_it_may_be_that() -> None:
    router = router_of(ROUTER)
    found = router.choose(MISTAKEN)
    assert found.second is not None and (found.model, found.second.model) == ("home-commands", "log-triage")
    assert router.choose("put the blinds down in the kitchen").second is None
    assert router.choose('{"temp_c": 96, "bar": 1.4, "flow_l_min": 12}').second is None


@pytest.mark.parametrize(
    ("asked", "answer", "why"),
    [
        (MISTAKEN, {"category": "hardware", "priority": "low"}, "unsure: the confidence in action is 0."),
        (STRAY, {"category": "hardware", "priority": "normal"}, "the router's classifier, 0.4"),
    ],
)
@pytest.mark.parametrize("by", ["request", "link"])
def test_a_sure_answer_of_the_model_that_it_is_rather_not_for_counts(
    on_air: Callable[..., OnAir],
    peer: Callable[..., Peer],
    far: FarServer,
    two_models: dict[str, Any],
    asked: str,
    answer: dict[str, str],
    why: str,
    by: str,
) -> None:
    from device_runtime.fleet.settings import ModelSettings

    models = tuple(ModelSettings(name) for name in two_models)
    link = Link(name="all", source="in/#", prompt="{{ value }}", to="out/all", answer_of_model=True)
    policy = Escalation(Target(url=far.url, model="m"))
    device = on_air(scripts=two_models, models=models, routing=ROUTER, links=(link,), escalate=policy)
    if by == "request":
        reply_to = device.ask(prompt=asked)
        final = device.client.until(lambda topic, value: topic == reply_to)[-1][1]
        found, route = json.loads(final["text"]), final["route"]
    else:
        listener = peer()
        listener.subscribe("out/all")
        device.client.publish("in/x", asked)
        said = listener.next()[1]
        found, route = said["answer"], said["route"]
    assert found == answer and far.asked == []
    assert (route["where"], route["model"]) == ("here", "log-triage")
    assert route["why"].startswith(why)


def test_where_neither_is_sure_the_question_goes_on_as_the_first_model_s(
    on_air: Callable[..., OnAir], far: FarServer, two_models: dict[str, Any]
) -> None:
    from device_runtime.fleet.settings import ModelSettings

    far.say = lambda body: json.dumps({"action": "off", "device": "fan", "room": "none", "value": None})
    models = tuple(ModelSettings(name) for name in two_models)
    policy = Escalation(Target(url=far.url, model="m"), below=1.0)
    device = on_air(scripts=two_models, models=models, routing=ROUTER, escalate=policy)
    reply_to = device.ask(prompt=MISTAKEN)
    final = device.client.until(lambda topic, value: topic == reply_to)[-1][1]
    assert final["route"]["where"] != "here" and len(far.asked) == 1
    assert set(far.asked[0]["response_format"]["json_schema"]["schema"]["properties"]) == set(json.loads(final["text"]))


def test_a_request_that_is_cancelled_during_the_second_opinion_goes_nowhere(
    on_air: Callable[..., OnAir], far: FarServer
) -> None:
    first = ScriptedModel([json.dumps({"action": "off", "device": "fan", "room": "none", "value": None})])
    first.confidence = {"action": 0.5}
    second = ScriptedModel([json.dumps({"category": "hardware", "priority": "low"})], gated=True)
    scripts = {"home-commands": first, "log-triage": second}
    for name, script in scripts.items():
        script.manifest = open_bundle(EXAMPLES / name / "bundle").manifest  # type: ignore[attr-defined]
    models = tuple(ModelSettings(name) for name in scripts)
    policy = Escalation(Target(url=far.url, model="m"))
    device = on_air(scripts=scripts, models=models, routing=ROUTER, escalate=policy)
    reply_to = device.ask(prompt=MISTAKEN)
    until_s = time.monotonic() + 10
    while not second.asked:
        assert time.monotonic() < until_s
        time.sleep(0.01)
    device.client.publish(device.topics.cancel, {}, ResponseTopic=reply_to, CorrelationData=b"c1")
    final = device.client.until(lambda topic, value: topic == reply_to)[-1][1]
    assert final["finish"] == "cancelled" and not far.asked
