"""The connection itself."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import struct
import threading
import time

import paho.mqtt.client as paho
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.enums import MQTTErrorCode

from device_runtime.errors import ConfigurationError, UnreachableError
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.client import LAG_MESSAGES, Client
from device_runtime.mqtt.packets import Subscription
from device_runtime.mqtt.tolerant_paho import without_user_properties
from tests.support.brokers import free_port, mosquitto


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


def test_why_there_is_no_connection_is_what_the_last_attempt_met(tmp_path):
    """As a command says it that finds no broker; the library's own word is "Unspecified error"."""
    port, told = free_port(), []
    client = Client(
        BrokerAddress("127.0.0.1", port), "x", on_message=nothing, on_connection=lambda *news: told.append(news)
    )
    with mosquitto(tmp_path, port=port):
        client.connect()
    wait_until(lambda: (False, "Connection refused") in told)
    assert all("Unspecified" not in reason for _, reason in told)
    with mosquitto(tmp_path, port=port):
        wait_until(lambda: client.connected and told[-1] == (True, ""))
    assert told.count((False, "Connection refused")) == 1  # and not with each attempt
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


class Broker:
    """The broker's side of one connection, byte by byte: it says what it is told to, and keeps what comes."""

    def __init__(self, connack: bytes = b"\x20\x03\x00\x00\x00") -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.connack, self.came, self.connections = connack, [], []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self._talk, args=[connection], daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        file = connection.makefile("rb")
        with contextlib.suppress(OSError, IndexError):
            while True:
                kind, length, shift = file.read(1)[0], 0, 0
                while (digit := file.read(1)[0]) & 0x80:
                    length, shift = length | (digit & 0x7F) << shift, shift + 7
                packet = file.read(length | digit << shift)
                self.came.append((kind, packet))
                if kind == 0x10:
                    connection.sendall(self.connack)
                elif kind & 0xF0 == 0x80:  # a SUBACK, all granted
                    connection.sendall(b"\x90\x04" + packet[:2] + b"\x00\x01")

    def send(self, packet: bytes) -> None:
        self.connections[-1].sendall(packet)

    def kinds(self, kind: int) -> list[bytes]:
        return [packet for found, packet in self.came if found & 0xF0 == kind]


def publish_packet(topic: bytes, properties: bytes, payload: bytes, mid: int = 7) -> bytes:
    """A PUBLISH of QoS 1 (MQTT 5.0, section 3.3)."""
    body = struct.pack("!H", len(topic)) + topic + struct.pack("!H", mid)
    body += bytes([len(properties)]) + properties + payload
    return b"\x32" + bytes([len(body)]) + body


def text(value: bytes) -> bytes:
    return struct.pack("!H", len(value)) + value


@pytest.mark.parametrize(
    "properties, payload",
    [
        (b"\x26" + text("\ufeff".encode()) + text(b"x"), b"good"),  # allowed by MQTT 5, and paho refuses it
        (b"\x26" + text(b"a") + text(b"b\x00"), b"good"),
        (b"\x26" + text(b"\xff") + text(b"\xff"), b"good"),
        (b"\x26" + text(b"a") + text(b"b") + b"\x08" + text("r\ufeff".encode()), None),  # in what matters: dropped
        (b"\x7e\x00", None),  # no such property
        (b"\x01", None),  # cut
        (b"\x02\x00\x00\x00\x09\x02\x00\x00\x00\x09", None),  # twice
    ],
)
def test_no_property_of_a_message_ends_the_connection(properties, payload):
    broker, heard = Broker(), queue.Queue()
    client = Client(BrokerAddress("127.0.0.1", broker.port), "x", on_message=heard.put)
    client.subscribe(Subscription("t"))
    client.connect()
    broker.send(publish_packet(b"t", properties, b"good", mid=7))
    broker.send(publish_packet(b"t", b"", b"next", mid=8))
    payloads = []
    while not payloads or payloads[-1] != b"next":
        payloads.append(heard.get(timeout=30).payload)
    assert payloads == ([payload] if payload else []) + [b"next"]
    wait_until(lambda: len(broker.kinds(0x40)) == 2)  # both were confirmed, or the broker would hold places for them
    assert [packet[:2] for packet in broker.kinds(0x40)] == [b"\x00\x07", b"\x00\x08"]
    assert len(broker.connections) == 1
    client.close(0)


def test_a_topic_that_is_not_utf8_is_dropped():
    broker, heard = Broker(), queue.Queue()
    client = Client(BrokerAddress("127.0.0.1", broker.port), "x", on_message=heard.put)
    client.connect()
    broker.send(publish_packet(b"\xff\xfe", b"", b"bad"))
    broker.send(publish_packet(b"t", b"", b"next"))
    assert heard.get(timeout=30).payload == b"next"
    client.close(0)


@given(st.binary(max_size=200), st.integers(0, 1))
def test_cutting_out_user_properties_never_fails_in_another_way(packet, qos):
    with contextlib.suppress(ValueError):
        without_user_properties(packet, qos)


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=9), st.binary(max_size=50))
def test_what_is_left_of_a_message_is_what_it_was_without_user_properties(pairs, payload):
    user = b"".join(b"\x26" + text(a.encode()) + text(b.encode()) for a, b in pairs)
    own = b"\x08" + text(b"reply") + b"\x02\x00\x00\x00\x09"

    def variable(properties: bytes) -> bytes:
        length = bytes([len(properties)]) if len(properties) < 128 else bytes(
            [len(properties) & 0x7F | 0x80, len(properties) >> 7]
        )  # fmt: skip
        return text(b"t") + b"\x00\x07" + length + properties + payload

    assert without_user_properties(variable(user + own + user), 1) == variable(own)


def connack(properties: bytes) -> bytes:
    body = b"\x00\x00" + bytes([len(properties)]) + properties
    return b"\x20" + bytes([len(body)]) + body


def test_a_broker_gets_nothing_that_it_does_not_offer():
    """AWS IoT Core and others end the connection over it."""
    offers = b"\x24\x00" + b"\x25\x00" + b"\x28\x00" + b"\x29\x00" + b"\x2a\x00"  # QoS 0, and none of the rest
    broker, subscribed = Broker(connack(offers)), threading.Event()
    client = Client(
        BrokerAddress("127.0.0.1", broker.port), "x", on_message=nothing, on_subscribed=lambda _: subscribed.set()
    )
    client.subscribe(Subscription("a/b", id=3), Subscription("a/+", id=4), Subscription("$share/g/a"))
    client.connect()
    assert subscribed.wait(30)
    (packet,) = broker.kinds(0x80)
    assert packet[2:] == b"\x00" + text(b"a/b") + b"\x00"  # no properties: no subscription identifier; QoS 0
    client.publish("t", b"x", qos=1, retain=True)
    wait_until(lambda: bool(broker.kinds(0x30)))
    assert [kind for kind, _ in broker.came if kind & 0xF0 == 0x30] == [0x30]
    client.close(0)


def test_what_is_larger_than_a_broker_takes_is_not_sent_and_its_sender_is_told():
    broker, refusals = Broker(connack(b"\x27" + struct.pack("!I", 2000))), []
    client = Client(BrokerAddress("127.0.0.1", broker.port), "x", on_message=nothing)
    client.connect()
    client.publish("t", bytes(3000), qos=1, on_confirmed=refusals.append)
    client.tell_confirmed()
    assert refusals == ["it has 3000 bytes, and the broker takes packets of 2000"]
    assert broker.kinds(0x30) == []
    client.close(0)


def test_an_error_in_a_callback_restarts_the_connection(port):
    """Without this paho's thread ends, and the process hears nothing any more."""
    heard, calls = queue.Queue(), []

    def subscribed(listening: bool) -> None:
        calls.append(listening)
        if len(calls) == 1:
            raise RuntimeError("once")

    client = Client(BrokerAddress("127.0.0.1", port), "x", on_message=heard.put, on_subscribed=subscribed)
    client.subscribe(Subscription("callback/error"))
    client.connect()
    wait_until(lambda: len(calls) > 1)
    client.publish("callback/error", b"still here", qos=1)
    assert heard.get(timeout=30).payload == b"still here"
    client.close()


def test_a_network_thread_that_ended_is_started_again(port, monkeypatch):
    heard = queue.Queue()
    client = Client(BrokerAddress("127.0.0.1", port), "x", on_message=heard.put)
    client.subscribe(Subscription("thread/ended"))
    client.connect()
    wait_until(lambda: client._network is not None)
    monkeypatch.setattr(client._paho, "loop_misc", lambda: 1 / 0)  # an error that is paho's own
    wait_until(lambda: not client._network.is_alive())
    monkeypatch.undo()
    client.tell_confirmed()
    wait_until(lambda: client.connected)
    client.publish("thread/ended", b"back", qos=1)
    assert heard.get(timeout=30).payload == b"back"
    client.close()


def test_no_number_of_short_connections_is_another_client():
    """A broker that restarts every two seconds looks just so."""
    broker = Broker()
    client = Client(BrokerAddress("127.0.0.1", broker.port), "x", on_message=nothing)
    client._paho.reconnect_delay_set(1, 1)
    client._paho._reconnect_wait = lambda: time.sleep(0.01)
    client.connect()
    for number in range(1, 40):
        wait_until(lambda number=number: len(broker.connections) >= number and client.connected)
        broker.connections[-1].shutdown(socket.SHUT_RDWR)
    assert not client.takeover.is_set()
    client.close(0)


def test_a_user_name_in_a_url_may_be_escaped():
    assert BrokerAddress.from_url("mqtt://user%40home@host").user == "user@home"
    assert BrokerAddress.from_url("mqtt://a%3Ab@host").user == "a:b"
