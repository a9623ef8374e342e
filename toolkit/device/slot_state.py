"""What `stonechat slots … --json` prints of a slot folder: on the device it is written, and from afar it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from device_runtime.errors import UpdateError
from device_runtime.update.staging import peek
from device_runtime.update.state import SLOTS, Last, Slot, State, Trial

__all__ = ["SlotState"]


@dataclass(frozen=True)
class SlotState:
    """The state of a slot folder, and the versions of the bundles in it."""

    folder: str
    state: State
    versions: Mapping[str, str]  # slot -> version of its bundle, as its manifest gives it; "?" if that is damaged

    @classmethod
    def of(cls, folder: Path, state: State) -> SlotState:
        """That of a folder on this machine."""
        manifests = {slot: peek(folder / slot) for slot in SLOTS if (folder / slot).exists()}
        versions: dict[str, str] = {slot: manifest.version if manifest else "?" for slot, manifest in manifests.items()}
        return cls(str(folder), state, versions)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> SlotState:
        """Read what another stonechat has printed.

        Raises:
            UpdateError: it is something else.
        """
        versions = fields.get("versions")
        if not isinstance(versions, dict) or not all(isinstance(version, str) for version in versions.values()):
            raise UpdateError("it names no versions")
        names = State.__dataclass_fields__
        state = State.from_json(json.dumps({name: fields[name] for name in names if name in fields}).encode())
        return cls(str(fields.get("folder", "")), state, versions)

    def to_fields(self) -> dict[str, Any]:
        """For --json."""
        fields = {"folder": self.folder, "state": self.state.phase.value, **asdict(self.state)}
        return {**fields, "versions": dict(self.versions)}

    @property
    def active(self) -> Slot | None:
        """The slot that serves."""
        return self.state.active

    @property
    def previous(self) -> Slot | None:
        """The slot to go back to."""
        return self.state.previous

    @property
    def trial(self) -> Trial | None:
        """The trial that is due."""
        return self.state.trial

    @property
    def last(self) -> Last | None:
        """How the last update ended."""
        return self.state.last

    def version(self, slot: Slot | None) -> str:
        """Of the bundle in a slot; "?" if it is unknown."""
        return self.versions.get(slot or "", "?")
