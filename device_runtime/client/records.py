"""What devices have kept of their answers, read over MQTT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from device_runtime.client.exchange import Exchange
from device_runtime.errors import StonechatError
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.topics import DeviceTopics

__all__ = ["kept_records", "newest_records"]

PAGE = 50  # records


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
    with _pages(broker, device, kind, client, timeout_s) as page_after:
        yield from _from(page_after, 0)


def newest_records(
    broker: BrokerAddress, device: str, count: int, *, client: str | None = None, timeout_s: float = 10.0
) -> tuple[int, list[dict[str, Any]]]:
    """How many records a device has kept, and the newest of them, the oldest first; see `kept_records`."""
    with _pages(broker, device, "answers", client, timeout_s) as page_after:
        total = page_after(0, 1).get("total")
        total = total if isinstance(total, int) and total >= 0 else 0
        return total, list(_from(page_after, max(0, total - count)))


_PageAfter = Callable[[int, int], Mapping[str, Any]]


@contextmanager
def _pages(
    broker: BrokerAddress, device: str, kind: Literal["answers", "examples"], client: str | None, timeout_s: float
) -> Iterator[_PageAfter]:
    """Asks for one page: those after so many, and at most so many."""
    exchange = Exchange(broker, DeviceTopics(device), client)
    exchange.open()

    def page_after(after: int, limit: int) -> Mapping[str, Any]:
        query = {"kind": kind, "after": after, "limit": limit}
        page = exchange.query(DeviceTopics(device).records, query, timeout_s)
        if not isinstance(page.get("records"), list):
            raise StonechatError(f"device {device!r} sent no records.")
        return page

    try:
        yield page_after
    finally:
        exchange.close()


def _from(page_after: _PageAfter, first: int) -> Iterator[dict[str, Any]]:
    after: int | None = first
    while after is not None:
        page = page_after(after, PAGE)
        yield from (entry for entry in page["records"] if isinstance(entry, dict))
        following = page.get("next")
        after = following if page["records"] and isinstance(following, int) and following > after else None
