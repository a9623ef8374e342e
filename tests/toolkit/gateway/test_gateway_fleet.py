"""A gateway in front of devices, over a real broker."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest
from paho.mqtt import publish

from device_runtime.client.last_wills import RETURNS_S
from device_runtime.device.service import Service
from device_runtime.fleet.file import load
from device_runtime.fleet.settings import DeviceConfig, ModelSettings
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.messages import DeviceState, Info, State
from device_runtime.mqtt.topics import DeviceTopics
from tests.support.brokers import Broker, await_ready, free_port, mosquitto
from tests.support.scripted_fleet import wait_until
from tests.support.scripted_model import ScriptedModel
from toolkit.gateway.fleet import FleetModels

openai = pytest.importorskip("openai", reason="the openai client is not installed")
MESSAGES = [{"role": "user", "content": "it is hot"}]


@pytest.fixture
def asking(serving, port):
    """A client of a gateway for the session's broker."""

    def make(**of: object) -> openai.OpenAI:
        url = serving(FleetModels(BrokerAddress("127.0.0.1", port), None, **of))
        return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    return make


def text_of(client, model: str, **options) -> str:
    return client.chat.completions.create(model=model, messages=MESSAGES, **options).choices[0].message.content


def test_all_devices_of_a_broker_by_their_names(on_air, asking):
    scripts = {"small": ScriptedModel(["s"]), "large": ScriptedModel(["l"])}
    two = on_air(models=(ModelSettings("small"), ModelSettings("large")), scripts=scripts)
    one = on_air(ScriptedModel(["one"]), pool="herd-a")
    client = asking()
    names = {model.id for model in client.models.list()}
    assert {f"{two.topics.device}/small", f"{two.topics.device}/large", "pool/herd-a/default"} <= names
    assert text_of(client, f"{two.topics.device}/large") == "l"
    assert text_of(client, f"{two.topics.device}/auto") == "s"  # the first, where there is no router
    assert f"{one.topics.device}/auto" not in names
    said = client.chat.completions.create(model="pool/herd-a/default", messages=MESSAGES)
    assert said.choices[0].message.content == "one" and said.stonechat["device"] == one.topics.device


def test_one_device_and_its_stream(on_air, asking):
    device = on_air(ScriptedModel(["Open", " the", " window."]))
    client = asking(device=device.topics.device)
    assert [model.id for model in client.models.list()] == ["default"]
    pieces = client.chat.completions.create(model="default", messages=MESSAGES, stream=True, temperature=0.5, seed=3)
    assert [p.choices[0].delta.content for p in pieces][:-1] == ["", "Open", " the", " window."]
    assert device.model.asked[0][1]["sampling"].seed == 3


def test_a_schema_and_the_confidence_reach_and_come_back(on_air, asking):
    model = ScriptedModel(['{"hot": true}'])
    model.confidence = {"hot": 0.875}
    device = on_air(model)
    schema = {"type": "object", "properties": {"hot": {"type": "boolean"}}, "required": ["hot"]}
    said = asking(device=device.topics.device).chat.completions.create(
        model="default", messages=MESSAGES,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )  # fmt: skip
    assert model.asked[0][1]["schema"] == schema
    assert said.stonechat["confidence"] == {"hot": 0.875}


def test_a_client_that_goes_away_cancels_at_the_device(on_air, asking):
    model = ScriptedModel(["a"] * 1000, gated=True)
    device = on_air(model)
    client = asking(device=device.topics.device)
    model.gate.release(2)
    with client.chat.completions.create(model="default", messages=MESSAGES, stream=True) as stream:
        next(iter(stream))
        next(iter(stream))
    finals = device.client.until(lambda topic, value: "/reply/" in topic and bool(value.get("done")))
    assert finals[-1][1]["finish"] == "cancelled"


def test_a_device_that_is_full_is_429_and_one_that_is_gone_503(on_air, asking):
    model = ScriptedModel(["a"], gated=True)
    device = on_air(model, queue=1)
    client = asking(device=device.topics.device)
    first = device.ask(session="1", correlation=b"1", prompt="x")
    wait_until(lambda: len(model.asked) == 1)
    device.ask(session="2", correlation=b"2", prompt="x")
    device.until_waiting(1)
    with pytest.raises(openai.RateLimitError) as refused:
        text_of(client, "default")
    assert refused.value.code == "busy" and int(refused.value.response.headers["retry-after"]) >= 1
    model.gate.release(9)
    device.client.until(lambda topic, value: topic == first and bool(value.get("done")))
    device.service.stop()
    device.client.until(lambda topic, value: topic == device.topics.state and value["state"] == "disconnected")

    def gone() -> bool:
        with pytest.raises(openai.APIStatusError) as refused:
            text_of(client, "default")
        return refused.value.status_code == 503

    wait_until(gone)


def test_an_unknown_model_and_a_raw_text(on_air, asking):
    client = asking(device=on_air().topics.device)
    with pytest.raises(openai.NotFoundError, match="there are default"):
        text_of(client, "gpt-4o")
    with pytest.raises(openai.BadRequestError, match="in messages"):
        client.completions.create(model="default", prompt="x")


def status_of(client, model: str) -> tuple[int, str]:
    with pytest.raises(openai.APIStatusError) as refused:
        text_of(client, model)
    return refused.value.status_code, refused.value.message


def test_a_model_that_is_known_and_whose_device_is_not_online_is_503(on_air, asking, tmp_path):
    """Of a device that was stopped, of its pool, and of one that only the fleet file names."""
    path = tmp_path / "fleet.yaml"
    path.write_text(
        "schema: 1\nmodels: {falls: {bundle: nowhere}}\ndevices: {ward-x: {model: falls, pool: wards-x}}\n",
        encoding="utf-8",
    )
    on_air(ScriptedModel(["here"]))  # so that there are models
    device = on_air(ScriptedModel(["x"]), pool="herd-x")
    client, name = asking(planned=load(path).devices), device.topics.device
    device.service.stop()
    wait_until(lambda: f"{name}/default" not in {model.id for model in client.models.list()})
    status, said = status_of(client, f"{name}/default")
    assert status == 503 and f"device '{name}', which has '{name}/default', is not online (disconnected)." in said
    status, said = status_of(client, "pool/herd-x/default")
    assert status == 503 and "no device of the pool 'herd-x', which has 'pool/herd-x/default', is online." in said
    status, said = status_of(client, "ward-x/falls")
    assert status == 503 and "device 'ward-x', which has 'ward-x/falls', is not online." in said
    assert status_of(client, "pool/wards-x/falls")[0] == 503
    assert status_of(client, f"{name}/other")[0] == 404
    with pytest.raises(openai.InternalServerError, match="is not online"):
        client.models.retrieve("ward-x/falls")


def test_a_broker_that_is_away_is_503_everywhere_and_in_the_log(serving, tmp_path, caplog):
    caplog.set_level("WARNING", "stonechat.gateway")
    where = free_port()
    with ExitStack() as broker:
        broker.enter_context(mosquitto(tmp_path, port=where))
        config = DeviceConfig("off-pi", BrokerAddress("127.0.0.1", where), tmp_path / "state")
        service = Service(config, lambda name: ScriptedModel(["here"]))
        thread = threading.Thread(target=service.run)
        thread.start()
        try:
            await_ready(where, "off-pi")
            models = FleetModels(config.broker, None)
            client = openai.OpenAI(base_url=f"{serving(models)}/v1", api_key="none", max_retries=0)
            wait_until(lambda: [model.id for model in client.models.list()] == ["off-pi/default"])
            assert text_of(client, "off-pi/default") == "here"
            broker.close()  # SIGTERM: the last wills are published
            wait_until(lambda: not models._watch.connected)
            gone = f"there is no connection to the broker at {config.broker}"
            for model in ("off-pi/default", "what/ever"):
                status, said = status_of(client, model)
                assert status == 503 and gone in said
            with pytest.raises(openai.InternalServerError, match=gone):
                client.models.list()
            broker.enter_context(mosquitto(tmp_path, port=where))
            wait_until(lambda: models._watch.connected and [model.id for model in client.models.list()] != [])
            assert text_of(client, "off-pi/default") == "here"
            lines = [record.message for record in caplog.records if "connection to the broker" in record.message]
            assert len(lines) == 2
            assert lines[0].startswith(f"the connection to the broker at {config.broker} is gone (")
            assert lines[1] == f"the connection to the broker at {config.broker} is back"
        finally:
            service.stop()
            thread.join(60)


@pytest.mark.parametrize(("fresh", "remembers"), [(False, False), (False, True), (True, True)])
def test_a_device_that_is_not_back_at_a_broker_that_was_restarted_is_waited_for(serving, tmp_path, fresh, remembers):
    broker = Broker(tmp_path, remembers=remembers)
    broker.start()
    service = Service(
        DeviceConfig("off-pi", broker.address(), tmp_path / "state"), lambda name: ScriptedModel(["here"])
    )
    service._client._paho.reconnect_delay_set(2, 2)  # a gateway is back after 1 s
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        await_ready(broker.port, "off-pi")
        models = FleetModels(broker.address(), None)
        if not fresh:
            client = openai.OpenAI(base_url=f"{serving(models)}/v1", api_key="none", max_retries=0)
        broker.stop()
        wait_until(lambda: not service._client.connected and not models._watch.connected)
        broker.start()
        if fresh:
            client = openai.OpenAI(base_url=f"{serving(models)}/v1", api_key="none", max_retries=0)
        wait_until(lambda: models._watch.connected)
        assert not service._client.connected
        assert [model.id for model in client.models.list()] == ["off-pi/default"]
        assert text_of(client, "off-pi/default") == "here"
        service.stop()
        wait_until(lambda: not list_of(models))  # a device that was stopped is at no time waited for
    finally:
        service.stop()
        thread.join(60)
        broker.stop()


def list_of(models: FleetModels) -> list[str]:
    return [card.id for card in models.cards()]


def test_a_device_that_is_lost_is_not_listed_for_long(serving, tmp_path):
    broker = Broker(tmp_path, remembers=True)
    broker.start()
    try:
        topics = DeviceTopics("off-pi")
        info = Info("off-pi", "a board", "1", models=("default",)).to_json()
        lost = State(DeviceState.LOST, 3).to_json()
        for topic, payload in ((topics.info, info), (topics.state, lost)):
            publish.single(topic, payload, qos=1, retain=True, port=broker.port)
        models = FleetModels(broker.address(), None)
        client = openai.OpenAI(base_url=f"{serving(models)}/v1", api_key="none", max_retries=0)
        status, said = status_of(client, "off-pi/default")
        assert status == 503 and "device 'off-pi' is lost: it vanished without a word." in said
        wait_until(lambda: not list_of(models), 2 * RETURNS_S)
        status, said = status_of(client, "off-pi/default")
        assert status == 503 and "device 'off-pi', which has 'off-pi/default', is not online (lost)." in said
    finally:
        broker.stop()
