"""A broker's folder as a whole: whom it knows, by what each is known, and what to do with them."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_runtime.errors import ConfigurationError
from device_runtime.fleet import yaml_schema
from toolkit.broker.access import Access, access_list, parse_list
from toolkit.broker.certificates import SERVER, Authority
from toolkit.broker.files import write_public
from toolkit.broker.mosquitto_conf import Listeners
from toolkit.broker.passwords import FILE as PASSWORD_FILE
from toolkit.broker.passwords import Passwords

__all__ = ["RESERVED", "Entry", "Site"]

RESERVED = ("ca", SERVER, "issued", "crl")  # the broker's own files


@dataclass(frozen=True)
class Entry:
    """Somebody whom the broker knows, or the broker itself."""

    name: str
    rights: tuple[str, ...]  # such as `read plant/+/air`, beyond what everyone may
    expires: datetime.datetime | None  # of the certificate, UTC; None: there is none
    password: bool

    @property
    def days_left(self) -> int | None:
        """Whole days until the certificate expires; negative afterwards."""
        if self.expires is None:
            return None
        return (self.expires - datetime.datetime.now(datetime.UTC)).days

    def expires_within(self, days: int) -> bool:
        """Whether the certificate expires soon, or has expired."""
        return self.days_left is not None and self.days_left < days

    def fields(self, days: int) -> dict[str, Any]:
        """For --json; `days` is what counts as soon."""
        return {
            "name": self.name,
            "certificate": self.expires is not None,
            "password": self.password,
            "expires": self.expires.isoformat() if self.expires else None,
            "days_left": self.days_left,
            "expires_soon": self.expires_within(days),
            "rights": list(self.rights),
        }


class Site:
    """The folder that `stonechat broker init` makes."""

    def __init__(self, folder: Path, name: str = "") -> None:
        """Open a folder, or begin one for the site `name`.

        Raises:
            ConfigurationError: there is none and no name, or it is damaged.
        """
        if not name and not (folder / "ca.crt").is_file():
            raise ConfigurationError(
                f"{folder} has no ca.crt; expected a folder that `stonechat broker init` has made."
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.authority = Authority(folder, name)
        self.authority.ensure_list()
        self.passwords = Passwords(folder)
        self.access = read_access(folder)

    def give(self, name: str, *, certificate: bool, password: bool, days: int) -> list[str]:
        """Make what this user lacks of a certificate and a password; returns what was made."""
        made = []
        if certificate and self.authority.current(name) is None:
            self.authority.issue(name, days)
            made.append("certificate")
        if password and name not in self.passwords:
            self.passwords.give(name)
            made.append("password")
        return made

    def knows(self, name: str) -> bool:
        """Whether this user has anything to get in with."""
        return name in self.passwords or self.authority.current(name) is not None

    def renew(self, name: str, days: int) -> list[str]:
        """A new certificate, a new password, or both: whatever this user has. Returns what was made."""
        made = []
        if self.authority.current(name) is not None:
            self.authority.renew(name, days)
            made.append("certificate")
        if name in self.passwords:
            self.passwords.give(name)
            made.append("password")
        return made

    def revoke(self, name: str) -> list[str]:
        """Take everything from a user: certificates, password and rights. Returns what there was."""
        gone = []
        if self.passwords.remove(name):
            gone.append("password")
        if self.authority.revoke(name):
            gone.append("certificate")
        if self.access.rights.pop(name, None) is not None:
            gone.append("rights")
            self.save_access()
        return gone

    def save_access(self) -> None:
        """Write the access list."""
        write_public(self.folder / "acl", access_list(self.access).encode())

    def configure(self, path: Path | None = None, port: int | None = None, password_port: int | None = None) -> bool:
        """Have a mosquitto.conf that fits; True if a former one was replaced, which is kept as mosquitto.conf.old.

        Args:
            path: where the files will lie on the broker's machine.
            port: of the listener for certificates, or of the only one.
            password_port: of the listener for passwords.
        """
        file, now = self.folder / "mosquitto.conf", self._listeners()
        listeners = Listeners.plan(
            now,
            folder=path.absolute() if path else now.folder if now else self.folder.absolute(),
            certificates=not self.by_password_alone(),
            passwords=len(self.passwords) > 0,
            port=port,
            password_port=password_port,
        )
        if listeners == now:
            return False
        if now is not None:
            shutil.copy2(file, file.with_suffix(".conf.old"))
        write_public(file, listeners.text().encode())
        return now is not None

    def by_password_alone(self) -> bool:
        """Whether passwords are in use here, and certificates are not."""
        now = self._listeners()
        passwords = len(self.passwords) > 0 or (now is not None and now.passwords is not None)
        return passwords and not any(self.authority.current(name) for name in self.access.rights)

    def path(self) -> Path:
        """Where the files lie on the broker's machine."""
        now = self._listeners()
        return now.folder if now else self.folder.absolute()

    def ports(self) -> dict[str, int]:
        """Where clients come in, by what they prove themselves with."""
        now = self._listeners()
        ports = {"certificates": now.certificates, "passwords": now.passwords} if now else {}
        return {kind: port for kind, port in ports.items() if port is not None}

    def broker_files(self) -> list[str]:
        """What the broker's machine needs of this folder."""
        names = ["mosquitto.conf", "acl", PASSWORD_FILE, "ca.crt", "crl.pem", "broker.crt", "broker.key"]
        return [name for name in names if (self.folder / name).is_file()]

    def _listeners(self) -> Listeners | None:
        """What mosquitto.conf says at present."""
        file = self.folder / "mosquitto.conf"
        return Listeners.of(file.read_text(encoding="utf-8")) if file.is_file() else None

    def entries(self) -> list[Entry]:
        """The broker first, then everyone by name."""
        names = [SERVER, *sorted(self.access.rights)]
        found = []
        for name in names:
            certificate = self.authority.current(name)
            expires = certificate.not_valid_after_utc if certificate else None
            found.append(Entry(name, tuple(self.access.rights.get(name, ())), expires, name in self.passwords))
        return found

    def check_names(self, names: Iterable[str], besides: Collection[str] = ()) -> None:
        """Whether the broker knows them all.

        Raises:
            ConfigurationError: it does not; names the nearest that it knows.
        """
        known = [*self.access.rights, *besides]
        for name in names:
            if name not in known:
                hint = yaml_schema.nearest(name, known, "it knows")
                raise ConfigurationError(f"the broker of {self.folder} does not know {name!r}; {hint}")


def read_access(folder: Path) -> Access:
    """The access list of a folder, or an empty one."""
    acl = folder / "acl"
    return parse_list(acl.read_text(encoding="utf-8")) if acl.is_file() else Access()
