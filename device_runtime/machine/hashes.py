"""Hashes without OpenSSL, whose library is 3.4 MB of a process that answers, and milliseconds of its start.

Python has both in C of its own, but `hashlib` loads OpenSSL's whatever is asked of it. For large files SHA-256 is
several times slower here than there; BLAKE2 is about as fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from hashlib import blake2b, sha256
else:
    try:
        from _blake2 import blake2b
    except ImportError:  # a Python that was built without its own
        from hashlib import blake2b
    try:
        from _sha2 import sha256  # Python 3.12 on
    except ImportError:
        try:
            from _sha256 import sha256
        except ImportError:
            from hashlib import sha256

__all__ = ["blake2b_of_file", "sha256_of"]

_CHUNK_BYTES = 1 << 18


def sha256_of(data: bytes) -> str:
    """In hexadecimal; for what is small."""
    return sha256(data).hexdigest()


def blake2b_of_file(stream: BinaryIO) -> str:
    """In hexadecimal, of what is left of a file."""
    digest, chunk = blake2b(), bytearray(_CHUNK_BYTES)
    view = memoryview(chunk)
    while count := stream.readinto(chunk):  # type: ignore[attr-defined]
        digest.update(view[:count])
    return digest.hexdigest()
