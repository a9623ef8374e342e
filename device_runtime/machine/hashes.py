"""Hashes without OpenSSL, whose library is 3.4 MB of a process that answers, and milliseconds of its start.

Python has both in C of its own, but `hashlib` loads OpenSSL's whatever is asked of it. For large files SHA-256 is
several times slower here than there; BLAKE2 is about as fast.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any, BinaryIO

__all__ = ["blake2b_of_file", "imports_without_openssl", "sha256_of"]

_CHUNK_BYTES = 1 << 18
_OWN = ("_md5", "_sha1", "_sha3", "_blake2")  # of which hashlib needs all, and those of SHA-2


def _own(function: str, of_openssl: str, *modules: str) -> Any:
    """Of the first module that this Python has; OpenSSL's where it was built without."""
    for name in modules:
        try:
            return getattr(import_module(name), function)
        except ImportError:
            continue
    # Not hashlib's own function: it has no blake2b then, since it takes that from no other place.
    return partial(import_module("hashlib").new, of_openssl)


_blake2b = _own("blake2b", "blake2b512", "_blake2")
_sha256 = _own("sha256", "sha256", "_sha2", "_sha256")  # the first is that of Python 3.12


def sha256_of(data: bytes) -> str:
    """In hexadecimal; for what is small."""
    return str(_sha256(data).hexdigest())


def blake2b_of_file(stream: BinaryIO) -> str:
    """In hexadecimal, of what is left of a file."""
    digest = _blake2b()
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return str(digest.hexdigest())


@contextmanager
def imports_without_openssl() -> Iterator[None]:
    """For the import of a library that wants a small hash of `hashlib`: it gets Python's own.

    A module that imports hashlib afterwards gets all of it. Where hashlib is loaded already, or this Python has no
    hashes of its own, nothing changes.
    """
    if "hashlib" in sys.modules or "_hashlib" in sys.modules or not _has_own():
        yield
        return
    sys.modules["_hashlib"] = None  # type: ignore[assignment]  # so that importing it fails
    try:
        yield
    finally:
        del sys.modules["_hashlib"]
        sys.modules.pop("hashlib", None)


def _has_own() -> bool:
    try:
        for name in _OWN:
            import_module(name)
    except ImportError:
        return False
    return not any(isinstance(function, partial) for function in (_blake2b, _sha256))
