"""What a device keeps out, and how it tells."""

from __future__ import annotations

import paho.mqtt.client as paho
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.device.rate_limit import BURST_S, MAX_CLIENTS, TOGETHER, RateLimiter
from device_runtime.errors import ConfigurationError
from device_runtime.fleet import file as fleet
from device_runtime.fleet.links import Link
from device_runtime.fleet.settings import RateLimits
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.client import MAX_PACKET_BYTES


def limiter(**limits):
    """A limiter, its clock and what it tells."""
    now, told = [0.0], []
    return RateLimiter(RateLimits(**limits), told.append, lambda: now[0]), now, told


@given(st.lists(st.floats(0, 3), max_size=200), st.floats(0.5, 50))
def test_never_more_than_a_burst_and_the_rate(pauses_s, rate):
    kept, now, _ = limiter(requests=rate)
    admitted = 0
    for pause_s in pauses_s:
        now[0] += pause_s
        admitted += kept.admits("requests", "anna")
        assert admitted <= rate * (BURST_S + now[0]) + 1e-6
    assert admitted + kept.counts["requests"] == len(pauses_s)


@given(st.integers(1, 500), st.integers(1, 20))
def test_who_keeps_to_the_limit_loses_nothing(messages, rate):
    kept, now, told = limiter(readings=rate)
    for _ in range(messages):
        now[0] += 1 / rate
        assert kept.admits("readings")
    assert told == []


def test_one_kind_does_not_use_up_another():
    kept, _, _ = limiter(requests=1, cancels=1)
    assert [kept.admits("requests", "anna") for _ in range(4)] == [True, True, False, False]
    assert kept.admits("cancels", "anna")


def test_one_client_does_not_use_up_anothers():
    kept, _, _ = limiter(refusals=1)
    assert [kept.admits("refusals", "wild") for _ in range(4)] == [True, True, False, False]
    assert kept.admits("refusals", "anna")


def test_names_without_end_are_bounded_together_and_in_memory():
    kept, _, _ = limiter(requests=100)
    assert sum(kept.admits("requests", f"name-{number}") for number in range(10_000)) == 100 * BURST_S * TOGETHER
    assert len(kept._clients) <= MAX_CLIENTS


def test_what_is_dropped_is_told_once_a_minute_with_its_count():
    kept, now, told = limiter(updates=1)
    for _ in range(100):
        kept.admits("updates")
    assert told == [{"event": "dropped", "kind": "updates", "message": "more than 1 a second came", "count": 1}]
    now[0] = 59.9
    for _ in range(10):
        kept.admits("updates")
    assert len(told) == 1
    now[0] = 60.1
    for _ in range(100):
        kept.admits("updates")
    assert [event["count"] for event in told] == [1, 107]  # the 107th was the first after a minute
    assert kept.counts["updates"] > 107


def test_a_fleet_file_sets_limits(tmp_path):
    path = tmp_path / "fleet.yaml"
    text = "schema: 1\nmodels: {m: {bundle: x}}\ndevices: {d: {model: m, limits: {readings: 9000}}}\n"
    path.write_text(text)
    config = fleet.load(path).device("d", BrokerAddress("x"), tmp_path)
    assert (config.limits.readings, config.limits.requests) == (9000, RateLimits().requests)
    path.write_text(text.replace("readings", "redings"))
    with pytest.raises(ConfigurationError, match=r"fleet.yaml:3:\d+: .*did you mean 'readings'\?"):
        fleet.load(path)


class TestOnAir:
    def stop_the_clock(self, device):
        """So that a bucket does not fill again while the test goes on, however slow the machine is."""
        now_s = device.service._device.limiter._clock()
        device.service._device.limiter._clock = lambda: now_s

    def until_event(self, device):
        seen = device.client.until(lambda topic, value: value.get("event") == "dropped", 60)
        return seen[-1][1]

    def test_requests_beyond_the_limit_are_dropped_and_told_in_event_and_health(self, on_air, peer):
        device = on_air(limits=RateLimits(requests=1), health_s=0.2)
        self.stop_the_clock(device)
        health = peer()
        health.subscribe(device.topics.health)
        for i in range(6):
            device.ask(prompt=f"q {i}", correlation=b"%d" % i)
        event = self.until_event(device)
        assert (event["kind"], event["count"]) == ("requests", 1)
        health.until(lambda topic, value: value.get("dropped", {}).get("requests", 0) == 4, 60)
        assert len(device.model.asked) == 2  # the burst

    def test_readings_beyond_the_limit_wake_nobody(self, on_air, peer):
        link = Link(name="hot", source="limited/+/air", prompt="{{ t }}", to="limited/advice", overload="every")
        device = on_air(links=(link,), limits=RateLimits(readings=1))
        self.stop_the_clock(device)
        sensor = peer()
        for i in range(6):
            sensor.publish("limited/a/air", {"t": i})
        assert self.until_event(device)["kind"] == "readings"

    def test_junk_is_not_amplified(self, on_air):
        device = on_air(limits=RateLimits(refusals=2))
        self.stop_the_clock(device)
        for i in range(50):
            device.ask(nonsense=i, correlation=b"%d" % i)
        device.ask(prompt="sense", correlation=b"last")
        seen = device.client.until(lambda topic, value: value.get("text") == "SENSE", 60)
        assert len([value for _, value in seen if "error" in value]) == 4  # the burst

    def test_home_assistant_is_answered_a_few_times_only(self, on_air, peer):
        device = on_air()
        watcher = peer()
        watcher.subscribe(f"homeassistant/device/{device.topics.device}/config")
        watcher.next(60)  # the retained one
        self.stop_the_clock(device)
        for _ in range(30):
            watcher.publish("homeassistant/status", b"online")
        device.ask(prompt="x")
        device.client.until(lambda topic, value: value.get("text") == "X", 60)
        watcher.publish(f"homeassistant/device/{device.topics.device}/config", {"the": "end"})
        seen = watcher.until(lambda topic, value: value == {"the": "end"}, 60)
        assert len(seen) == 1 + 2  # the burst

    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    def test_ten_megabytes_are_not_read(self, on_air, peer, port, protocol):
        """An MQTT 5 broker keeps them; over MQTT 3.1.1 they come, and are dropped and told."""
        device = on_air(broker=BrokerAddress("127.0.0.1", port, protocol=protocol))
        client = peer(paho.MQTTv311)
        reply_to = device.topics.reply("big", "1")
        client.subscribe(reply_to)
        fields = {"prompt": "x" * 10_000_000, "reply_to": reply_to, "id": "q"}
        client.publish(device.topics.generate, fields)
        client.publish(device.topics.generate, {"prompt": "small", "reply_to": reply_to, "id": "p"})
        assert client.next(60)[1]["text"] == "SMALL"
        assert device.service._device.limiter.counts["oversized"] == (protocol == "3.1.1")
        if protocol == "3.1.1":
            event = self.until_event(device)
            assert event["kind"] == "oversized"
            assert f"{device.topics.generate} came with 100000" in event["message"]

    def test_a_payload_that_is_a_little_too_large_is_still_told_so(self, on_air):
        device = on_air()
        device.ask(prompt="x" * 70_000)
        seen = device.client.until(lambda topic, value: "error" in value, 60)
        assert "at most 65536 are read" in seen[-1][1]["error"]["message"]
        assert MAX_PACKET_BYTES > 70_000
