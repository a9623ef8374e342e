"""Links that a device's model cannot answer: they are left out, and the others go on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from device_runtime.bundle.trust import TrustStore
from device_runtime.device.extensions.link_runner import LinkRunner
from device_runtime.device.models import DeviceModels
from device_runtime.device.watchdog import ServiceManager
from device_runtime.errors import SchemaError
from device_runtime.fleet.file import load
from device_runtime.fleet.links import Link
from device_runtime.fleet.settings import ModelSettings
from device_runtime.update.install import install
from device_runtime.update.probe import Measured
from device_runtime.update.slots import lock, read_state
from tests.support.scripted_model import ScriptedModel
from tests.support.update_bundles import confirm, variant

ANSWER = {"type": "object", "properties": {"open": {"type": "boolean"}}, "required": ["open"]}


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
    (counts,) = [e.health() for e in device.service._extensions if isinstance(e, LinkRunner)]
    assert counts["links"] == {"own": {"link_refused": 1}}
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


@pytest.fixture
def slots_of(pi_bundle: Path, tmp_path: Path) -> Callable[[str], DeviceModels]:
    """A device with version 1 of a bundle in a slot folder, and a link with a system message of its own."""

    def make(instruction: str | None) -> DeviceModels:
        with lock(tmp_path / "slots", make=True) as slots:
            install(variant(pi_bundle, tmp_path / "v1", "1", instruction=instruction), slots)
            confirm(slots)
        link = {"name": "own", "from": "a/+", "prompt": "{{ t }}", "to": "b", "system": "Sing."}
        fleet = {
            "schema": 1, "models": {"tiny": {"bundle": "slots"}}, "links": [link],
            "devices": {"pi": {"model": "tiny", "links": ["own"]}},
        }  # fmt: skip
        (tmp_path / "fleet.yaml").write_text(json.dumps(fleet))
        plan = load(tmp_path / "fleet.yaml")
        measured = Measured("", True, 10.0, 10.0)
        return DeviceModels(
            "pi", plan.models_of("pi"), TrustStore.load(tmp_path / "no-keys"), plan, lambda *_: measured
        )

    return make


@pytest.mark.parametrize(
    ("now", "outcome", "why"),
    [
        (None, "rolled_back", "link 'own' has a system message, and the bundle of 'tiny' has an instruction baked in"),
        ("Dance.", "confirmed", None),  # which could not answer the link before
    ],
)
def test_an_update_that_would_silence_a_link_is_given_back(
    slots_of: Callable[[str | None], DeviceModels], pi_bundle: Path, tmp_path: Path, now: str | None, outcome: str,
    why: str | None,
) -> None:  # fmt: skip
    models = slots_of(now)
    with lock(tmp_path / "slots") as slots:
        install(variant(pi_bundle, tmp_path / "v2", "2", instruction="Be brief."), slots)
    models.ready("tiny", ServiceManager())
    last = read_state(tmp_path / "slots").last
    assert last is not None and (last.version, last.outcome) == ("2", outcome)
    assert (last.reason or "").startswith(why or "")
