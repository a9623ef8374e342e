"""Where a broker is, who we are to it, and how a TLS connection to it is proven."""

from __future__ import annotations

import hashlib
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from device_runtime.errors import ConfigurationError
from device_runtime.records.printable import without_secrets

__all__ = ["PASSWORD_VARIABLE", "BrokerAddress", "Certificates", "Protocol", "read_password", "reason"]

PASSWORD_VARIABLE = "STONECHAT_MQTT_PASSWORD"

Protocol = Literal["5", "3.1.1"]

_PROOF_ITERATIONS = 50_000  # client ids are in logs, from which nobody shall guess a password that a person chose


@dataclass(frozen=True)
class Certificates:
    """Files by which a TLS connection is proven. What is None is the system's, or left out."""

    ca: Path | None = None  # whom to trust
    own: Path | None = None  # our certificate …
    key: Path | None = None  # … and its key

    @classmethod
    def of(cls, folder: Path, name: str, *, password: bool = False) -> Certificates:
        """ca.crt, NAME.crt and NAME.key in a folder, as `stonechat broker init` makes them.

        Args:
            password: whether a password proves who we are; then ca.crt is enough.

        Raises:
            ConfigurationError: one of them is missing.
        """
        files = folder / "ca.crt", folder / f"{name}.crt", folder / f"{name}.key"
        if password and files[0].is_file() and not files[1].is_file():
            return cls(files[0])
        for file in files:
            if not file.is_file():
                raise ConfigurationError(
                    f"{file} is missing; make it with `stonechat broker init {folder} --client {name}` (or --device), "
                    "or copy it from where that was done."
                )
        return cls(*files)

    def context(self) -> ssl.SSLContext:
        """For a connection to a broker.

        Raises:
            ConfigurationError: a file cannot be read, or is not what it should be.
        """
        try:
            context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
            if self.own is not None:
                context.load_cert_chain(self.own, self.key)
        except (OSError, ssl.SSLError) as e:
            files = ", ".join(str(file) for file in (self.ca, self.own, self.key) if file)
            raise ConfigurationError(f"the certificates {files} cannot be used: {reason(e)}.") from None
        return context


@dataclass(frozen=True)
class BrokerAddress:
    """Where the broker is, and who we are to it."""

    host: str
    port: int = 1883
    tls: bool = False
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    protocol: Protocol = "5"
    certificates: Certificates = Certificates()  # frozen

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def proof(self) -> str:
        """16 characters that only a holder of our key or password knows, the same at each start; "" without either.

        They belong into a client id that has to stay the same: a broker ends a connection when another client comes
        with its client id, whatever user that is.

        Raises:
            ConfigurationError: the key cannot be read.
        """
        secret = (self.password or "").encode()
        if self.certificates.key is not None:
            try:
                secret = self.certificates.key.read_bytes()
            except OSError as e:
                raise ConfigurationError(f"the key {self.certificates.key} cannot be read: {reason(e)}.") from None
        if not secret:
            return ""
        return hashlib.pbkdf2_hmac("sha256", secret, b"stonechat client id", _PROOF_ITERATIONS).hex()[:16]

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        password: str | None = None,
        protocol: Protocol = "5",
        certificates: Certificates | None = None,
        user: str | None = None,
    ) -> BrokerAddress:
        """Read `mqtt://[user@]host[:port]` or `mqtts://…` (TLS).

        Args:
            user: whose password it is, where the URL names no user.

        Raises:
            ConfigurationError: it is no such URL, or it holds a password, which process lists would show.
        """
        expected = "expected mqtt://[user@]host[:port], or mqtts:// for TLS"
        if ":" in (url.partition("//")[2] or url).rpartition("@")[0]:  # before it is split: "/" and "#" may be in it
            raise ConfigurationError(
                f"the broker URL holds a password, which process lists show; leave it out and give it "
                f"in a file (--password-file) or in the environment ({PASSWORD_VARIABLE})."
            )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            # What is after the last ":" is no port: perhaps a password, with the host forgotten.
            raise ConfigurationError(
                f"broker URL {url.rpartition(':')[0] + ':***'!r} cannot be read; {expected}."
            ) from None
        safe = without_secrets(url)
        extra = parts.path.strip("/") or parts.query or parts.fragment
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or extra:
            raise ConfigurationError(f"broker URL {safe!r} cannot be used; {expected}.")
        named = unquote(parts.username, errors="replace") if parts.username else None
        user = named or (user if password is not None else None)
        if password is not None and user is None:
            raise ConfigurationError(f"there is a password but no user in broker URL {safe!r}; {expected}.")
        tls = parts.scheme == "mqtts"
        if certificates is not None and not tls:
            raise ConfigurationError(f"there are certificates, but broker URL {safe!r} is not encrypted; use mqtts://.")
        port = port or (8883 if tls else 1883)
        return cls(parts.hostname, port, tls, user, password, protocol, certificates or Certificates())


def read_password(path: Path | None = None, name: str | None = None) -> str | None:
    """The password in the file `path`, else in the environment, else None.

    Args:
        name: whose; if `path` is a folder, the file is NAME.password in it.

    Raises:
        ConfigurationError: the file cannot be read, or is empty.
    """
    if path is None:
        return os.environ.get(PASSWORD_VARIABLE)
    if name is not None and path.is_dir():
        path = path / f"{name}.password"
    try:
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "not UTF-8"
        raise ConfigurationError(f"cannot read the password file {path}: {why}.") from None
    if not password:
        raise ConfigurationError(f"the password file {path} is empty; expected one line with the password.")
    return password


def reason(error: Exception) -> str:
    """Why a connection or a file failed, in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
