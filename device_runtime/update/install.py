"""Put a bundle that is on this machine, a folder or a packed one, into the free slot of a slot folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from device_runtime.bundle.archive import Archive
from device_runtime.bundle.folder import Bundle, read_signature
from device_runtime.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest
from device_runtime.errors import BundleError, ConfigurationError, StonechatError
from device_runtime.update.active import resolve
from device_runtime.update.policy import Policy
from device_runtime.update.slots import Slots
from device_runtime.update.staging import CHUNK_BYTES, Missing, Staging
from device_runtime.update.state import TrialLimits

__all__ = ["Installed", "has_bundle", "install", "preview"]


@dataclass(frozen=True)
class Installed:
    """What an install did."""

    name: str
    version: str
    changed: bool  # False: the slot folder has this very bundle, active or waiting for its trial
    copied: tuple[str, ...] = ()  # files that came from the bundle
    reused: tuple[str, ...] = ()  # files that the device had


@dataclass(frozen=True)
class _Source:
    """A bundle to install, in either form."""

    path: Path
    manifest: bytes
    signature: bytes | None
    chunks: Callable[[str], Iterator[bytes]]  # of a file, by its name


def install(
    source: Path,
    slots: Slots,
    limits: TrialLimits = TrialLimits(),  # noqa: B008  frozen
    policy: Policy = Policy(),  # noqa: B008  frozen
) -> Installed:
    """Put a bundle on trial. A cut at any moment leaves what ran before; run again, it goes on where it was.

    Raises:
        ConfigurationError: there is no bundle at `source`.
        SignatureError, BundleError, DoesNotFitError: it is not welcome or damaged, see `Policy.judge`.
        UpdateError: the disk is full.
    """
    with ExitStack() as stack:
        opened = _open(source, policy, stack)
        admitted = policy.judge(opened.manifest, opened.signature, slots.state.security_counter)
        manifest = admitted.manifest
        if has_bundle(slots, opened.manifest):
            return Installed(manifest.name, manifest.version, changed=False)
        staging = Staging.begin(slots, admitted)
        files = staging.missing()
        try:
            for file in files:
                _send(opened, file, staging)
            staging.finish(limits)
        except (StonechatError, OSError):
            staging.abandon()  # what is damaged would be in the way of the next one
            raise
    return Installed(manifest.name, manifest.version, True, tuple(f.name for f in files), tuple(staging.reused))


def preview(source: Path, policy: Policy) -> Manifest:
    """The manifest of a bundle that could be installed somewhere; see `install` for what is raised."""
    with ExitStack() as stack:
        opened = _open(source, policy, stack)
        return policy.judge(opened.manifest, opened.signature, 0).manifest


def _send(source: _Source, file: Missing, staging: Staging) -> None:
    offset = 0
    staging.restart(file.name)  # its beginning may have been damaged by a cut, and is read from here once more
    if file.size_bytes == 0:
        staging.write(file.name, 0, b"")
    for chunk in source.chunks(file.name):
        staging.write(file.name, offset, chunk)
        offset += len(chunk)
    if offset < file.size_bytes:
        raise BundleError(
            f"{source.path / file.name} has {offset:,} bytes; the manifest says {file.size_bytes:,}. "
            "Copy the bundle again."
        )


def has_bundle(slots: Slots, manifest: bytes) -> bool:
    """Whether the bundle with this manifest is active or waits for its trial, and is sound."""
    slot = slots.state.trial.slot if slots.state.trial is not None else slots.state.active
    try:
        return (
            slot is not None
            and (slots.path(slot) / MANIFEST).read_bytes() == manifest
            and Bundle.open(slots.path(slot), verify=True).path.is_dir()
        )
    except (OSError, BundleError, ConfigurationError):
        return False  # damaged: to be replaced by this one


def _open(path: Path, policy: Policy, stack: ExitStack) -> _Source:
    if path.is_file():
        archive = stack.enter_context(Archive.open(path, policy.trust))
        return _Source(path, archive.head.manifest, archive.head.signature, archive.chunks)
    folder = resolve(path)
    try:
        with open(folder / MANIFEST, "rb") as stream:
            manifest = stream.read(MAX_MANIFEST_BYTES + 1)  # one more than is allowed, which `judge` will say
    except (FileNotFoundError, NotADirectoryError):
        what = "is not a bundle: it has no manifest.json" if path.exists() else "does not exist"
        raise ConfigurationError(f"{path} {what}.") from None
    return _Source(folder, manifest, read_signature(folder), lambda name: _chunks(folder / name))


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); copy the bundle again.") from None
