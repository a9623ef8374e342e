"""Files that go onto a microcontroller: reading them, and recognizing their kinds."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

from device_runtime.errors import ConfigurationError, DoesNotFitError, ImageError

__all__ = ["MAX_IMAGE_BYTES", "Image", "describe", "kind_of", "read_file", "read_firmware", "require_kind"]

MAX_IMAGE_BYTES = 256 * 1024 * 1024  # no microcontroller has more flash

# First bytes of each kind of file, and what to call it. An ESP image has a single magic byte: it comes last.
_MAGIC = (
    (b"UF2\n", "uf2"),
    (b"\x7fELF", "elf"),
    (b"\x3d\xb8\xf3\x96", "mcuboot"),
    (b"PK\x03\x04", "zip"),
    (b"GGUF", "gguf"),
    (b"\xe9", "esp"),
)
_CALLED = {
    "uf2": "a UF2 file",
    "elf": "an ELF file (make a .bin of it with `objcopy -O binary`)",
    "mcuboot": "an MCUboot image",
    "zip": "a zip file",
    "gguf": "a GGUF checkpoint",
    "esp": "an image for an ESP chip",
    "tflite": "a TFLite graph",
    "raw": "a plain binary",
}


@dataclass(frozen=True)
class Image:
    """The content of a file."""

    name: str  # as the user wrote it
    data: bytes
    address: int | None = None  # of the first byte, if the file says it (Intel HEX)
    more: tuple[Image, ...] = ()  # what the file has beyond a gap, each with its address (Intel HEX)

    @property
    def runs(self) -> tuple[Image, ...]:
        """The stretches without a gap, in the order of their addresses: what lies between them is not written."""
        return (replace(self, more=()), *self.more)

    def joined(self) -> Image:
        """As one stretch, for a boot loader that takes no other: gaps are filled with 0xFF, as erased flash is.

        Raises:
            ImageError: they would be larger than any flash.
        """
        if not self.more:
            return self
        first, last = self.address or 0, self.more[-1]
        end = (last.address or 0) + len(last.data)
        if end - first > MAX_IMAGE_BYTES:
            raise ImageError(
                f"{self.name} spreads from 0x{first:08x} to 0x{end - 1:08x}; expected one image of at most "
                f"{MAX_IMAGE_BYTES} bytes."
            )
        data = bytearray(b"\xff" * (end - first))
        for run in self.runs:
            start = (run.address or 0) - first
            data[start : start + len(run.data)] = run.data
        return Image(self.name, bytes(data), self.address)


def kind_of(data: bytes) -> str:
    """What a file is by its first bytes: uf2, elf, mcuboot, zip, gguf, esp, tflite or raw."""
    if data[4:8] == b"TFL3":
        return "tflite"
    return next((kind for magic, kind in _MAGIC if data.startswith(magic)), "raw")


def describe(data: bytes) -> str:
    """What a file is, in words: a UF2 file."""
    return _CALLED[kind_of(data)]


def require_kind(image: Image, kinds: tuple[str, ...], board: str) -> str:
    """The kind of an image, which must be one of `kinds`.

    Raises:
        DoesNotFitError: it is of another kind.
    """
    kind = kind_of(image.data)
    if kind not in kinds:
        expected = " or ".join(_CALLED[k].split(" (")[0] for k in kinds)
        raise DoesNotFitError(f"{image.name} is {_CALLED[kind]}; {board} needs {expected}.")
    return kind


def read_firmware(path: Path) -> Image:
    """Read a .bin, .uf2 or .hex file.

    Raises:
        ConfigurationError: it cannot be read.
        ImageError: it is empty, too large, or damaged Intel HEX.
        ImportError: it is Intel HEX, and the extra `flash` is not installed.
    """
    data = read_file(path)
    if path.suffix.lower() in (".hex", ".ihex"):
        first, *more = _from_hex(path, data)
        return replace(first, more=tuple(more))
    return Image(str(path), data)


def read_file(path: Path) -> bytes:
    """The bytes of a file that may be flashed.

    Raises:
        ConfigurationError: it cannot be read.
        ImageError: it is empty or too large.
    """
    try:
        size = path.stat().st_size
        if size <= MAX_IMAGE_BYTES:
            data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    if size > MAX_IMAGE_BYTES:
        raise ImageError(f"{path} has {size} bytes; expected at most {MAX_IMAGE_BYTES}.")
    if not data:
        raise ImageError(f"{path} is empty; expected an image.")
    return data


def _from_hex(path: Path, data: bytes) -> list[Image]:
    """The stretches of an Intel HEX file, each with its address."""
    from intelhex import IntelHex, IntelHexError

    content = IntelHex()
    try:
        content.loadhex(io.StringIO(data.decode("ascii")))
    except (IntelHexError, UnicodeDecodeError) as error:
        raise ImageError(f"{path} is not Intel HEX: {error}") from None
    runs = [
        Image(str(path), content.tobinstr(start=first, size=end - first), first) for first, end in content.segments()
    ]
    if not runs:
        raise ImageError(f"{path} has no data; expected an image.")
    return runs
