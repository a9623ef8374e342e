"""A bundle: a folder with a graph, a tokenizer and a manifest that vouches for both.

`Bundle.open` refuses what is incomplete, altered or of another format. Hashing a large graph takes longer
than starting it, so a file whose size, inode and times are those of the last full check is not hashed again;
`verify=True` hashes it in any case.

Nothing here needs numpy: a bundle is opened, and then its graph, while numpy is still being loaded.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, MODEL, PREFIX, FileEntry, Manifest
from device_runtime.errors import BundleError, ConfigurationError, SignatureError
from device_runtime.machine.hashes import sha256_of

if TYPE_CHECKING:
    from device_runtime.bundle.trust import TrustStore

__all__ = ["Bundle", "cache_folder", "cache_root", "read_signature"]

_SETTLED_NS = 2 * 10**9  # a file changed twice within one tick of its clock looks as if it had changed once


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files are what the manifest says they are."""

    path: Path
    manifest: Manifest
    manifest_sha256: str

    @property
    def model_path(self) -> Path:
        """The graph."""
        return self.path / MODEL

    @property
    def prefix_path(self) -> Path:
        """Keys and values of the prefix: arrays `k` and `v`, (layers, positions, kv_heads, head_dim), as
        `prefix.read_prefix` gives them for `pi`, and in float32 for `micro`."""
        return self.path / PREFIX

    @property
    def cache_path(self) -> Path | None:
        """A folder of this bundle's own for what a runtime wants to keep between starts, or None."""
        # Named after the graph: a new report or signature does not make prepared weights stale.
        return cache_folder(_of_model(self.manifest))

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = False, trust: TrustStore | None = None) -> Bundle:
        """Check and open a bundle folder. A path that a person typed goes through `update.active.open_bundle`.

        Args:
            verify: hash every file even if it has not changed since the last full check.
            trust: whose signature it must have; None asks for none.

        Raises:
            ConfigurationError: there is no bundle at `path`.
            SignatureError: nobody who is trusted has signed the manifest as it is.
            BundleError: it is incomplete, altered, or of another format.
        """
        path = Path(path)
        manifest_path = path / MANIFEST
        if not manifest_path.is_file():
            from zipfile import is_zipfile  # which nothing else of a start needs

            if path.is_file() and is_zipfile(path):
                raise ConfigurationError(
                    f"{path} is a file, and a folder is read here. If it is a packed bundle, unpack it with "
                    f"`stonechat bundle unpack {path} -o DIR`."
                )
            what = "is not a bundle: it has no manifest.json" if path.exists() else "does not exist"
            raise ConfigurationError(f"{path} {what}. Make a bundle with `stonechat convert CHECKPOINT -o DIR`.")
        try:
            raw = _read_at_most(manifest_path, MAX_MANIFEST_BYTES)
            if trust is not None:  # before anything of it is believed, and on the very bytes that are parsed below
                trust.verify(raw, read_signature(path))
            manifest = Manifest.from_json(raw.decode())
        except OSError as error:
            raise BundleError(f"{manifest_path} cannot be read ({error.strerror}).") from None
        except UnicodeDecodeError:
            raise BundleError(f"{manifest_path} is not UTF-8; the bundle is damaged, copy it again.") from None
        except (BundleError, SignatureError) as error:
            raise type(error)(f"{path}: {error}") from None
        bundle = cls(path, manifest, sha256_of(raw))
        for name, entry in manifest.files.items():
            bundle._check(name, entry, verify)
        return bundle

    def _check(self, name: str, entry: FileEntry, verify: bool) -> None:
        file = self.path / name
        try:
            status = file.stat()
            if status.st_size != entry.size_bytes:
                raise BundleError(
                    f"{file} has {status.st_size:,} bytes; the manifest says {entry.size_bytes:,}. "
                    "Copy the bundle again."
                )
            record = self.cache_path / f"verified-{name}" if self.cache_path else None
            # The change time is in it because a modification time can be set back.
            stamp = f"{entry.sha256} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
            if not verify and record is not None and _read_record(record) == stamp:
                return
            import hashlib  # with OpenSSL's library, which a start with verified files does without

            with open(file, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise BundleError(f"{file} cannot be read ({error.strerror}); copy the bundle again.") from None
        if digest != entry.sha256:
            raise BundleError(
                f"{file} is not the file that the manifest describes: sha256 {digest[:16]}… instead of "
                f"{entry.sha256[:16]}…. It was altered or damaged; copy the bundle again."
            )
        if record is not None and time.time_ns() - status.st_ctime_ns > _SETTLED_NS:
            with suppress(OSError):  # a full disk costs the next start some time and nothing else
                record.write_text(stamp)


def read_signature(folder: Path) -> bytes | None:
    """The bytes of manifest.sig in a bundle folder; None where the bundle is not signed.

    Raises:
        BundleError: it is too long to be one, or cannot be read.
    """
    from device_runtime.bundle.trust import MAX_SIGNATURE_BYTES, SIGNATURE

    try:
        return _read_at_most(folder / SIGNATURE, MAX_SIGNATURE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{SIGNATURE} cannot be read ({error.strerror}).") from None


def _read_at_most(path: Path, limit: int) -> bytes:
    with open(path, "rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise BundleError(f"{path.name} has more than {limit:,} bytes; the bundle is damaged, copy it again.")
    return content


def _read_record(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("ascii", "replace")
    except OSError:
        return None


def _of_model(manifest: Manifest) -> str:
    return manifest.files[MODEL].sha256[:16]


def cache_root() -> Path:
    """$STONECHAT_CACHE, else $XDG_CACHE_HOME/stonechat, else ~/.cache/stonechat."""
    if root := os.environ.get("STONECHAT_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "stonechat")


def cache_folder(name: str) -> Path | None:
    """A folder in `cache_root` for files that only make the next start faster; None where nothing can be written."""
    folder = cache_root() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
