"""The connection itself."""

from __future__ import annotations

import ssl
import threading
import time

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import MQTTErrorCode

from device_runtime.errors import ConfigurationError, UnreachableError
from device_runtime.mqtt import client as module
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.client import LAG_MESSAGES, Client
from tests.brokers import free_port, mosquitto


def nothing(message: object) -> None:
    """Hears."""


def test_what_was_lost_with_its_connection_does_not_count_as_lag():
    """paho marks such messages with an error, and raises it to whoever asks for them."""
    client = Client(BrokerAddress("127.0.0.1"), "x", on_message=nothing)
    for number in range(LAG_MESSAGES):
        info = paho.MQTTMessageInfo(number)
        info.rc = MQTTErrorCode.MQTT_ERR_CONN_LOST
        client._unsent.append(info)
    assert not client.lagging


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_client_that_found_no_broker_may_try_again(tmp_path, protocol):
    port = free_port()
    client = Client(BrokerAddress("127.0.0.1", port, protocol=protocol), "x", on_message=nothing)
    for _ in range(2):
        with pytest.raises(UnreachableError, match="Connection refused"):
            client.connect()
    with mosquitto(tmp_path, port=port):
        client.connect()
        assert client.connected
        client.close()


def wait_until(condition) -> None:
    end_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_a_broker_that_restarts_again_and_again_is_not_another_client(tmp_path):
    """Each connection is short, as those of two clients of one id are."""
    port = free_port()
    client = Client(BrokerAddress("127.0.0.1", port), "x", on_message=nothing)
    with mosquitto(tmp_path, port=port):
        client.connect()
    for _ in range(6):
        with mosquitto(tmp_path, port=port):
            wait_until(lambda: client.connected)
        wait_until(lambda: not client.connected)
    assert not client.takeover.is_set()
    client.close()


def test_a_broker_that_was_not_there_for_a_while_is_not_another_client(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHORT_LIVES", 2)
    port, missed = free_port(), threading.Semaphore(0)
    client = Client(BrokerAddress("127.0.0.1", port), "x", on_message=nothing)
    not_there = client._paho.on_connect_fail

    def miss(*arguments) -> None:
        not_there(*arguments)
        missed.release()

    client._paho.on_connect_fail = miss
    with mosquitto(tmp_path, port=port):
        client.connect()
    for _ in range(2):
        assert missed.acquire(timeout=60)
        with mosquitto(tmp_path, port=port):
            wait_until(lambda: client.connected)
        wait_until(lambda: not client.connected)
    assert not client.takeover.is_set()
    client.close()


def test_tls_to_a_port_without_it_is_a_fault_of_the_configuration(port):
    """Waiting would not help."""
    broker = BrokerAddress("127.0.0.1", port, tls=True)
    with pytest.raises((ConfigurationError, UnreachableError)) as error:
        Client(broker, "x", on_message=nothing).connect()
    assert "TLS" in str(error.value)


@pytest.mark.parametrize(
    ("code", "expected"), [(9, UnreachableError), (11, UnreachableError), (10, ConfigurationError)]
)
def test_a_board_whose_clock_is_behind_waits_for_the_time(monkeypatch, code, expected):
    """Without a battery it starts in the past, where the broker's certificate is not valid yet. Expired stays so."""

    def verify(timeout_s: float) -> None:
        error = ssl.SSLCertVerificationError(1, "certificate verify failed")
        error.verify_code, error.verify_message = code, "certificate is not yet valid"
        raise error

    client = Client(BrokerAddress("127.0.0.1", tls=True), "x", on_message=nothing)
    monkeypatch.setattr(client, "_open", verify)
    with pytest.raises(expected, match=r"is not yet valid. Check") as error:
        client.connect()
    assert ("clock: it says 20" in str(error.value)) == (expected is UnreachableError)
