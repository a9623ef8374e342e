"""Roll-outs on the operator's disk: they outlive the program, and its terminal.

ID.json     the roll-out, replaced atomically at every step
ID.lock     held by the process that carries it out
ID.wish     `pause` or `abort`, for that process
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from device_runtime.errors import ConfigurationError, UnreachableError
from device_runtime.machine.state_home import state_home
from device_runtime.records import typed_json
from device_runtime.update import durable
from toolkit.rollout.rollout import Device, DevicePhase, Plan, Rollout, Stage

__all__ = ["RolloutFiles", "Wish", "default_folder"]

Wish = Literal["pause", "abort"]


def default_folder() -> Path:
    """This user's."""
    return state_home() / "stonechat" / "rollouts"


class RolloutFiles:
    """A folder of roll-outs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ids(self) -> list[str]:
        """Those that there are, the oldest first."""
        return [path.stem for path in sorted(self.folder.glob("*.json"), key=lambda path: path.stem)]

    def read(self, rollout_id: str) -> Rollout:
        """A roll-out.

        Raises:
            ConfigurationError: there is none of that id, or its file is damaged.
        """
        path = self._path(rollout_id, "json")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return _from_json(data)
        except FileNotFoundError:
            known = ", ".join(self.ids()) or "none"
            raise ConfigurationError(f"There is no roll-out {rollout_id!r}; there are {known}.") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(f"{path} cannot be read ({error}); move it away and deploy again.") from None

    def write(self, rollout: Rollout) -> None:
        """Keep a roll-out."""
        durable.make_folder(self.folder)
        text = json.dumps(asdict(rollout), default=_word, ensure_ascii=False, indent=1)
        durable.replace_file(self._path(rollout.plan.id, "json"), text.encode())

    @contextmanager
    def carrying_out(self, rollout_id: str) -> Iterator[None]:
        """While this lasts, no other process carries it out.

        Raises:
            ConfigurationError: one does.
        """
        durable.make_folder(self.folder)
        file = self._lock(rollout_id)
        if file is None:
            raise ConfigurationError(
                f"Roll-out {rollout_id} is being carried out by another process; see `stonechat rollout show`."
            )
        try:
            self._path(rollout_id, "wish").unlink(missing_ok=True)
            yield
        finally:
            os.close(file)

    def is_carried_out(self, rollout_id: str) -> bool:
        """Whether a process carries it out now."""
        file = self._lock(rollout_id)
        if file is not None:
            os.close(file)
        return file is None

    def wish(self, rollout_id: str, wish: Wish) -> None:
        """Ask the process that carries it out."""
        durable.replace_file(self._path(rollout_id, "wish"), wish.encode())

    def take_wish(self, rollout_id: str) -> str | None:
        """What was asked of this process."""
        path = self._path(rollout_id, "wish")
        try:
            wish = path.read_text(encoding="ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        path.unlink(missing_ok=True)
        return wish

    def await_wish(self, rollout_id: str, timeout_s: float = 10.0) -> None:
        """Wait until that process has read the request.

        Raises:
            UnreachableError: it has not in time.
        """
        end_s = time.monotonic() + timeout_s
        while not ((rollout := self.read(rollout_id)).paused or rollout.ended):
            if time.monotonic() > end_s:
                raise UnreachableError(f"the process that carries out {rollout_id} does not answer; is it stopped?")
            time.sleep(0.05)

    def keep_bundle(self, rollout_id: str, path: Path) -> Path:
        """A bundle folder that stays as long as the roll-out: `path` itself, or a packed bundle unpacked here."""
        if not path.is_file():
            return path.absolute()
        from device_runtime.bundle.archive import Archive

        durable.make_folder(self.folder)
        with Archive.open(path) as archive:
            return archive.unpack(self.bundle_folder(rollout_id)).path

    def bundle_folder(self, rollout_id: str) -> Path:
        """Where a bundle is kept that was made for a roll-out."""
        return self._path(rollout_id, "bundle")

    def _lock(self, rollout_id: str) -> int | None:
        file = os.open(self._path(rollout_id, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return file

    def _path(self, rollout_id: str, ending: str) -> Path:
        if not rollout_id or "/" in rollout_id or rollout_id.startswith("."):
            raise ConfigurationError(f"{rollout_id!r} is no id of a roll-out; `stonechat rollout list` shows them.")
        return self.folder / f"{rollout_id}.{ending}"


def _from_json(data: Any) -> Rollout:
    if data["schema"] != 1:
        raise ValueError(f"it has schema {data['schema']}; this stonechat reads 1")
    plan: Plan = typed_json.read(Plan, data["plan"])
    devices = {
        name: Device(**device | {"phase": DevicePhase(device["phase"])}) for name, device in data["devices"].items()
    }
    if set(devices) != set(plan.devices):
        raise ValueError("its devices are not those of its plan")
    return Rollout(plan, devices, Stage(data["stage"]), tuple(data["canaries"]), bool(data["paused"]))


def _word(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(type(value).__name__)
