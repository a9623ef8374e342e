"""What devices have kept of their answers, and what people say of these, through the broker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from device_runtime.client.corrections import correct
from device_runtime.client.records import newest_records
from device_runtime.errors import RefusedError, UnreachableError
from device_runtime.mqtt.address import BrokerAddress
from device_runtime.mqtt.topics import is_id

__all__ = ["KeptThere"]

SHOWN = 20  # records


class KeptThere:
    """May be used from any thread."""

    def __init__(
        self, broker: BrokerAddress, client: str | None, reader: tuple[BrokerAddress, str | None] | None = None
    ) -> None:
        """Prepare; each question has a connection of its own.

        Args:
            client: who corrects, as the broker knows them.
            reader: who reads records, where that is another: at a broker with users it is an operator's right.
        """
        self._broker, self._client = broker, client
        self._reader = reader or (broker, client)

    def correct(self, device: Any, correction: Mapping[str, Any]) -> Mapping[str, Any]:
        """Have a device keep the right answer.

        Raises:
            StonechatError: it does not take it, and says why.
        """
        return correct(self._broker, _checked(device), correction, client=self._client)

    def records(self, device: str) -> Mapping[str, Any]:
        """The newest records of a device, the newest first, and how many it has kept.

        Raises:
            UnreachableError: it does not answer, or the broker does not let this dashboard ask.
        """
        broker, client = self._reader
        try:
            total, found = newest_records(broker, _checked(device), SHOWN, client=client, timeout_s=5.0)
        except UnreachableError as error:
            if client is None:
                raise
            raise UnreachableError(
                f"{error} At a broker with users, records are for operators: start the dashboard with --operator NAME."
            ) from None
        return {"total": total, "records": found[::-1]}


def _checked(device: Any) -> str:
    if not isinstance(device, str) or not is_id(device):
        raise RefusedError("expected the id of a device.")
    return device
