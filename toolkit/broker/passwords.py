"""Passwords for boards and sensors that have no client certificates.

The secret of each user goes to a file of its own, NAME.password, and is printed nowhere. mosquitto gets `passwords`,
which holds only hashes: `NAME:$7$ITERATIONS$SALT$HASH`, PBKDF2 with SHA-512, as `mosquitto_passwd` writes it.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from pathlib import Path

from toolkit.broker.files import write_private

__all__ = ["FILE", "Passwords"]

FILE = "passwords"
_SECRET_BYTES = 24  # 192 random bits: no guessing, so the hash needs no slowness
_ITERATIONS = 101  # what mosquitto_passwd takes; the broker pays them at each connect
_SALT_BYTES = 12


class Passwords:
    """The passwords of a broker's folder."""

    def __init__(self, folder: Path) -> None:
        """Read whose password is known; there may be no file yet."""
        self.folder, self._path = folder, folder / FILE
        self._hashes: dict[str, str] = {}  # name -> what follows the colon
        if self._path.is_file():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                name, colon, rest = line.partition(":")
                if colon:
                    self._hashes[name] = rest

    def __contains__(self, name: object) -> bool:
        return name in self._hashes

    def __len__(self) -> int:
        return len(self._hashes)

    def give(self, name: str) -> None:
        """Make a password for this user; a former one no longer holds."""
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        write_private(self.folder / f"{name}.password", f"{secret}\n".encode())
        self._hashes[name] = _hash(secret)
        self._save()

    def remove(self, name: str) -> bool:
        """Forget a user's password; False if there was none."""
        (self.folder / f"{name}.password").unlink(missing_ok=True)
        if self._hashes.pop(name, None) is None:
            return False
        self._save()
        return True

    def _save(self) -> None:
        lines = [f"{name}:{rest}\n" for name, rest in sorted(self._hashes.items())]
        write_private(self._path, "".join(lines).encode())


def _hash(secret: str) -> str:
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", secret.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"
