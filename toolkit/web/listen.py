"""Where a server listens, and who may come in."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Listen", "is_loopback"]


@dataclass(frozen=True)
class Listen:
    """One address, and what is asked of those who come."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: any that is free
    token: str | None = None  # None: nothing is asked; on loopback only
    certificate: Path | None = None  # PEM, with its chain; None: no TLS
    key: Path | None = None  # PEM
    origins: tuple[str, ...] = ()  # other sites whose pages may ask, as `https://chat.local`

    @property
    def loopback(self) -> bool:
        """Whether only this machine can come in."""
        return is_loopback(self.host)

    def url(self, port: int) -> str:
        """As a person types it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else host
        return f"{'https' if self.certificate else 'http'}://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, and no other machine can reach it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
