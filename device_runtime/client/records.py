"""What devices have kept of their answers, read over MQTT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from device_runtime.client.exchange import Exchange
from device_runtime.errors import StonechatError
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.topics import DeviceTopics

__all__ = ["kept_records"]


def kept_records(
    broker: BrokerAddress,
    device: str,
    kind: Literal["answers", "examples"] = "answers",
    *,
    client: str | None = None,
    timeout_s: float = 10.0,
) -> Iterator[dict[str, Any]]:
    """All that a device has kept, the oldest first.

    Args:
        client: who asks, as the broker knows it; None where it lets everyone in.
        timeout_s: for each page.

    Raises:
        UnreachableError: there is no broker, or the device does not answer.
        StonechatError: the device refuses, or sends something else.
    """
    exchange = Exchange(broker, DeviceTopics(device), client)
    exchange.open()
    try:
        after: int | None = 0
        while after is not None:
            page = exchange.query(DeviceTopics(device).records, {"kind": kind, "after": after}, timeout_s)
            entries = page.get("records")
            if not isinstance(entries, list):
                raise StonechatError(f"device {device!r} sent no records.")
            yield from (entry for entry in entries if isinstance(entry, dict))
            following = page.get("next")
            after = following if entries and isinstance(following, int) and following > after else None
    finally:
        exchange.close()
