"""`records` in a fleet file: what is kept of answers, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from device_runtime.fleet.policies.escalation import REDACTIONS, Redaction
from device_runtime.fleet.yaml_schema import Boolean, Field, Integer, Number, Record

__all__ = ["RECORDING", "Recording"]


@dataclass(frozen=True)
class Recording:
    """What a device keeps of its answers."""

    keep: int = 0  # records on the device's disk, the newest; 0 keeps none
    days: float = 7.0  # after which a record is gone
    on_request: bool = True  # whether a request with `record: true` gets the record of its answer
    corrections: int = 1000  # answers that people have corrected, the newest; 0 takes none
    redact: tuple[Redaction, ...] = ()  # what is in no record, besides what `escalate` redacts


RECORDING = Record(
    Recording,
    {
        "keep": Field(Integer(0, 100_000, "records"), 0),
        "days": Field(Number(0.001, 3650, "days"), 7.0),
        "on_request": Field(Boolean(), True),
        "corrections": Field(Integer(0, 100_000, "corrections"), 1000),
        "redact": Field(REDACTIONS, ()),
    },
    expected="a mapping such as {keep: 1000, days: 7}",
)
