"""This stonechat as a wheel, made from its files on this machine.

The same code path for a checkout and for an installed package, with no build tool: boards get what runs here. The
form is that of the binary distribution format (packaging.python.org); equal files give equal bytes, so that a board
knows by the name of its environment whether it has them.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import boards
import converters
import device_runtime
import stonechat
import toolkit
from device_runtime.errors import ConfigurationError

__all__ = ["Wheel", "write_wheel"]

_PACKAGES = (boards, converters, device_runtime, stonechat, toolkit)
_WHEEL = "Wheel-Version: 1.0\nGenerator: stonechat\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_THEN = (1980, 1, 1, 0, 0, 0)  # zip's first day


@dataclass(frozen=True)
class Wheel:
    """A wheel file."""

    path: Path
    version: str
    sha256: str


def write_wheel(folder: Path) -> Wheel:
    """Write stonechat-VERSION-py3-none-any.whl.

    Raises:
        ConfigurationError: stonechat is not installed here, so that its dependencies are not known.
    """
    # A checkout has a folder stonechat.egg-info beside the packages too, which does not say all.
    found = (dist for dist in metadata.distributions(name="stonechat") if dist.read_text("METADATA"))
    if (installed := next(found, None)) is None:
        raise ConfigurationError("stonechat is not installed in this Python; run `pip install -e .` first.")
    version = device_runtime.__version__
    if installed.version != version:
        raise ConfigurationError(
            f"This is stonechat {version}, installed as {installed.version}; run `pip install -e .` again."
        )
    info = f"stonechat-{version}.dist-info"
    contents: dict[str, bytes] = {}
    for package in _PACKAGES:
        home = Path(package.__path__[0])
        for path in sorted(home.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                contents[f"{home.name}/{path.relative_to(home).as_posix()}"] = path.read_bytes()
    for name in ("METADATA", "entry_points.txt"):
        contents[f"{info}/{name}"] = (installed.read_text(name) or "").encode()
    contents[f"{info}/WHEEL"] = _WHEEL.encode()
    lines = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()

    path = folder / f"stonechat-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, _THEN)
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return Wheel(path, version, hashlib.sha256(path.read_bytes()).hexdigest())


def _digest(data: bytes) -> str:
    """As RECORD has it."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
