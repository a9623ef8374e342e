"""Where things lie on a board."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from device_runtime.errors import ConfigurationError

__all__ = ["FLEET", "KEYS", "PREFIX", "RECORD", "ROOT", "SERVICE", "USER", "Layout"]

ROOT = "/var/lib/stonechat"
PREFIX = "/opt/stonechat"
USER = "stonechat"
SERVICE = "stonechat.service"
RECORD, KEYS, FLEET = "device.json", "keys", "fleet.yaml"  # in the root
SYSTEM = ("/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/opt", "/proc", "/root", "/run", "/sbin", "/srv",
          "/sys", "/tmp", "/usr", "/usr/local", "/var", "/var/lib")  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """The two folders of a board: its data (`root`) and the program (`prefix`)."""

    root: str = ROOT
    prefix: str = PREFIX

    def __post_init__(self) -> None:
        for flag, path in (("--root", self.root), ("--prefix", self.prefix)):
            parts = PurePosixPath(path)
            if not parts.is_absolute() or ".." in parts.parts or str(parts) in SYSTEM:
                raise ConfigurationError(f"{flag} is {path!r}; expected the absolute path of a folder of its own.")
            if not path.isprintable() or any(c in "\"'\\$:" for c in path):  # systemd and PATH give them meanings
                raise ConfigurationError(f"{flag} is {path!r}; expected no quotes, $, : or \\ in it.")

    @property
    def fleet(self) -> str:
        """The fleet file."""
        return f"{self.root}/{FLEET}"

    @property
    def record(self) -> str:
        """What `device init` notes for the commands that come after it."""
        return f"{self.root}/{RECORD}"

    @property
    def state(self) -> str:
        """What the service writes."""
        return f"{self.root}/state"

    @property
    def certs(self) -> str:
        """Certificates of this device."""
        return f"{self.root}/certs"

    @property
    def keys(self) -> str:
        """Public keys whose bundles are taken."""
        return f"{self.root}/{KEYS}"

    @property
    def incoming(self) -> str:
        """Files that are being copied."""
        return f"{self.root}/incoming"

    def board_file(self, board: str) -> str:
        """A board file that does not come with stonechat."""
        return f"{self.root}/{board}.yaml"

    def slots(self, model: str) -> str:
        """The slot folder of a model."""
        return f"{self.root}/models/{model}"

    @property
    def venv(self) -> str:
        """A link to the virtual environment in use."""
        return f"{self.prefix}/venv"

    @property
    def command(self) -> str:
        """The program."""
        return f"{self.venv}/bin/stonechat"

    def serve(self, device: str) -> list[str]:
        """The command line of the service."""
        return [self.command, "serve", self.fleet, "--device", device, "--state-dir", self.state]
