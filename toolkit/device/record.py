"""device.json of a board: what `device init` has chosen, read by the commands on the board and by those from afar."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from device_runtime.records import typed_json

__all__ = ["Record"]


@dataclass(frozen=True)
class Record:
    """ROOT/device.json: what `device init` chose."""

    device: str  # its id in the fleet file
    prefix: str
    service: str  # systemd, or none
    restart: str | None = None  # where there is no systemd: a command that ends well once the service is ready
    board: str | None = None  # its id, or where its board file lies there
    schema: int = 1

    def to_json(self) -> str:
        """As it lies on the board."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Read it.

        Raises:
            ValueError: it is damaged, or by a newer stonechat.
        """
        data = json.loads(text)
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != 1:
            raise ValueError(f"schema is {schema!r}, and this stonechat knows 1")
        record: Record = typed_json.read(cls, data)
        return record
