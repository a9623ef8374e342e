"""`stonechat deploy`: a bundle from here to a device, tried there, and running.

The steps are in `deploy`; how the device is reached is a `Transport`, one file each (over_ssh.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import MANIFEST
from device_runtime.errors import (
    BundleError,
    DoesNotFitError,
    RolledBackError,
    SignatureError,
    StonechatError,
    UnreachableError,
)
from device_runtime.update.state import TrialLimits
from toolkit.device.slot_state import SlotState

__all__ = ["Outgoing", "Result", "Transport", "deploy", "error_of"]

SIGNATURE = "manifest.sig"


@dataclass(frozen=True)
class Outgoing:
    """A bundle that leaves."""

    path: Path
    name: str
    version: str
    id: str  # the first 16 hexadecimal digits of the manifest's sha256
    files: dict[str, str]  # name -> sha256; the manifest and its signature too

    @classmethod
    def open(cls, path: Path) -> Outgoing:
        """Check a bundle folder, every byte of it.

        Raises:
            ConfigurationError: there is no bundle.
            BundleError: it is damaged.
        """
        bundle = Bundle.open(path, verify=True)
        own = {name: hashlib.sha256((path / name).read_bytes()).hexdigest()
               for name in (MANIFEST, SIGNATURE) if (path / name).is_file()}  # fmt: skip
        m = bundle.manifest
        files = {name: entry.sha256 for name, entry in m.files.items()}
        return cls(path, m.name, m.version, own[MANIFEST][:16], files | own)


@dataclass(frozen=True)
class Result:
    """How a deployment ended well."""

    device: str
    model: str
    name: str  # of the bundle
    version: str
    sent_bytes: int
    sent: tuple[str, ...]  # files that travelled
    kept: tuple[str, ...]  # files that the device had
    restarted: bool
    slots: SlotState  # as the device reports it

    def to_fields(self) -> dict[str, Any]:
        """For --json; the slots as `stonechat slots show --json` prints them."""
        return vars(self) | {"slots": self.slots.to_fields()}


class Transport(Protocol):
    """A way to a device."""

    device: str

    def choose_model(self, name: str | None) -> str:
        """The model that a bundle is for: `name` if the device knows it, its own when None."""
        ...

    def send(self, bundle: Outgoing, model: str, progress: Callable[[str, float], None]) -> tuple[list[str], int]:
        """Bring the files that the device lacks; returns their names, and the bytes that travelled.

        Raises:
            DiskFullError: there is no room for them; nothing has travelled.
        """
        ...

    def install(self, bundle: Outgoing, model: str, limits: TrialLimits) -> SlotState:
        """Put what was sent into the free slot; returns the state of the slots. Its trial may still be due."""
        ...

    def start(self, model: str, slots: SlotState) -> SlotState | None:
        """Have the service hold the trial and come online with the bundle, or go back.

        Args:
            slots: what `install` returned.

        Returns:
            The state of the slots then; None when the start is left to the operator.
        """
        ...


def deploy(
    bundle: Outgoing, transport: Transport, model: str | None, limits: TrialLimits,
    say: Callable[[str], None], progress: Callable[[str, float], None],
) -> Result:  # fmt: skip
    """Bring `bundle` to a device and see it run.

    Raises:
        StonechatError: with the exit code of what went wrong; the device runs what it ran before, unless the message
            says otherwise.
    """
    chosen = transport.choose_model(model)
    say(f"{bundle.name} {bundle.version} for {transport.device}, as its model {chosen}")
    sent, sent_bytes = transport.send(bundle, chosen, progress)
    kept = tuple(name for name in bundle.files if name not in sent)
    say(f"copied {sent_bytes / 1e6:,.1f} MB; unchanged on the device: {', '.join(kept) or 'nothing'}")
    say("installing it there …")
    installed = transport.install(bundle, chosen, limits)
    started = transport.start(chosen, installed)
    return Result(
        transport.device, chosen, bundle.name, bundle.version, sent_bytes, tuple(sent), kept, started is not None,
        started or installed,
    )  # fmt: skip


_BY_CODE: dict[int, type[StonechatError]] = {
    kind.exit_code: kind for kind in (UnreachableError, SignatureError, DoesNotFitError, RolledBackError)
}


def error_of(exit_code: int, code: str, message: str) -> StonechatError:
    """The error that a stonechat on a device ended with."""
    if code == BundleError.code:
        return BundleError(message)
    return _BY_CODE.get(exit_code, StonechatError)(message)
