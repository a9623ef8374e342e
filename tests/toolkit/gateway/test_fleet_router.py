"""A request that names no device goes to the one that has the model for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from device_runtime.errors import ConfigurationError
from device_runtime.fleet import file
from device_runtime.fleet.policies.escalation import Escalation, Target
from device_runtime.fleet.settings import ModelSettings
from device_runtime.mqtt.address import BrokerAddress
from tests.support.scripted_fleet import wait_until
from tests.support.scripted_model import ScriptedModel
from toolkit.cli import main
from toolkit.gateway.fleet import FleetModels
from toolkit.gateway.fleet_router import FleetRouter

openai = pytest.importorskip("openai", reason="the openai client is not installed")
EXAMPLES = Path(__file__).parents[3] / "examples"
FLEET = f"""\
schema: 1
models:
  boiler: {{bundle: {EXAMPLES}/boiler-advisor/bundle}}
  logs: {{bundle: {EXAMPLES}/log-triage/bundle}}
  falls: {{bundle: {EXAMPLES}/fall-alert/bundle}}
devices:
  cellar: {{model: boiler}}
  cellar-2: {{model: boiler}}
  rack: {{model: logs}}
  ward: {{model: falls}}
router: {{rules: [{{when: "'urgent' in text", model: boiler}}]}}
"""
BOILER = '{"temp_c": 99, "bar": 1.4, "flow_l_min": 12}'


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET)
    return path


def test_a_question_to_the_fleet_finds_its_device(on_air, serving, port, fleet: Path):
    for name, model in (("cellar", "boiler"), ("cellar-2", "boiler"), ("rack", "logs")):
        on_air(ScriptedModel([name]), device=name, models=(ModelSettings(model),))
    models = FleetModels(BrokerAddress("127.0.0.1", port), None, router=FleetRouter(file.load(fleet)))
    client = openai.OpenAI(base_url=f"{serving(models)}/v1", api_key="none", max_retries=0)

    def ask(text: str, **more):
        messages = [{"role": "user", "content": text}]
        return client.chat.completions.create(model="auto", messages=messages, **more)

    wait_until(lambda: {"auto", "rack/logs", "cellar/boiler"} <= {card.id for card in models.cards()})
    said = ask("kernel: eth3: link down")
    assert said.choices[0].message.content == "rack" and said.stonechat["device"] == "rack"
    assert said.stonechat["route"] == {"where": "device rack", "model": "logs", "why": "it is the model for texts"}
    assert ask('{"text": "kernel: eth3: link down"}').stonechat["device"] == "rack"  # as a line of examples has it
    said = ask(BOILER)
    assert said.choices[0].message.content.startswith("cellar")
    assert said.stonechat["route"]["why"] == "its fields are those of the task"
    assert ask("urgent: call").stonechat["route"]["why"] == "rule 1"
    pieces = list(ask(BOILER, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices).startswith("cellar")
    with pytest.raises(openai.UnprocessableEntityError, match="for no model of the fleet"):
        ask('{"ph": 7}')
    falls = '{"peak_g": 5, "posture_after": "lying", "still_s": 400, "heart_bpm": 90}'
    with pytest.raises(openai.InternalServerError, match=r"this is for falls .* no device that has it is online"):
        ask(falls)


def test_what_is_for_no_model_is_passed_on_by_a_device_that_does_so(on_air, serving, port, fleet: Path, far, capsys):
    passing = f"rack: {{model: logs, escalate: {{to: {{url: {far.url}, model: m}}}}}}"
    fleet.write_text(FLEET.replace("rack: {model: logs}", passing))
    models = FleetModels(BrokerAddress("127.0.0.1", port), None, router=FleetRouter(file.load(fleet)))
    client = openai.OpenAI(base_url=f"{serving(models)}/v1", api_key="none", max_retries=0)

    def ask(text: str, **more):
        return client.chat.completions.create(model="auto", messages=[{"role": "user", "content": text}], **more)

    cellar = on_air(ScriptedModel(["cellar"]), device="cellar", models=(ModelSettings("boiler"),))
    wait_until(lambda: "cellar/boiler" in {card.id for card in models.cards()})
    with pytest.raises(
        openai.InternalServerError, match="no model of the fleet, and rack, to pass it on, is not online"
    ):
        ask('{"ph": 7}')
    policy = Escalation(Target(url=far.url, model="m"))
    rack = on_air(ScriptedModel(["rack"]), device="rack", models=(ModelSettings("logs"),), escalate=policy)
    wait_until(lambda: "rack/logs" in {card.id for card in models.cards()})
    far.say = lambda body: "Acidic? No: neutral."
    said, pieces = ask('{"ph": 7}'), list(ask('{"ph": 7}', stream=True))
    assert said.choices[0].message.content == "Acidic? No: neutral."
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "Acidic? No: neutral."
    where = f"device rack, {far.url.removesuffix('/v1')}"
    for stonechat in (said.stonechat, pieces[-1].stonechat):
        assert stonechat["route"] == {"where": where, "model": "m", "why": "unfamiliar: no model is for it"}
    far.status = 500
    with pytest.raises(openai.UnprocessableEntityError, match="answers unfamiliar: no model is for it; and http"):
        ask('{"ph": 7}')
    assert not rack.model.asked and not cellar.model.asked
    assert main(["router", "ask", str(fleet), '{"ph": 7}']) == 0
    assert f"it goes on to {far.url.removesuffix('/v1')}, by way of rack" in capsys.readouterr().out


def test_the_command_says_which_devices_have_the_model(fleet: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["router", "ask", str(fleet), BOILER, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "model": "boiler", "why": "its fields are those of the task", "devices": ["cellar", "cellar-2"],
    }  # fmt: skip


def test_a_file_without_a_router_for_all_is_said_to_be_one(capsys: pytest.CaptureFixture[str]):
    assert main(["router", "ask", str(EXAMPLES / "router" / "fleet.yaml"), "blinds down please"]) == 0
    assert "has no `router` for the whole fleet" in capsys.readouterr().out


def test_a_rule_for_a_model_that_no_device_has(fleet: Path):
    fleet.write_text(FLEET.replace("  ward: {model: falls}\n", "").replace("model: boiler}]", "model: falls}]"))
    with pytest.raises(ConfigurationError, match=r"fleet.yaml:10:.*no device has the model 'falls'"):
        file.load(fleet)
