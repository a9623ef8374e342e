"""paho's client, made to live through messages that it takes for malformed.

MQTT 5 lets anybody who may publish add user properties, and paho ends the connection over some that a broker passes on
(U+FEFF in a text, which MQTT 5.0, section 1.5.4, allows). One such message would take a device off the air. stonechat
reads no user properties, so they are cut out before paho looks at them.
"""

from __future__ import annotations

import logging
import struct
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt import MQTTException

__all__ = ["TolerantClient", "without_user_properties"]

_USER_PROPERTY = 0x26
# Bytes of the other properties of a PUBLISH (MQTT 5.0, table 2-4); "text" and "varint" say their own length.
_SIZES: dict[int, int | str] = {
    0x01: 1, 0x02: 4, 0x03: "text", 0x08: "text", 0x09: "text", 0x0B: "varint", 0x23: 2,
}  # fmt: skip
_UNREADABLE = (MQTTException, UnicodeDecodeError, struct.error, IndexError, KeyError, ValueError)

log = logging.getLogger("stonechat.mqtt")


class TolerantClient(paho.Client):
    """A client whose connection no PUBLISH can end."""

    def _handle_publish(self) -> Any:
        packet: bytearray = self._in_packet["packet"]
        qos = (self._in_packet["command"] & 0x06) >> 1
        try:
            if self._protocol == paho.MQTTv5 and _USER_PROPERTY in packet:  # else there is none for sure
                self._in_packet["packet"] = without_user_properties(packet, qos)
            return super()._handle_publish()
        except _UNREADABLE as error:
            log.warning("dropped a message that cannot be read: %s", type(error).__name__)
            return self._confirm(packet, qos)

    def _confirm(self, packet: bytearray, qos: int) -> Any:
        """Confirm what was dropped, or the broker would hold its place for ever."""
        if qos != 1:
            return paho.MQTT_ERR_SUCCESS
        try:
            (length,) = struct.unpack_from("!H", packet)
            (mid,) = struct.unpack_from("!H", packet, 2 + length)
        except struct.error:
            return paho.MQTT_ERR_PROTOCOL
        return self._send_puback(mid)


def without_user_properties(packet: bytes | bytearray, qos: int) -> bytearray:
    """The variable header and payload of an MQTT 5 PUBLISH, without its user properties.

    Raises:
        ValueError: its properties cannot be told apart.
    """
    try:
        (topic_length,) = struct.unpack_from("!H", packet)
        start = 2 + topic_length + (2 if qos else 0)
        length, begin = _varint(packet, start)
        end = begin + length
        if end > len(packet):
            raise ValueError("the properties are longer than the packet")
        kept, at = bytearray(), begin
        while at < end:
            kind = packet[at]
            after = _end(packet, kind, at + 1)
            if after > end:
                raise ValueError("a property is longer than all of them")
            if kind != _USER_PROPERTY:
                kept += packet[at:after]
            at = after
    except (struct.error, IndexError) as error:
        raise ValueError(str(error)) from None
    if len(kept) == length:
        return bytearray(packet)
    return bytearray(packet[:start]) + _as_varint(len(kept)) + kept + packet[end:]


def _end(packet: bytes | bytearray, kind: int, at: int) -> int:
    """Where a property ends whose value begins at `at`."""
    if kind == _USER_PROPERTY:
        return _text_end(packet, _text_end(packet, at))
    size = _SIZES.get(kind)
    if size is None:
        raise ValueError(f"a PUBLISH has no property {kind:#x}")
    if size == "text":
        return _text_end(packet, at)
    return _varint(packet, at)[1] if size == "varint" else at + int(size)


def _text_end(packet: bytes | bytearray, at: int) -> int:
    (length,) = struct.unpack_from("!H", packet, at)
    return at + 2 + int(length)


def _varint(packet: bytes | bytearray, at: int) -> tuple[int, int]:
    """A variable byte integer (MQTT 5.0, section 1.5.5), and where it ends."""
    value = 0
    for shift in range(0, 28, 7):
        byte = packet[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise ValueError("a variable byte integer has more than 4 bytes")


def _as_varint(value: int) -> bytes:
    digits = bytearray()
    while True:
        value, digit = value >> 7, value & 0x7F
        digits.append(digit | (0x80 if value else 0))
        if not value:
            return bytes(digits)
