"""A bundle: a folder with a graph, a tokenizer and a manifest that vouches for both.

`Bundle.open` refuses what is incomplete, altered or of another format. Hashing a large graph takes longer
than starting it, so a file whose size, inode and times are those of the last full check is not hashed again;
`verify=True` hashes it in any case.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from device_runtime.bundle import typed_json
from device_runtime.bundle.admission import utc_time
from device_runtime.bundle.trust import MAX_SIGNATURE_BYTES, SIGNATURE, TrustStore
from device_runtime.errors import BundleError, ConfigurationError, SignatureError
from device_runtime.update.slots import resolve

__all__ = ["FORMAT", "Arena", "Bundle", "FileEntry", "GraphShape", "Manifest", "TokenizerInfo", "Trial", "cache_folder"]

FORMAT = 1  # of the manifest; raised when an older runtime could misread a newer bundle
MANIFEST = "manifest.json"
MODEL = "model.tflite"
PREFIX = "prefix.npz"
MAX_MANIFEST_BYTES = 2**20
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_SETTLED_NS = 2 * 10**9  # a file changed twice within one tick of its clock looks as if it had changed once


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says of one file."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class GraphShape:
    """What a backend has to know of the graph beyond what the .tflite file says itself."""

    layers: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    windows: tuple[int, ...]  # kv_cache sizes with a signature of their own, ascending; the last is the context
    prefill: int  # tokens that one prefill signature takes in; 0 where there is none
    weight_bytes: int = 0  # weights that one decode step reads
    rotated: bool = False  # the residual stream is in the basis of converters/quantize/rotation.py
    width: int = 0  # of the residual stream; 0 in a bundle of an older converter, whose memory cannot be computed
    heads: int = 0  # query heads
    ffn_width: int = 0
    tied_head: bool = True  # the head reads the embedding's rows

    def bytes_per_token(self, positions: int, profile: str) -> int:
        """Bytes that one decode step reads when the cache holds `positions`: weights, and the cache's window."""
        window = next((w for w in self.windows if w >= positions), self.windows[-1])
        element_bytes = 4 if profile == "pi" else 1  # float32, int8
        return self.weight_bytes + 2 * self.layers * self.kv_heads * self.head_dim * window * element_bytes


@dataclass(frozen=True)
class TokenizerInfo:
    """How text becomes tokens."""

    file: Literal["tokenizer.json", "tokenizer.model"]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    adds_bos: bool
    special_tokens: dict[str, str]  # bos_token, eos_token … as the chat template wants them


@dataclass(frozen=True)
class Arena:
    """What a `micro` graph took of the arena in TFLite Micro's interpreter; its weights stay in flash."""

    total_bytes: int
    head_bytes: int  # activations, which give their place to others when they have been read
    tail_bytes: int  # what stays: the kv_cache, and records of tensors, operators and scales
    kv_cache_bytes: int  # of the tail
    pointer_bytes: int  # on the machine that measured; where they are shorter the records are smaller


@dataclass(frozen=True)
class Trial:
    """A question whose answer a device must know before it keeps the bundle."""

    prompt: str  # a user's message; plain text where the bundle has no chat template
    expect: str  # must be in the answer, greedy
    max_new: int  # tokens


@dataclass(frozen=True)
class Manifest:
    """manifest.json."""

    format: int
    name: str
    version: str
    architecture: str  # the model family
    profile: Literal["pi", "micro"]
    context: int  # positions
    graph: GraphShape
    tokenizer: TokenizerInfo
    chat_template: str | None  # jinja2 source
    prefix_tokens: tuple[int, ...]  # already in the kv_cache when the model starts
    quality: dict[str, Any]  # the quantization report
    source: dict[str, str]  # checkpoint: name, sha256
    converter: str  # version of stonechat that made the bundle
    security_counter: int  # a device refuses to go back to a smaller one
    files: dict[str, FileEntry]
    instruction: str | None = None  # what the prefix says: the system message, or the beginning of every plain prompt
    arena: Arena | None = None  # of a `micro` graph, if TFLite Micro could be run at conversion
    boards: tuple[str, ...] = ()  # ids of the boards it is meant for; empty: any that runs its profile
    issued: str | None = None  # when `expires` was set; a clock that is earlier is wrong. ISO date-time, UTC
    expires: str | None = None  # until when a device may install it. ISO date-time, UTC
    trial: Trial | None = None  # the golden prompt
    purpose: dict[str, Any] | None = None  # what it was trained for; see device_runtime/tasks/purpose.py

    def to_json(self) -> str:
        """As it stands in the bundle."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse.

        Raises:
            BundleError: it is not JSON, of another format, or lacks a field.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{MANIFEST} is not JSON ({error}); the bundle is damaged, copy it again.") from None
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            raise BundleError(
                f"{MANIFEST} has format {typed_json.shortened(found)}; this stonechat reads format {FORMAT}. "
                "Install the stonechat that made the bundle, or convert the checkpoint again."
            )
        try:
            manifest: Manifest = typed_json.read(cls, data)
        except ValueError as error:
            raise BundleError(f"{MANIFEST}: {error}; convert the checkpoint again.") from None
        manifest._check()
        return manifest

    def _check(self) -> None:
        needed = {MODEL, self.tokenizer.file, *([PREFIX] if self.prefix_tokens else [])}
        if missing := needed - self.files.keys():
            raise BundleError(f"{MANIFEST} does not list {min(missing)}; convert the checkpoint again.")
        for name in self.files:
            if not _FILE_NAME.fullmatch(name):
                raise BundleError(f"{MANIFEST} names a file outside of the bundle: {name!r}. Do not use this bundle.")
        for field in ("issued", "expires"):
            try:
                utc_time(getattr(self, field) or "2025-01-01T00:00:00Z")
            except (ValueError, OverflowError):
                raise BundleError(
                    f"{MANIFEST}: {field} is {typed_json.shortened(getattr(self, field))}; expected a date-time in "
                    "UTC such as 2027-01-31T00:00:00Z. Pack the bundle again."
                ) from None
        windows = self.graph.windows
        if list(windows) != sorted(set(windows)) or windows[-1:] != (self.context,):
            raise BundleError(
                f"{MANIFEST}: graph.windows is {list(windows)[:9]}; expected ascending sizes that end with "
                f"the context, {self.context}. Convert the checkpoint again."
            )


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
        """Keys and values of the prefix, in float32: arrays `k` and `v`, (layers, positions, kv_heads, head_dim)."""
        return self.path / PREFIX

    def read_prefix(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Keys and values of the prefix, (layers, positions, kv_heads, head_dim) each.

        Raises:
            BundleError: they are not there, or of another shape than the manifest says.
        """
        graph = self.manifest.graph
        expected = (graph.layers, len(self.manifest.prefix_tokens), graph.kv_heads, graph.head_dim)
        try:
            with np.load(self.prefix_path) as arrays:
                keys, values = arrays["k"], arrays["v"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise BundleError(f"{self.prefix_path} cannot be read ({error}); convert the checkpoint again.") from None
        for name, array in (("k", keys), ("v", values)):
            if array.shape != expected or array.dtype != np.float32:
                raise BundleError(
                    f"{self.prefix_path}: {name} is {array.dtype} {array.shape}; the manifest says float32 {expected}. "
                    "Convert the checkpoint again."
                )
        return keys, values

    @property
    def cache_path(self) -> Path | None:
        """A folder of this bundle's own for what a runtime wants to keep between starts, or None."""
        # Named after the graph: a new report or signature does not make prepared weights stale.
        return cache_folder(_of_model(self.manifest))

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = False, trust: TrustStore | None = None) -> Bundle:
        """Check and open a bundle folder, or the active bundle of a slot folder.

        Args:
            verify: hash every file even if it has not changed since the last full check.
            trust: whose signature it must have; None asks for none.

        Raises:
            ConfigurationError: there is no bundle at `path`.
            SignatureError: nobody who is trusted has signed the manifest as it is.
            BundleError: it is incomplete, altered, or of another format.
        """
        path = resolve(Path(path))
        manifest_path = path / MANIFEST
        if not manifest_path.is_file():
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
        bundle = cls(path, manifest, hashlib.sha256(raw).hexdigest())
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


def cache_folder(name: str) -> Path | None:
    """A folder for files that only make the next start faster; None where nothing can be written.

    It lies under $STONECHAT_CACHE, else $XDG_CACHE_HOME/stonechat, else ~/.cache/stonechat.
    """
    root = os.environ.get("STONECHAT_CACHE")
    if not root:
        base: Mapping[str, str] = os.environ
        root = os.path.join(base.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "stonechat")
    folder = Path(root) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
