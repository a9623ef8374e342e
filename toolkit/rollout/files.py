"""Roll-outs on the operator's disk: they outlive the program, and its terminal.

ID.json     the roll-out, replaced atomically at every step
ID.lock     held by the process that carries it out
ID.wish     `pause` or `abort`, for that process
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from device_runtime.errors import ConfigurationError, UnreachableError
from device_runtime.machine.path_errors import cannot_write, is_full
from device_runtime.machine.state_home import state_home
from device_runtime.records import typed_json
from device_runtime.records.printable import half_character
from device_runtime.update import durable
from toolkit.rollout.rollout import Device, DevicePhase, Plan, Rollout, Stage

__all__ = ["RolloutFiles", "Wish", "default_folder", "writing"]

Wish = Literal["pause", "abort"]


def default_folder() -> Path:
    """This user's."""
    return state_home() / "stonechat" / "rollouts"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Have what the system says of a file of a roll-out name that file, with the next step.

    Raises:
        DiskFullError: the disk is full.
        ConfigurationError: it cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        advice = "Free some and try again." if is_full(error) else "Try again once this user may write there."
        raise cannot_write(path, error, advice) from None


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
        """Keep a roll-out.

        Raises:
            DiskFullError, ConfigurationError: it cannot be written. What was kept of it stays, and nothing beside it.
        """
        for name in ("bundle", "fleet", "model"):
            if half_character(given := getattr(rollout.plan, name) or ""):  # of a byte on the command line
                raise ConfigurationError(
                    f"the {name} {given!r} is not UTF-8, and what is kept of a roll-out is; give it another name."
                )
        path = self._path(rollout.plan.id, "json")
        text = json.dumps(asdict(rollout), default=_word, ensure_ascii=False, indent=1)
        with writing(path):
            durable.make_folder(self.folder)
            durable.replace_file(path, text.encode())

    @contextmanager
    def beginning(self, rollout_id: str) -> Iterator[None]:
        """If what is done meanwhile fails, the bundle that was made for a roll-out goes: nothing names it."""
        try:
            yield
        except BaseException:
            shutil.rmtree(self.bundle_folder(rollout_id), ignore_errors=True)
            raise

    @contextmanager
    def carrying_out(self, rollout_id: str) -> Iterator[None]:
        """While this lasts, no other process carries it out.

        Raises:
            ConfigurationError: one does.
            DiskFullError, ConfigurationError: there is no writing beside its file.
        """
        path = self._path(rollout_id, "lock")
        with writing(path):
            durable.make_folder(self.folder)
            file = _locked(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
        if file is None:
            raise ConfigurationError(
                f"Roll-out {rollout_id} is being carried out by another process; see `stonechat rollout show`."
            )
        try:
            wish = self._path(rollout_id, "wish")
            with writing(wish):
                wish.unlink(missing_ok=True)
            yield
        finally:
            os.close(file)

    def is_carried_out(self, rollout_id: str) -> bool:
        """Whether a process carries it out now. To look writes nothing: also where the disk can only be read."""
        try:
            file = _locked(self._path(rollout_id, "lock"), os.O_RDONLY, fcntl.LOCK_SH)  # two who look do not meet
        except FileNotFoundError:
            return False
        if file is not None:
            os.close(file)
        return file is None

    def wish(self, rollout_id: str, wish: Wish) -> None:
        """Ask the process that carries it out.

        Raises:
            DiskFullError, ConfigurationError: it cannot be written.
        """
        path = self._path(rollout_id, "wish")
        with writing(path):
            durable.replace_file(path, wish.encode())

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
        """Wait until that process has done what it was asked, or has ended without it.

        Raises:
            UnreachableError: neither in time.
        """
        end_s = time.monotonic() + timeout_s
        while self.is_carried_out(rollout_id) and not ((rollout := self.read(rollout_id)).paused or rollout.ended):
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

    def _path(self, rollout_id: str, ending: str) -> Path:
        if not rollout_id or "/" in rollout_id or rollout_id.startswith("."):
            raise ConfigurationError(f"{rollout_id!r} is no id of a roll-out; `stonechat rollout list` shows them.")
        return self.folder / f"{rollout_id}.{ending}"


def _locked(path: Path, flags: int, how: int) -> int | None:
    """A file, open and locked; None where another process has locked it."""
    file = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


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
