"""What a service says of the hardware that its model runs on: this machine, or a microcontroller on a bridge."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Hardware", "ThisMachine"]


class Hardware(Protocol):
    """The seam; `device_runtime.bridge.model.SerialModel` fits it too."""

    @property
    def trouble(self) -> str:
        """Why the model cannot be asked now; empty when it can. While it cannot, the device's state is `lost`."""

    def info(self) -> dict[str, Any]:
        """Fields of `Info`."""

    def health(self) -> dict[str, Any]:
        """Fields of `out/health` in place of this machine's; None leaves one out."""


class ThisMachine:
    """The model runs here."""

    trouble = ""

    def info(self) -> dict[str, Any]:
        """Fields of `Info`."""
        return {"board": _board(), "capabilities": ("generate", "stream", "cancel", "schema", "links")}

    def health(self) -> dict[str, Any]:
        """Nothing to put in place of this machine's figures."""
        return {}


def _board() -> str:
    try:
        return Path("/proc/device-tree/model").read_text(encoding="utf-8").rstrip("\0\n")
    except (OSError, UnicodeDecodeError):
        return f"{platform.system()} {platform.machine()}"
