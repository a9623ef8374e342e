"""The transport form of a bundle: an uncompressed zip of its files, manifest.json first and manifest.sig second.

A reader learns from the first bytes whether it wants the rest: `read_head` takes the manifest and its signature
without the zip's index at the end. Everything else is bounded by that manifest before a byte of it is unpacked, and
is hashed while it is written. `layout` says at which offsets of a packed file its parts lie, for a reader that fetches
only some of them, or reads the graph where it lies: model.tflite begins at a multiple of `MODEL_ALIGNMENT`.

Sections are those of PKWARE's APPNOTE.TXT 6.3.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO

from device_runtime.bundle.folder import Bundle, read_signature
from device_runtime.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, MODEL, Manifest
from device_runtime.bundle.trust import MAX_SIGNATURE_BYTES, SIGNATURE, TrustStore
from device_runtime.bundle.work_place import work_file, work_folder
from device_runtime.errors import BundleError, ConfigurationError, SignatureError
from device_runtime.machine.disk import in_blocks, require_space
from device_runtime.records.typed_json import shortened

__all__ = [
    "HEAD_BYTES",
    "MODEL_ALIGNMENT",
    "Archive",
    "Head",
    "Place",
    "head_of",
    "layout",
    "open_any",
    "pack",
    "read_head",
]

# Bytes. A microcontroller runs the graph from where the zip lies in flash. TFLite's schema aligns constants to 16
# within the graph, and vector units want as much (Helium, ESP32-S3); those of a `pi` graph are aligned to 64.
MODEL_ALIGNMENT = 64

_LOCAL = struct.Struct("<4s5H3I2H")  # 4.3.7, up to the name
assert _LOCAL.size == 30
_LOCAL_MAGIC = b"PK\3\4"
_ENCRYPTED, _SIZES_FOLLOW = 1, 8  # general purpose flags, 4.4.4
_ZIP64_EXTRA_BYTES = 20  # what zipfile adds to the local header of a large file
# 4.5.1: the id and size of an extra field. This one is Android's zipalign's: the alignment, then zeros.
_PADDING = struct.Struct("<3H")
_PADDING_ID = 0xD935
_MAX_READ = 2**20  # bytes at once; the zip's index, which nobody has signed, must fit in one
_CHUNK_BYTES = 2**18
_HEADERS_BYTES = 512  # of an entry, at most: its header, padding, and its line in the index
_SLACK_BYTES = 4096  # of the zip's own structures, besides what each file takes
_PER_FILE_BYTES = 512
_CUT = "it is truncated: it ends within its head; copy the bundle again."
_EARLIEST = (1980, 1, 1, 0, 0, 0)

HEAD_BYTES = MAX_MANIFEST_BYTES + MAX_SIGNATURE_BYTES + 1024  # so many from the beginning always hold the head


@dataclass(frozen=True)
class Head:
    """What is at the beginning of a packed bundle."""

    manifest: bytes
    signature: bytes | None
    manifest_crc: int  # as the zip says; checked only after the signature


@dataclass(frozen=True)
class Place:
    """Where the bytes of one file lie in a packed bundle."""

    offset: int
    size_bytes: int


def read_head(stream: BinaryIO) -> Head:
    """The manifest and its signature, from a stream at the beginning of a packed bundle.

    Reads at most `HEAD_BYTES`, and neither seeks nor looks at the zip's index. Nothing is verified yet.

    Raises:
        BundleError: it does not begin as a packed bundle does, or ends too early.
    """
    name, size, crc = _local_header(stream, MAX_MANIFEST_BYTES)
    if name != MANIFEST:
        raise BundleError(f"the zip begins with {shortened(name)}; in a packed bundle {MANIFEST} comes first.")
    manifest = _exactly(stream, size)
    name, size, _ = _local_header(stream, MAX_SIGNATURE_BYTES)
    return Head(manifest, _exactly(stream, size) if name == SIGNATURE else None, crc)


def layout(manifest: Manifest, head: Head) -> dict[str, Place]:
    """Where each file lies in what `pack` makes of this bundle; of other zips it is wrong, as the hashes will show."""
    offset, places = 0, {}
    for name, size in _contents(manifest, head.manifest, head.signature):
        offset += _header_bytes(name, size) + len(_padding(name, size, offset))
        places[name] = Place(offset, size)
        offset += size
    return places


class Archive:
    """A packed bundle whose head has been read, and verified if somebody is to be trusted.

    Args of `open` are those of `Bundle.open`. The file stays open from the check to the last byte that is unpacked:
    another file that takes its path in between is never read.
    """

    def __init__(self, path: Path, file: BinaryIO, zip_file: zipfile.ZipFile, manifest: Manifest, head: Head) -> None:
        self.path, self.manifest, self.head = path, manifest, head
        self._file, self._zip = file, zip_file

    @classmethod
    def open(cls, path: Path | str, trust: TrustStore | None = None) -> Archive:
        """Read and verify the head, and hold the zip's index against the manifest.

        Raises:
            ConfigurationError: there is no such file.
            SignatureError: nobody who is trusted has signed the manifest as it is.
            BundleError: it is no packed bundle, damaged, or holds what its manifest does not list.
        """
        path = Path(path)
        try:
            file = _ShortReads(io.FileIO(path))
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read ({error.strerror}).") from None
        try:
            with _named(path), _zip_errors():
                head = read_head(file)
                if trust is not None:  # before anything of it is believed
                    trust.verify(head.manifest, head.signature)
                manifest = _parse(head)
                _check_length(manifest, head, file.seek(0, os.SEEK_END))
                zip_file = zipfile.ZipFile(file)
                _check_index(manifest, head, zip_file.infolist())
            return cls(path, file, zip_file, manifest, head)
        except BaseException:
            file.close()
            raise

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of one file of the bundle, never more than the manifest says, hashed on the way.

        Raises:
            BundleError: at the end, if this was not the file that the manifest describes; throw away what came.
        """
        entry = self.manifest.files[name]
        digest, left = hashlib.sha256(), entry.size_bytes
        with _named(self.path), _zip_errors():
            source = self._zip.open(name)
        with source:
            while left:
                with _named(self.path), _zip_errors():
                    chunk = source.read(min(left, _CHUNK_BYTES))
                    if not chunk:
                        raise BundleError(f"it ends within {name}; copy the bundle again.")
                left -= len(chunk)
                digest.update(chunk)
                yield chunk
        if digest.hexdigest() != entry.sha256:
            raise BundleError(
                f"{self.path}: {name} is not the file that the manifest describes: sha256 {digest.hexdigest()[:16]}… "
                f"instead of {entry.sha256[:16]}…. It was altered, damaged or taken from another bundle; copy the "
                "bundle again."
            )

    def check(self, name: str) -> None:
        """Raise a `BundleError` if this is not the file that the manifest describes."""
        for _ in self.chunks(name):
            pass

    def unpack(self, folder: Path) -> Bundle:
        """Write the whole bundle into `folder`, which must not exist; all of it or nothing.

        Raises:
            ConfigurationError: `folder` is there already.
            BundleError: a file is not the one that the manifest describes.
            DiskFullError: there is no room for its files.
        """
        if folder.exists() or folder.is_symlink():
            raise ConfigurationError(f"{folder} is there already; name a new folder.")
        contents = _contents(self.manifest, self.head.manifest, self.head.signature)
        require_space(folder.parent, in_blocks(size for _, size in contents), f"{self.path}, unpacked,")
        with work_folder(folder, 0o777) as work:
            for name in self.manifest.files:
                _write_synced(work / name, self.chunks(name))
            if self.head.signature is not None:
                _write_synced(work / SIGNATURE, [self.head.signature])
            _write_synced(work / MANIFEST, [self.head.manifest])  # the bytes that were verified
            work.rename(folder)
        return Bundle(folder, self.manifest, hashlib.sha256(self.head.manifest).hexdigest())

    def close(self) -> None:
        """Close the file."""
        self._zip.close()
        self._file.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def pack(bundle: Bundle | Archive, target: Path, *, manifest: bytes, signature: bytes | None) -> None:
    """Write a bundle as a zip. The same bundle gives the same bytes, at any time and place.

    Args:
        bundle: where the files come from; each is hashed while it is packed.
        manifest: the bytes of manifest.json, which may differ from the bundle's in what signing adds.
        signature: the bytes of manifest.sig.

    Raises:
        BundleError: a file is not the one that the manifest describes, or is a link. `target` is as it was.
        DiskFullError: there is no room for it beside what is at `target`.
    """
    if isinstance(bundle, Bundle):
        _require_no_links(bundle)
    contents = _contents(Manifest.from_json(manifest.decode()), manifest, signature)
    needed = sum(size + _HEADERS_BYTES for _, size in contents)
    require_space(target.parent, needed, f"{target.name}, packed,")
    with work_file(target) as work:
        with zipfile.ZipFile(work, "w") as zip_file:
            for name, size in contents:
                info = zipfile.ZipInfo(name, _EARLIEST)
                info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16  # Unix, wherever it is packed
                info.file_size = size  # zipfile decides by this whether the entry is a large one
                info.extra = _padding(name, size, zip_file.start_dir)
                with zip_file.open(info, "w") as out:
                    if name == MANIFEST:
                        out.write(manifest)
                    elif name == SIGNATURE and signature is not None:
                        out.write(signature)
                    else:
                        _copy(bundle, name, out)
                info.extra = b""  # the index has no need of it
        with open(work, "rb+") as file:
            os.fsync(file.fileno())
        work.replace(target)


def open_any(path: Path | str, trust: TrustStore | None = None) -> Archive | Bundle:
    """A bundle in either form, a folder with every file hashed; see `Archive.open` and `Bundle.open`."""
    path = Path(path)
    return Archive.open(path, trust) if path.is_file() else Bundle.open(path, verify=True, trust=trust)


def head_of(bundle: Archive | Bundle) -> Head:
    """The manifest and signature of an opened bundle, in either form.

    Raises:
        BundleError: the folder's manifest is no longer the one that was opened.
    """
    if isinstance(bundle, Archive):
        return bundle.head
    manifest = (bundle.path / MANIFEST).read_bytes()
    if hashlib.sha256(manifest).hexdigest() != bundle.manifest_sha256:
        raise BundleError(f"{bundle.path / MANIFEST} has changed while it was read; try again.")
    return Head(manifest, read_signature(bundle.path), zlib.crc32(manifest))


def _contents(manifest: Manifest, raw: bytes, signature: bytes | None) -> list[tuple[str, int]]:
    """Names and sizes in the order of the zip."""
    signed = [] if signature is None else [(SIGNATURE, len(signature))]
    return [(MANIFEST, len(raw)), *signed, *((n, e.size_bytes) for n, e in sorted(manifest.files.items()))]


def _header_bytes(name: str, size: int) -> int:
    """Of the local header of a file, without padding."""
    return _LOCAL.size + len(name) + (_ZIP64_EXTRA_BYTES if _is_large(size) else 0)


def _padding(name: str, size: int, offset: int) -> bytes:
    """The extra field that aligns the graph, where its local header begins at `offset`."""
    missing = -(offset + _header_bytes(name, size)) % MODEL_ALIGNMENT
    if name != MODEL or missing == 0:
        return b""
    if missing < _PADDING.size:
        missing += MODEL_ALIGNMENT
    return _PADDING.pack(_PADDING_ID, missing - 4, MODEL_ALIGNMENT).ljust(missing, b"\0")


def _is_large(size: int) -> bool:
    return size * 1.05 > zipfile.ZIP64_LIMIT  # as zipfile decides


def _parse(head: Head) -> Manifest:
    if zlib.crc32(head.manifest) != head.manifest_crc:
        raise BundleError(f"{MANIFEST} is damaged: its checksum differs; copy the bundle again.")
    try:
        return Manifest.from_json(head.manifest.decode())
    except UnicodeDecodeError:
        raise BundleError(f"{MANIFEST} is not UTF-8; the bundle is damaged, copy it again.") from None


def _local_header(stream: BinaryIO, limit: int) -> tuple[str, int, int]:
    """Name, size and CRC of the entry that begins here."""
    header = stream.read(_LOCAL.size)
    if not _LOCAL_MAGIC.startswith(header[:4]):
        raise BundleError("it is not a packed bundle; make one with `stonechat bundle pack DIR -o FILE.zip`.")
    if len(header) < _LOCAL.size:
        raise BundleError(_CUT)
    _, _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes = _LOCAL.unpack(header)
    name = _exactly(stream, name_bytes).decode("ascii", "replace")
    if name in (MANIFEST, SIGNATURE):  # what else comes here is judged by the index
        if flags & (_ENCRYPTED | _SIZES_FOLLOW) or method != zipfile.ZIP_STORED or packed != size:
            raise BundleError(f"{name} is compressed, encrypted or streamed; pack with `stonechat bundle pack`.")
        if size > limit:
            raise BundleError(f"{name} has {size:,} bytes; at most {limit:,} are read. Do not use this bundle.")
        _exactly(stream, extra_bytes)
    return name, size, crc


def _check_length(manifest: Manifest, head: Head, found: int) -> None:
    """The manifest bounds the file as a whole, before its index is read."""
    contents = _contents(manifest, head.manifest, head.signature)
    least = sum(size for _, size in contents)
    most = least + _SLACK_BYTES + _PER_FILE_BYTES * len(contents)
    if found < least:
        raise BundleError(f"it is truncated: {found:,} bytes, and its files need {least:,}; copy the bundle again.")
    if found > most:
        raise BundleError(f"it is oversized: {found:,} bytes, and its files need {least:,}. Do not use this bundle.")


def _check_index(manifest: Manifest, head: Head, entries: list[zipfile.ZipInfo]) -> None:
    """The index must have the manifest's files with their sizes, each once, and nothing else."""
    sizes = dict(_contents(manifest, head.manifest, head.signature))
    seen = set()
    for entry in entries:
        name = entry.orig_filename  # before zipfile cuts it at a zero byte
        if name not in sizes or name != entry.filename:
            raise BundleError(f"it holds {shortened(name)}, which its manifest does not list. Do not use this bundle.")
        if name in seen:
            raise BundleError(f"it holds {name} twice. Do not use this bundle.")
        seen.add(name)
        kind = stat.S_IFMT(entry.external_attr >> 16) if entry.create_system == 3 else 0
        if kind not in (0, stat.S_IFREG):
            raise BundleError(f"{name} is a link or a folder in it; expected a file. Do not use this bundle.")
        if entry.flag_bits & _ENCRYPTED or entry.compress_type != zipfile.ZIP_STORED:
            raise BundleError(f"{name} is compressed or encrypted; pack with `stonechat bundle pack`.")
        if entry.file_size != sizes[name] or entry.compress_size != sizes[name]:
            raise BundleError(
                f"{name} has {entry.file_size:,} bytes in it ({entry.compress_size:,} packed); the manifest says "
                f"{sizes[name]:,}. Copy the bundle again."
            )
    if missing := sizes.keys() - seen:
        raise BundleError(f"it lacks {min(missing)}, which its manifest lists; copy the bundle again.")
    if entries[0].filename != MANIFEST or entries[0].header_offset != 0:
        raise BundleError(f"its index has another {MANIFEST} than its beginning. Do not use this bundle.")


def _copy(bundle: Bundle | Archive, name: str, out: IO[bytes]) -> None:
    try:
        for chunk in bundle.chunks(name) if isinstance(bundle, Archive) else _file_chunks(bundle, name):
            out.write(chunk)
    except RuntimeError:  # zipfile: the file has grown past what its entry can say
        raise BundleError(f"{bundle.path}: {name} has grown while it was packed; try again.") from None


def _file_chunks(bundle: Bundle, name: str) -> Iterator[bytes]:
    digest = hashlib.sha256()
    with open(bundle.path / name, "rb", opener=_no_link) as source:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            yield chunk
    if digest.hexdigest() != bundle.manifest.files[name].sha256:
        raise BundleError(f"{bundle.path / name} has changed while it was packed; try again.")


def _require_no_links(bundle: Bundle) -> None:
    """What is packed goes to others: a link could put any file of this machine into it."""
    for name in (MANIFEST, SIGNATURE, *bundle.manifest.files):
        path = bundle.path / name
        if path.is_symlink():
            raise BundleError(
                f"{path} is a link to {os.readlink(path)}; a bundle is packed from files of its own. Put the file "
                "itself there."
            )


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _write_synced(path: Path, chunks: Iterable[bytes]) -> None:
    with open(path, "xb") as file:
        file.writelines(chunks)
        file.flush()
        os.fsync(file.fileno())


def _exactly(stream: BinaryIO, size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise BundleError(_CUT)
    return content


class _ShortReads(io.BufferedReader):
    """A file of which nobody reads more than a bounded piece at once: zipfile reads an index of any size whole."""

    def read(self, size: int | None = -1, /) -> bytes:
        unbounded = size is None or size < 0
        if not unbounded and size is not None and size > _MAX_READ:
            raise zipfile.BadZipFile(f"its index has {size:,} bytes")
        content = super().read(_MAX_READ + 1 if unbounded else size)
        if len(content) > _MAX_READ:
            raise zipfile.BadZipFile("its index is too large")
        return content


@contextmanager
def _zip_errors() -> Iterator[None]:
    """What zipfile raises on damaged input, as our own; all of these have been seen."""
    try:
        yield
    except (BundleError, SignatureError, ConfigurationError):
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, ValueError, OverflowError, EOFError, IndexError) as error:
        raise BundleError(f"the zip is damaged ({str(error)[:100] or type(error).__name__}); copy it again.") from None
    except (NotImplementedError, RuntimeError, OSError) as error:
        raise BundleError(f"the zip cannot be read ({str(error)[:100]}); copy it again.") from None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (BundleError, SignatureError) as error:
        raise type(error)(f"{path}: {error}") from None
