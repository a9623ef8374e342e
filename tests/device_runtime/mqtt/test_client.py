"""The connection itself."""

from __future__ import annotations

import ssl

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import MQTTErrorCode

from device_runtime.errors import ConfigurationError, UnreachableError
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
