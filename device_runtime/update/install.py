"""Put a bundle that is on this machine, a folder or a packed one, into the free slot of a slot folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from device_runtime.bundle import MANIFEST, Bundle
from device_runtime.errors import BundleError, ConfigurationError, StonechatError
from device_runtime.update.slots import Slots
from device_runtime.update.staging import CHUNK_BYTES, SIGNATURE, Accept, Missing, Staging
from device_runtime.update.state import Limits

__all__ = ["Installed", "install"]


@dataclass(frozen=True)
class Installed:
    """What an install did."""

    name: str
    version: str
    changed: bool  # False: the slot folder has this very bundle, active or waiting for its trial
    copied: tuple[str, ...] = ()  # files that came from the bundle
    reused: tuple[str, ...] = ()  # files that the device had


def install(
    source: Path,
    slots: Slots,
    limits: Limits = Limits(),  # noqa: B008  frozen
    accept: Accept = lambda manifest, signature: None,
) -> Installed:
    """Put a bundle on trial. A cut at any moment leaves what ran before; run again, it goes on where it was.

    Raises:
        ConfigurationError: there is no bundle at `source`.
        BundleError: it is damaged.
        SignatureError: it is not to be trusted, or older than the one that runs.
        DoesNotFitError: `accept` says so.
        UpdateError: the disk is full.
    """
    manifest, signature = _first(source / MANIFEST), _optional(source / SIGNATURE)
    here = _holding(slots, manifest)
    if here is not None:
        accept(manifest, signature)
        return Installed(here.manifest.name, here.manifest.version, changed=False)
    staging = Staging.begin(slots, manifest, signature, accept)
    files = staging.missing()
    try:
        for file in files:
            _send(source / file.name, file, staging)
        staging.finish(limits)
    except (StonechatError, OSError):
        staging.abandon()  # what is damaged would be in the way of the next one
        raise
    copied = tuple(file.name for file in files)
    return Installed(staging.manifest.name, staging.manifest.version, True, copied, tuple(staging.reused))


def _send(path: Path, file: Missing, staging: Staging) -> None:
    offset = file.have_bytes
    with open(path, "rb") as stream:
        stream.seek(offset)
        while (chunk := stream.read(CHUNK_BYTES)) or file.size_bytes == 0:
            staging.write(file.name, offset, chunk)
            offset += len(chunk)
            if not chunk:
                break
    if offset < file.size_bytes:
        raise BundleError(f"{path} has {offset:,} bytes; the manifest says {file.size_bytes:,}. Copy the bundle again.")


def _holding(slots: Slots, manifest: bytes) -> Bundle | None:
    """The bundle with this manifest, if it is active or waits for its trial, and is sound."""
    slot = slots.state.trial.slot if slots.state.trial is not None else slots.state.active
    if slot is None or _optional(slots.path(slot) / MANIFEST) != manifest:
        return None
    try:
        return Bundle.open(slots.path(slot), verify=True)
    except (BundleError, ConfigurationError):
        return None  # damaged: to be replaced by this one


def _first(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        what = "is not a bundle: it has no manifest.json" if path.parent.exists() else "does not exist"
        raise ConfigurationError(f"{path.parent} {what}.") from None


def _optional(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
