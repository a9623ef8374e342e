"""Signing keys: Ed25519, the private half as PEM (PKCS #8, RFC 5958), the public half as a small text file."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime.bundle.trust import RETIRED, PublicKey, Signature, TrustStore, read_key
from device_runtime.bundle.work_place import made_folders, naming
from device_runtime.errors import ConfigurationError
from device_runtime.mqtt.topics import is_id
from device_runtime.update import durable

__all__ = [
    "PASSPHRASE_VARIABLE",
    "SigningKey",
    "new_key",
    "read_any_key",
    "read_passphrase",
    "read_signing_key",
    "retire",
]

PASSPHRASE_VARIABLE = "STONECHAT_KEY_PASSPHRASE"
_PEM = b"-----BEGIN"


@dataclass(frozen=True)
class SigningKey:
    """Both halves."""

    public: PublicKey
    private: Ed25519PrivateKey

    def sign(self, manifest: bytes, image: bytes | None = None) -> Signature:
        """The signature of a manifest's bytes, and of the digest of a model image's container where there is one.

        The same key and bytes always give the same one.
        """
        signed = None if image is None else self.private.sign(image)
        return Signature(self.public.key_id, self.private.sign(manifest), signed)


def new_key(name: str, folder: Path, passphrase: bytes | None) -> SigningKey:
    """Make NAME.key, which only its owner can read, and NAME.pub.

    Raises:
        ConfigurationError: one of them is there, and a key is never overwritten; or it cannot be written.
        DiskFullError: the disk is full.
    """
    for path in (folder / f"{name}.key", folder / f"{name}.pub"):
        if path.exists() or path.is_symlink():
            raise ConfigurationError(f"{path} is there already, and a key is never overwritten; choose another name.")
    key = _both(name, Ed25519PrivateKey.generate())
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    pem = key.private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    with made_folders(folder), ExitStack() as undo:  # half a key would be in the way of the next try
        _write_new(folder / f"{name}.key", pem, 0o600, undo)
        _write_new(folder / f"{name}.pub", key.public.to_text().encode(), 0o644, undo)
        undo.pop_all()
    return key


def read_signing_key(path: Path, passphrase: bytes | None) -> SigningKey:
    """A private key file.

    Raises:
        ConfigurationError: it is none, or its passphrase is missing or wrong.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}).") from None
    if not content.startswith(_PEM):
        raise ConfigurationError(f"{path} is no private key; expected the NAME.key that `stonechat key new` has made.")
    try:
        private = _load(content, passphrase)
    except TypeError:  # a passphrase, and none is needed or given
        raise ConfigurationError(
            f"{path} is protected by a passphrase; put it into a file and name it with --passphrase-file, or into the "
            f"environment variable {PASSPHRASE_VARIABLE}."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        what = "cannot be read with this passphrase" if b"ENCRYPTED" in content and passphrase else "is damaged"
        raise ConfigurationError(f"{path} {what}; expected a key of `stonechat key new`.") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} is no Ed25519 key; make one with `stonechat key new NAME`.")
    return _both(path.stem if is_id(path.stem) else "unnamed", private)


def read_any_key(path: Path, passphrase: bytes | None) -> PublicKey:
    """The public half of a key, from either file."""
    try:
        private = path.read_bytes().startswith(_PEM)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}).") from None
    return read_signing_key(path, passphrase).public if private else read_key(path)


def retire(key: PublicKey, folder: Path) -> tuple[Path, TrustStore]:
    """Move a key to the retired ones; returns where it is now, and who is trusted from now on.

    Raises:
        ConfigurationError: it is not among the keys of this folder.
    """
    trusted = TrustStore.load(folder, required=True)
    if key.key_id not in trusted.keys:
        if key.key_id in trusted.retired:
            raise ConfigurationError(f"{key} is retired in {folder} already.")
        names = ", ".join(map(str, trusted.keys.values())) or "none"
        raise ConfigurationError(f"{key} is not in {folder}; the keys there are: {names}.")
    durable.make_folder(folder / RETIRED)
    target = folder / RETIRED / f"{key.name}.pub"
    if target.exists():  # another key had the name before
        target = folder / RETIRED / f"{key.name}-{key.key_id}.pub"
    for path in sorted(folder.glob("*.pub")):
        if read_key(path).key_id == key.key_id:
            durable.move(path, target)  # a loss of power must not bring it back
    return target, TrustStore.load(folder)


def read_passphrase(path: Path | None) -> bytes | None:
    """What is in the file, else in the environment, else None. Never from an argument: others can read those.

    Raises:
        ConfigurationError: the file cannot be read, or is empty.
    """
    if path is None:
        return os.environb.get(PASSPHRASE_VARIABLE.encode()) or None
    try:
        passphrase = path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}).") from None
    if not passphrase:
        raise ConfigurationError(f"{path} is empty; expected a passphrase in its first line.")
    return passphrase


def _load(content: bytes, passphrase: bytes | None) -> object:
    if b"ENCRYPTED" not in content.split(b"\n", 1)[0]:
        passphrase = None  # the variable may be set for another key
    return serialization.load_pem_private_key(content, passphrase)


def _both(name: str, private: Ed25519PrivateKey) -> SigningKey:
    return SigningKey(PublicKey(name, private.public_key().public_bytes_raw()), private)


def _write_new(path: Path, content: bytes, mode: int, undo: ExitStack) -> None:
    with naming(path):
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        undo.callback(path.unlink, missing_ok=True)
        with open(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # its public half may be on devices before the disk has it
        durable.sync_folder(path.parent)
