"""What a device tells of its health, once a minute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from device_runtime.device.statistics import Statistics
from device_runtime.errors import ContextOverflowError
from device_runtime.machine import machine
from device_runtime.mqtt.messages import Final, Usage
from tests.support.scripted_model import ScriptedModel


def answer(tps: float = 10.0, ttft_ms: float = 50.0, tokens: int = 5) -> Final:
    return Final(0, "x", "stop", Usage(7, 1, tokens), ttft_ms, tps)


def test_a_new_device_tells_only_what_it_knows():
    fields = Statistics().to_fields(queue=0)
    assert fields["answers"] == fields["errors"] == fields["queue"] == fields["uptime_s"] == 0
    assert fields["rss_mb"] > 1
    assert "tps_p50" not in fields and "ttft_ms_p95" not in fields


def test_rates_are_medians_and_first_tokens_the_95th_percentile():
    health = Statistics()
    for i in range(1, 101):
        health.answered(answer(tps=float(i), ttft_ms=float(10 * i)))
    fields = health.to_fields(queue=3)
    assert (fields["tps_p50"], fields["ttft_ms_p95"], fields["answers"], fields["queue"]) == (50.5, 950.0, 100, 3)


def test_an_answer_of_one_token_has_no_rate():
    health = Statistics()
    health.answered(answer(tokens=1))
    health.answered(answer(tokens=0))
    fields = health.to_fields(queue=0)
    assert "tps_p50" not in fields
    assert fields["ttft_ms_p95"] == 50.0 and fields["answers"] == 2


def test_memory_is_bounded():
    health = Statistics()
    for i in range(10_000):
        health.answered(answer(tps=float(i)))
    assert len(health._rates) == len(health._firsts_ms) == 256
    assert health.to_fields(queue=0)["tps_p50"] == 9871.5  # of the last 256


def test_uptime_is_on_the_given_clock():
    now = [100.0]
    health = Statistics(lambda: now[0])
    now[0] = 190.4
    assert health.to_fields(queue=0)["uptime_s"] == 90


@pytest.mark.parametrize("text, degrees", [("48312\n", 48.3), ("-5000", -5.0), ("", None), ("hot", None)])
def test_temperature(text, degrees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "temp").write_text(text)
    monkeypatch.setattr(machine, "_THERMAL", tmp_path / "temp")
    assert machine.temperature_c() == degrees


@pytest.mark.parametrize(
    "text, now", [("0\n", False), ("50000\n", False), ("50005\n", True), ("0x8", True), ("no", None)]
)
def test_throttling_counts_only_while_it_lasts(text, now, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Bits 16 to 19 say what has been since the start."""
    (tmp_path / "get_throttled").write_text(text)
    monkeypatch.setattr(machine, "_THROTTLED", tmp_path / "get_throttled")
    assert machine.throttled() is now


def test_a_machine_that_tells_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("_THERMAL", "_THROTTLED"):
        monkeypatch.setattr(machine, name, tmp_path / "nowhere")
    assert machine.temperature_c() is None and machine.throttled() is None
    assert {"temperature_c", "throttled"}.isdisjoint(Statistics().to_fields(queue=0))


def test_it_is_published_at_the_start_and_again(on_air):
    device = on_air(ScriptedModel(["a", "b"]), health_s=0.3)
    device.client.deaf_to = "(nothing)"
    device.ask(prompt="x")

    def counted(topic, value):
        return topic == device.topics.health and value["answers"] == 1

    health = device.client.until(counted)[-1][1]
    assert health["tps_p50"] == 100.0 and health["ttft_ms_p95"] == 12.5
    device.model.fails_with = RuntimeError("no")
    device.ask(prompt="y", correlation=b"2")
    health = device.client.until(lambda topic, value: topic == device.topics.health and value["errors"] == 1)[-1][1]
    assert health["queue"] == 0


def test_what_a_request_asked_for_in_vain_is_no_error_of_the_device(on_air):
    device = on_air(health_s=0.2)
    device.client.deaf_to = "(nothing)"
    device.model.fails_with = ContextOverflowError("The prompt has 999 tokens.")
    device.ask(prompt="x")
    device.client.until(lambda topic, value: "error" in value)
    assert device.client.until(lambda topic, value: topic == device.topics.health)[-1][1]["errors"] == 0


def test_it_is_not_retained(on_air, peer):
    """An old one would tell of a device that may be gone."""
    device = on_air(health_s=0.2)
    device.client.deaf_to = "(nothing)"
    device.client.until(lambda topic, value: topic == device.topics.health)
    device.service.stop()
    device.client.until(lambda topic, value: topic == device.topics.state and value["state"] == "disconnected")
    late = peer()
    late.subscribe(device.topics.health, device.topics.state)  # in this order the broker sends what it keeps
    assert late.next()[0] == device.topics.state


def test_no_field_names_what_was_asked_or_said(on_air):
    device = on_air(ScriptedModel(["secret answer"]), health_s=0.2)
    device.client.deaf_to = "(nothing)"
    device.ask(prompt="secret question")
    seen = device.client.until(lambda topic, value: topic == device.topics.health and value["answers"] == 1)
    health = [value for topic, value in seen if topic == device.topics.health]
    assert "secret" not in json.dumps(health)
