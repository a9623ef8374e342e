"""A bundle folder of whatever form of bundle a command was given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["as_folder"]


@contextmanager
def as_folder(path: Path) -> Iterator[Path]:
    """A bundle folder as it is; a packed bundle is unpacked for as long as this lasts.

    Raises:
        BundleError: the packed bundle is damaged.
        DiskFullError: there is no room for its files.
    """
    if not _is_zip(path):  # a folder, or a file of another kind, which is refused when it is opened
        yield path
        return
    import tempfile

    from device_runtime.bundle.archive import Archive  # with OpenSSL's library, for hashes, which a folder does without

    with tempfile.TemporaryDirectory(prefix="stonechat-") as folder, Archive.open(path) as archive:
        yield archive.unpack(Path(folder) / "bundle").path


def _is_zip(path: Path) -> bool:
    """Also of a zip file whose end is missing: its error then says that it is cut off."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(2) == b"PK"
