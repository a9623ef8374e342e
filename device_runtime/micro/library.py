"""The C engine on this machine: compiled once, kept in the cache folder, called through ctypes."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from device_runtime.bundle.folder import cache_folder
from device_runtime.errors import BackendError, BackendMissingError
from device_runtime.machine.hashes import sha256_of
from device_runtime.micro.sources import FLAGS, INCLUDES, engine_sources

__all__ = ["CEngine", "compile_library", "compiler", "library_path"]

_OK = 0
_TRUST_HASH = 1
_AFTER_CALL = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p)
# What the compiler may assume of the processor: what this one has.
_NATIVE = {"x86_64": ("-march=native",), "aarch64": (), "armv7l": ("-mfpu=neon",)}


class _Needs(ctypes.Structure):
    _fields_ = [
        ("arena_bytes", ctypes.c_size_t),
        ("kv_cache_bytes", ctypes.c_size_t),
        ("context", ctypes.c_uint32),
        ("vocabulary", ctypes.c_uint32),
        ("prefix", ctypes.c_uint32),
    ]


class _Logits(ctypes.Structure):
    _fields_ = [
        ("stored", ctypes.c_void_p),
        ("count", ctypes.c_uint32),
        ("bits", ctypes.c_uint32),
        ("scale", ctypes.c_float),
        ("zero_point", ctypes.c_int32),
    ]


def compiler() -> str | None:
    """The C compiler of this machine: $CC, or one of the usual names; None if there is none."""
    named = os.environ.get("CC")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def library_path() -> Path:
    """Where the library of this version of the sources, compiler and machine is kept."""
    read = repr((FLAGS, _native_flags(), compiler(), platform.machine())).encode()
    for path in sorted([*engine_sources(), *(h for folder in INCLUDES for h in folder.glob("*.h"))]):
        read += path.name.encode() + path.read_bytes()
    folder = cache_folder("native")
    if folder is None:
        raise BackendError(
            "There is no folder to keep the compiled engine in. Set STONECHAT_CACHE to one that can be written."
        )
    return folder / f"engine-{sha256_of(read)[:16]}.so"


def compile_library() -> Path:
    """Compile the engine, if it has not been yet; returns the shared library.

    Raises:
        BackendMissingError: there is no C compiler.
        BackendError: the compiler failed, or the folder cannot be written.
    """
    path = library_path()
    if path.exists():
        return path
    cc = compiler()
    if cc is None:
        raise BackendMissingError(
            "The native backend is compiled on this machine, and there is no C compiler; install one "
            "(`apt install gcc`), or run the bundle with --backend litert or tflite-runtime."
        )
    part = path.with_name(f".{path.name}-{os.getpid()}")
    command = [cc, *FLAGS, *_native_flags(), "-O3", "-shared", "-fPIC"]
    command += [*(f"-I{folder}" for folder in INCLUDES), *map(str, engine_sources()), "-o", str(part), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BackendError(f"{cc} could not compile the C engine:\n{done.stderr.strip()}")
        part.replace(path)
    except OSError as error:
        raise BackendError(
            f"The compiled engine cannot be kept in {path.parent}: {error.strerror}. Set STONECHAT_CACHE to a folder "
            "that can be written."
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return path


def _native_flags() -> tuple[str, ...]:
    return _NATIVE.get(platform.machine(), ())


@cache
def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.sc_status_text.restype = ctypes.c_char_p
    library.sc_read_logits.restype = _Logits
    library.sc_saved_bytes.restype = ctypes.c_size_t
    for name in ("sc_position", "sc_greedy"):
        getattr(library, name).restype = ctypes.c_uint32
    for name in ("sc_measure", "sc_open"):
        getattr(library, name).restype = ctypes.c_int
    return library


class CEngine:
    """One model image, open. The image is mapped and read in place.

    Raises:
        BackendError: the engine refuses the image.
    """

    def __init__(self, image: Path, *, library: Path | None = None, trust_hash: bool = False) -> None:
        self._c = _load(library or compile_library())
        self._path = image
        try:
            with open(image, "rb") as file:
                # copy on write: ctypes asks for memory that could be written, and the file stays as it is
                self._image = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise BackendError(f"The C engine refused {image}: {error}. Convert the checkpoint again.") from None
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._image))
        self._start, size, flags = ctypes.c_void_p(start), ctypes.c_size_t(len(self._image)), _TRUST_HASH * trust_hash
        self.needs = _Needs()
        self._check(self._c.sc_measure(self._start, size, flags, ctypes.byref(self.needs)))
        self._arena, arena = _aligned(self.needs.arena_bytes)
        self._kv_cache, kv_cache = _aligned(max(1, self.needs.kv_cache_bytes))
        self._model = ctypes.c_void_p()
        self._check(
            self._c.sc_open(
                ctypes.byref(self._model), self._start, size, _TRUST_HASH,
                arena, ctypes.c_size_t(self.needs.arena_bytes), kv_cache, ctypes.c_size_t(self.needs.kv_cache_bytes),
            )
        )  # fmt: skip
        logits = self._c.sc_read_logits(self._model)
        self.scale, self.zero_point = float(logits.scale), int(logits.zero_point)
        dtype = np.int8 if logits.bits == 8 else np.int16
        bytes_ = (ctypes.c_char * (logits.count * logits.bits // 8)).from_address(logits.stored)
        self.logits: npt.NDArray[np.signedinteger] = np.frombuffer(bytes_, dtype)  # of the last step, as stored

    @property
    def position(self) -> int:
        """Positions that the kv_cache holds."""
        return int(self._c.sc_position(self._model))

    def feed(self, token: int) -> None:
        """Take in one token and fill `logits`."""
        self._check(self._c.sc_feed(self._model, ctypes.c_uint32(token)))

    def rewind(self, position: int) -> None:
        """Forget all positions from `position` on."""
        self._c.sc_rewind(self._model, ctypes.c_uint32(position))

    def self_test(self) -> None:
        """Run the image's golden test."""
        self._check(self._c.sc_self_test(self._model))

    @property
    def saved_bytes(self) -> int:
        """Of what `save` gives."""
        return int(self._c.sc_saved_bytes(self._model))

    def save(self) -> bytes:
        """The kv_cache and the position."""
        size = self.saved_bytes
        buffer = ctypes.create_string_buffer(size)
        self._check(self._c.sc_save(self._model, buffer, ctypes.c_size_t(size)))
        return buffer.raw

    def restore(self, saved: bytes) -> None:
        """What `save` gave, of this image."""
        self._check(self._c.sc_restore(self._model, saved, ctypes.c_size_t(len(saved))))

    def greedy(self) -> int:
        """The token with the largest logit."""
        return int(self._c.sc_greedy(self._model))

    def opens_with(self, arena_bytes: int, kv_cache_bytes: int) -> int:
        """The status of opening the image again, with so much memory and no more."""
        arena, kv_cache, other = _aligned(arena_bytes), _aligned(kv_cache_bytes), ctypes.c_void_p()
        return int(
            self._c.sc_open(
                ctypes.byref(other), self._start, ctypes.c_size_t(len(self._image)), _TRUST_HASH,
                arena[1], ctypes.c_size_t(arena_bytes), kv_cache[1], ctypes.c_size_t(kv_cache_bytes),
            )
        )  # fmt: skip

    def feed_watched(self, token: int, after: Callable[[int, int], None]) -> None:
        """`feed`, and after each call of the call list its number and the address of the arena."""

        def watch(call: int, arena: int, _: object) -> None:
            after(call, arena)

        self._check(self._c.sc_feed_watched(self._model, ctypes.c_uint32(token), _AFTER_CALL(watch), None))

    def _check(self, status: int) -> None:
        if status != _OK:
            text = self._c.sc_status_text(status).decode()
            raise BackendError(f"The C engine refused {self._path}: {text}.")


def _aligned(size: int) -> tuple[ctypes.Array[ctypes.c_char], ctypes.c_void_p]:
    """Memory, and the first multiple of 64 in it."""
    memory = ctypes.create_string_buffer(size + 64)
    return memory, ctypes.c_void_p(-(-ctypes.addressof(memory) // 64) * 64)
