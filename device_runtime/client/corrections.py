"""Corrections of answers, sent to a device over MQTT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from device_runtime.client.exchange import Exchange
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.topics import DeviceTopics

__all__ = ["correct"]


def correct(
    broker: BrokerAddress,
    device: str,
    correction: Mapping[str, Any],
    *,
    client: str | None = None,
    timeout_s: float = 10.0,
) -> Mapping[str, Any]:
    """Have a device keep the right answer; what it says of that.

    Args:
        correction: see docs/reference/mqtt.md, "Corrections".
        client: who corrects, as the broker knows them; None where it lets everyone in.

    Raises:
        UnreachableError: there is no broker, or the device does not answer.
        StonechatError: the device refuses it, and says why.
    """
    exchange = Exchange(broker, DeviceTopics(device), client)
    exchange.open()
    try:
        return exchange.query(DeviceTopics(device).correct, correction, timeout_s)
    finally:
        exchange.close()
