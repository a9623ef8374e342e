"""Whom a device trusts: a folder of public keys, and the check of a manifest's signatures against it.

    keys/NAME.pub           keys that may sign, several at once while a fleet changes from one to the next
    keys/retired/NAME.pub   keys that may not any longer; what only they have signed is refused by their name

A key file is text, and says its id so that people can compare it:

    stonechat public key plant-2026
    id 1f0b…                        first 16 hexadecimal digits of the sha256 of the raw key
    ed25519 BASE64                  the raw key, 32 bytes (RFC 8032)

manifest.sig is JSON: {"schema":1,"signatures":[{"key":ID,"ed25519":BASE64}, …]}, each over the bytes of manifest.json
as they stand. Of a bundle for microcontrollers an entry has "image" beside it, over the hash of what goes into a
board's slot (toolkit/firmware/container.py), for boards that check it themselves. Only verification is here; making
keys and signatures is the toolkit's.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from device_runtime.errors import ConfigurationError, MissingExtraError, SignatureError
from device_runtime.records.typed_json import shortened

__all__ = [
    "RETIRED",
    "SIGNATURE",
    "PublicKey",
    "Signature",
    "TrustStore",
    "device_keys",
    "parse_signatures",
    "read_key",
    "trusted",
]

SIGNATURE = "manifest.sig"
RETIRED = "retired"  # the folder in a key folder
MAX_SIGNATURE_BYTES = 65_536  # of manifest.sig
MAX_SIGNATURES = 64
_MAX_KEY_FILE_BYTES = 4096
_KEY_BYTES, _SIGNATURE_BYTES = 32, 64  # RFC 8032, section 5.1
_KEY_FILE = re.compile(
    r"stonechat public key (?P<name>[a-z0-9-]{1,64})\r?\nid (?P<id>[0-9a-f]{16})\r?\ned25519 (?P<raw>[!-~]+)\s*",
    re.ASCII,
)

log = logging.getLogger("stonechat")


@dataclass(frozen=True)
class PublicKey:
    """One signer."""

    name: str
    raw: bytes  # 32 bytes

    @property
    def key_id(self) -> str:
        """What signatures call it: the first 16 hexadecimal digits of the sha256 of the raw key."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.name} ({self.key_id})"

    def to_text(self) -> str:
        """As it is in a key file."""
        raw = base64.b64encode(self.raw).decode()
        return f"stonechat public key {self.name}\nid {self.key_id}\ned25519 {raw}\n"

    @classmethod
    def from_text(cls, text: str) -> PublicKey:
        """Parse a key file.

        Raises:
            ValueError: it is none, or its id is not that of its key.
        """
        match = _KEY_FILE.fullmatch(text)
        if match is None:
            raise ValueError("it is no stonechat public key; expected a NAME.pub that `stonechat key new` has made")
        key = cls(match["name"], _decoded(match["raw"], _KEY_BYTES))
        if key.key_id != match["id"]:
            raise ValueError(f"its id is {match['id']}, but the key in it has {key.key_id}; the file is damaged")
        return key

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        """Whether `signature` is this key's over `message`.

        Raises:
            MissingExtraError: the package that checks it is not installed.
        """
        try:
            from cryptography.exceptions import InvalidSignature
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        except ImportError:
            what = "This device has keys and accepts nothing unchecked: checking signatures"
            raise MissingExtraError.of(what, "cryptography", "sign") from None
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True)
class Signature:
    """One entry of manifest.sig."""

    key_id: str
    ed25519: bytes  # 64 bytes
    image: bytes | None = None  # 64 bytes: of the model image in its container; None: the bundle has none

    def to_fields(self) -> dict[str, str]:
        """As it is in manifest.sig."""
        image = {} if self.image is None else {"image": base64.b64encode(self.image).decode()}
        return {"key": self.key_id, "ed25519": base64.b64encode(self.ed25519).decode(), **image}


@dataclass(frozen=True)
class TrustStore:
    """Public keys by their ids."""

    keys: dict[str, PublicKey] = field(default_factory=dict)
    retired: dict[str, PublicKey] = field(default_factory=dict)
    path: Path = Path("keys")  # for messages

    @property
    def demands_signatures(self) -> bool:
        """Whether unsigned bundles are refused: the device has, or had, a key."""
        return bool(self.keys or self.retired)

    @classmethod
    def load(cls, folder: Path | str, *, required: bool = False) -> TrustStore:
        """Read keys/*.pub and keys/retired/*.pub. Without the folder, or with an empty one, no key is known.

        Args:
            required: somebody has named this folder, so that it must hold a key.

        Raises:
            ConfigurationError: a key file cannot be read (a key that is skipped could be the retired one), or there
                is none and one is required.
        """
        folder = Path(folder)
        retired = _read_folder(folder / RETIRED)
        keys = {key_id: key for key_id, key in _read_folder(folder).items() if key_id not in retired}
        if required and not keys and not retired:
            what = "has no *.pub" if folder.is_dir() else "is not a folder"
            raise ConfigurationError(
                f"{folder} {what}; put the public keys there whose bundles are welcome (`stonechat key new NAME`)."
            )
        return cls(keys, retired, folder)

    def reloaded(self) -> TrustStore:
        """The same folder as it is now. Once it has demanded signatures it does not cease to.

        Raises:
            ConfigurationError: see `load`.
        """
        return TrustStore.load(self.path, required=self.demands_signatures)

    def verify(self, manifest: bytes, signature: bytes | None) -> str | None:
        """The id of a trusted key that has signed this manifest; None on a device that knows no keys.

        Args:
            manifest: the bytes of manifest.json.
            signature: the bytes of manifest.sig, None where there is none.

        Raises:
            SignatureError: unsigned, or by nobody who is trusted, or retired, or altered since.
            MissingExtraError: the package 'cryptography' is not installed.
        """
        if not self.demands_signatures:
            _say_once(self.path)
            return None
        return self.signers(manifest, signature)[0].key_id

    def signers(self, manifest: bytes, signature: bytes | None) -> list[PublicKey]:
        """Every trusted key that has signed this manifest, at least one; see `verify`."""
        if signature is None:
            raise SignatureError(
                f"The bundle is not signed, and this device takes only what is signed by {self._names()}. "
                "Sign it with `stonechat bundle sign BUNDLE --key FILE`."
            )
        signatures = parse_signatures(signature)
        found = [(self.keys[s.key_id], s.ed25519) for s in signatures if s.key_id in self.keys]
        for key, ed25519 in found:
            if not key.has_signed(manifest, ed25519):
                raise SignatureError(
                    f"manifest.json is not what {key} has signed: it, or its signature, was altered or damaged. "
                    "Copy the bundle again, or sign it again."
                )
        if found:
            return [key for key, _ in found]
        if gone := [str(self.retired[s.key_id]) for s in signatures if s.key_id in self.retired]:
            raise SignatureError(
                f"The bundle is signed by {' and '.join(gone)}, and retired keys sign nothing any more; this "
                f"device takes only what is signed by {self._names()}. Sign it with such a key."
            )
        ids = ", ".join(s.key_id for s in signatures[:3]) or "nobody"
        raise SignatureError(
            f"The bundle is signed by {ids}, whom this device does not know; it takes only what is signed "
            f"by {self._names()}. Sign it with such a key, or put the signer's .pub into {self.path}."
        )

    def _names(self) -> str:
        names = [str(key) for key in self.keys.values()]
        return " or ".join(names[:4]) or "keys in use, of which it has none"


def parse_signatures(content: bytes) -> list[Signature]:
    """The entries of manifest.sig.

    Raises:
        SignatureError: it is damaged, or of a later schema.
    """
    try:
        if len(content) > MAX_SIGNATURE_BYTES:
            raise ValueError(f"it has {len(content):,} bytes, at most {MAX_SIGNATURE_BYTES:,} are read")
        data = json.loads(content.decode("utf-8"), object_pairs_hook=_without_duplicates)
        if not isinstance(data, dict) or type(data.get("schema")) is not int or data["schema"] != 1:
            found = data.get("schema") if isinstance(data, dict) else data
            raise ValueError(f"its schema is {shortened(found)}, this stonechat reads 1")
        return _entries(data.get("signatures"))
    except (ValueError, RecursionError) as error:
        raise SignatureError(
            f"{SIGNATURE} cannot be read ({error}); copy the bundle again, or sign it again."
        ) from None


def _entries(items: Any) -> list[Signature]:
    if not isinstance(items, list) or not 0 < len(items) <= MAX_SIGNATURES:
        raise ValueError(f"its signatures are {shortened(items)}; expected a list of 1 to {MAX_SIGNATURES}")
    entries: dict[str, Signature] = {}
    for item in items:
        key = item.get("key") if isinstance(item, dict) else None
        text = item.get("ed25519") if isinstance(item, dict) else None
        if not isinstance(key, str) or not re.fullmatch("[0-9a-f]{16}", key) or not isinstance(text, str):
            raise ValueError(f"a signature is {shortened(item)}; expected a key id and a text ed25519")
        if key in entries:
            raise ValueError(f"the key {key} comes twice")
        image = item.get("image")
        if image is not None and not isinstance(image, str):
            raise ValueError(f"a signature's image is {shortened(image)}; expected a text")
        signed = None if image is None else _decoded(image, _SIGNATURE_BYTES)
        entries[key] = Signature(key, _decoded(text, _SIGNATURE_BYTES), signed)
    return list(entries.values())


def read_key(path: Path) -> PublicKey:
    """A public key file.

    Raises:
        ConfigurationError: it cannot be read, or is none.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read(_MAX_KEY_FILE_BYTES + 1)
        if len(content) > _MAX_KEY_FILE_BYTES:
            raise ValueError("it is too long for a stonechat public key")
        return PublicKey.from_text(content.decode("ascii"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: it is no text; expected a NAME.pub of `stonechat key new`.") from None
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}.") from None


def device_keys() -> Path:
    """Where a device keeps the keys that it trusts: $STONECHAT_ROOT/keys, else /var/lib/stonechat/keys."""
    return Path(os.environ.get("STONECHAT_ROOT") or "/var/lib/stonechat") / "keys"


def trusted(folder: Path | None) -> TrustStore:
    """Whom to trust: the keys in `folder`, which must hold some, or else this device's, which may have none.

    Raises:
        ConfigurationError: see `TrustStore.load`.
    """
    return TrustStore.load(device_keys()) if folder is None else TrustStore.load(folder, required=True)


def _read_folder(folder: Path) -> dict[str, PublicKey]:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be read ({error.strerror}); it holds the trusted keys.") from None
    read = (read_key(folder / name) for name in names if name.endswith(".pub"))
    return {key.key_id: key for key in read}


def _decoded(text: str, size: int) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    # Bits that no byte uses must be zero: one key or signature has one spelling.
    if len(raw) != size or base64.b64encode(raw).decode() != text:
        raise ValueError(f"{shortened(text)} is not {size} bytes in base64")
    return raw


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field comes twice")
    return fields


_said = set[Path]()


def _say_once(path: Path) -> None:
    if path not in _said:
        _said.add(path)
        log.warning("no key in %s: bundles are taken without a signature", path)
