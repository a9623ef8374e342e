"""Files to a board, resumed where an earlier copy stopped.

A file arrives as INCOMING/<sha256>.part: named by its content, so that a later attempt goes on with the same file and
never with another. Only when all of it has come and hashes right does it get its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from toolkit.ssh.ssh import Remote, RemoteError

__all__ = ["copy_file", "file_sha256", "put_text"]

BLOCK_BYTES = 128 * 1024

_HAVE = """
set -eu
umask 022
mkdir -p "$1"
cd "$1"
if [ -f "$3" ] && [ "$(sha256sum "$3" | cut -d' ' -f1)" = "$2" ]; then echo there; exit 0; fi
[ -f "$2.part" ] || { echo 0; exit 0; }
wc -c < "$2.part"
"""
_DROP = 'rm -f "$1/$2.part"'
_APPEND = 'set -eu; umask 022; exec cat >> "$1/$2.part"'
_FINISH = """
set -eu
cd "$1"
found=$(sha256sum "$2.part" | cut -d' ' -f1)
[ "$found" = "$2" ] || { rm -f "$2.part"; echo "it arrived damaged" >&2; exit 1; }
chmod "$4" "$2.part"
mkdir -p "$(dirname "$3")"
mv -f "$2.part" "$3"
"""
_PUT = """
set -eu
umask 077
trap 'rm -f "$1.new"' EXIT
cat > "$1.new"
[ -z "$3" ] || chown "$3" "$1.new"
chmod "$2" "$1.new"
cmp -s "$1" "$1.new" || echo changed
mv -f "$1.new" "$1"
"""


def copy_file(
    remote: Remote,
    source: Path,
    sha256: str,
    incoming: str,
    to: str,
    *,
    mode: str = "644",
    as_root: bool = False,
    user: str | None = None,
    on_progress: Callable[[int], None] = lambda sent_bytes: None,
) -> int:
    """Bring `source` to the path `to` on the board; returns the bytes that had to travel.

    Raises:
        RemoteError: there is no room, or no permission.
        UnreachableError: the connection broke; what has come is kept for the next attempt.
    """
    size = source.stat().st_size
    said = remote.check(_HAVE, incoming, sha256, to, as_root=as_root, user=user).strip()
    if said == "there":
        on_progress(size)
        return 0
    have = int(said)
    if have > size:
        remote.check(_DROP, incoming, sha256, as_root=as_root, user=user)
        have = 0
    on_progress(have)
    try:
        if have < size:
            blocks = _blocks(source, have, on_progress)
            remote.feed(_APPEND, incoming, sha256, blocks=blocks, as_root=as_root, user=user)
        elif size == 0:
            remote.feed(_APPEND, incoming, sha256, blocks=[], as_root=as_root, user=user)
        remote.check(_FINISH, incoming, sha256, to, mode, as_root=as_root, user=user)
    except RemoteError as error:
        with suppress(RemoteError):  # a full disk must not stay full of this
            remote.check(_DROP, incoming, sha256, as_root=as_root, user=user)
        raise RemoteError(f"{source.name} could not be copied to {remote.target}:{to}: {error}.") from None
    return size - have


def put_text(remote: Remote, text: str | bytes, to: str, *, mode: str, owner: str = "", as_root: bool = False) -> bool:
    """Write a small file at once: the old one stays until the new one is whole. True when it says something new.

    Raises:
        RemoteError: there is no room, or no permission.
    """
    data = text.encode() if isinstance(text, str) else text
    try:
        return bool(remote.feed(_PUT, to, mode, owner, blocks=[data], as_root=as_root))
    except RemoteError as error:
        raise RemoteError(f"{remote.target}:{to} could not be written: {error}.") from None


def file_sha256(path: Path) -> str:
    """In hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _blocks(source: Path, start: int, on_progress: Callable[[int], None]) -> Iterator[bytes]:
    with source.open("rb") as file:
        file.seek(start)
        sent = start
        while block := file.read(BLOCK_BYTES):
            yield block
            sent += len(block)
            on_progress(sent)
