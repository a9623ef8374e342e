"""The files and folders that a fleet file names, held against those on this machine.

What belongs beside the fleet file has to be there: the file of a router, the folder of public keys. What is secret may
be on the device alone, and readable by its service alone; where it can be read, it has to be what it should.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.errors import StonechatError
from device_runtime.mqtt.address import Certificates, read_password

if TYPE_CHECKING:
    from device_runtime.fleet.file import Fleet
    from device_runtime.fleet.policies.escalation import Escalation
    from device_runtime.fleet.policies.routing import Routing

__all__ = ["NamedFiles", "named_files"]


@dataclass
class NamedFiles:
    """What was found."""

    faults: list[str] = field(default_factory=list)
    elsewhere: dict[str, str] = field(default_factory=dict)  # the place in the fleet file -> a path not on this machine
    warnings: list[str] = field(default_factory=list)

    def look(self, at: str, read: Callable[[], object]) -> None:
        """Note the fault that `read` raises, with the place of the file that it is about."""
        try:
            read()
        except StonechatError as error:
            self.faults.append(f"{at}: {error}")

    def is_here(self, at: str, path: Path) -> bool:
        """Whether a file can be read here; else it is noted."""
        if not path.exists() or not os.access(path, os.R_OK):
            self.elsewhere[at] = str(path)
            return False
        if not path.is_file():  # a pipe would be waited for
            what = "a folder" if path.is_dir() else "no ordinary file"
            self.faults.append(f"{at}: {path} is {what}; name a file.")
            return False
        return True

    def is_folder(self, at: str, path: Path, of: str) -> bool:
        """Whether a path is that of a folder, or of nothing here; else it is noted, with what the folder would have."""
        if path.is_dir() or not path.exists():
            return True
        self.faults.append(f"{at}: {path} is a file; name a folder with {of}.")
        return False


def named_files(fleet: Fleet) -> NamedFiles:
    """Look at all of them but the bundles."""
    found = NamedFiles()
    if fleet.router is not None:
        found.look("router.file", lambda: _router(fleet.routing_of_all(), fleet.served_models(), found))
    for device, entry in fleet.devices.items():
        if entry.router is not None:
            at, models = f"devices.{device}.router.file", entry.models
            found.look(at, partial(_router_of, fleet, device, models, found))
        _key(f"devices.{device}", fleet, entry.escalate, found)
    for number, link in enumerate(fleet.links):
        _key(f"links[{number}]", fleet, link.escalate, found)
    if fleet.keys is not None:
        found.look("keys", lambda: _public_keys(fleet, found))
    found.look("broker.password_file", lambda: _passwords(fleet, found))
    found.look("broker.certs", lambda: _certificates(fleet, found))
    return found


def _router_of(fleet: Fleet, device: str, models: Collection[str], found: NamedFiles) -> None:
    _router(fleet.routing(device), models, found)


def _router(routing: Routing | None, models: Collection[str], found: NamedFiles) -> None:
    from device_runtime.brain.text_classifier import TextClassifier, of_no_model  # numpy, which a client does not need

    if routing is None or routing.file is None:
        return
    if text := of_no_model(routing.file, TextClassifier.open(routing.file), models):
        found.warnings.append(text)


def _key(at: str, fleet: Fleet, policy: Escalation | None, found: NamedFiles) -> None:
    """Of a larger model's server."""
    from device_runtime.brain.far.openai_server import read_key

    if policy is None or policy.to.key_file is None:
        return
    at, file = f"{at}.escalate.to.key_file", policy.to.key_file

    def read() -> None:
        if found.is_here(at, path := fleet.beside(file)):
            read_key(path)

    found.look(at, read)


def _public_keys(fleet: Fleet, found: NamedFiles) -> None:
    from device_runtime.bundle.trust import trusted

    if (folder := fleet.keys_folder()) is None or found.is_folder("keys", folder, "public keys"):
        trusted(folder)


def _passwords(fleet: Fleet, found: NamedFiles) -> None:
    """A file with one, or a folder with one for each device."""
    if (file := fleet.broker.password_file) is None:
        return
    path = fleet.beside(file)
    files = [path / f"{device}.password" for device in fleet.devices] if path.is_dir() else [path]
    for each in files:
        at = f"broker.password_file, {each.name}"
        if found.is_here(at, each):
            found.look(at, partial(read_password, each))


def _certificates(fleet: Fleet, found: NamedFiles) -> None:
    """Of each device; where a password proves who it is, the broker's own is enough."""
    folder = fleet.certs_folder()
    if folder is None or not found.is_folder("broker.certs", folder, "ca.crt, DEVICE.crt and DEVICE.key"):
        return
    password = fleet.broker.password_file is not None
    for device in fleet.devices:
        names = ["ca.crt"] if password and not (folder / f"{device}.crt").exists() else None
        names = names or ["ca.crt", f"{device}.crt", f"{device}.key"]
        if all([found.is_here(f"broker.certs, {name}", folder / name) for name in names]):
            found.look("broker.certs", Certificates.of(folder, device, password=password).context)
