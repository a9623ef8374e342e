"""What `device init` is to set up, and the files that the board gets for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from boards.board import Board
from device_runtime.errors import ConfigurationError
from device_runtime.mqtt import fleet
from toolkit.deploy.fleet_file import fleet_for_board
from toolkit.deploy.layout import Layout

__all__ = ["Plan", "files_of"]


@dataclass(frozen=True)
class Plan:
    """What to set up."""

    device: str  # an id of the fleet file
    fleet: Path
    layout: Layout
    keys: Path | None = None  # a folder with public keys
    certs: Path | None = None  # a folder with ca.crt, DEVICE.crt and DEVICE.key
    wheelhouse: Path | None = None  # wheels of the dependencies, for boards without a package index
    service: str = "systemd"  # or none
    restart: str | None = None  # without systemd: the command that starts the service anew
    board: Board | None = None  # found out when None


def files_of(plan: Plan, parsed: fleet.Fleet) -> dict[str, tuple[str | bytes, str]]:
    """path on the board -> content, mode. Read before the connection: what is missing here shows first.

    Raises:
        ConfigurationError: a file is missing, or the fleet file does not go with the flags.
    """
    layout = plan.layout
    files: dict[str, tuple[str | bytes, str]] = {layout.fleet: (fleet_for_board(plan.fleet), "640")}
    if parsed.broker.certs is not None or plan.certs is not None:
        folder = plan.certs or (plan.fleet.parent / fleet.expand(parsed.broker.certs or "")).resolve()
        if parsed.broker.certs is None:
            raise ConfigurationError(
                f"{plan.fleet} names no certificates, so that --certs would have no use; add `certs: certs` to "
                "its broker."
            )
        for name in ("ca.crt", f"{plan.device}.crt", f"{plan.device}.key"):
            try:
                files[f"{layout.certs}/{name}"] = ((folder / name).read_bytes(), "640")
            except OSError as error:
                raise ConfigurationError(
                    f"{folder / name} cannot be read ({error.strerror}); make it with `stonechat broker init "
                    f"{folder} --device {plan.device}`, or name the folder with --certs."
                ) from None
    if plan.keys is not None:
        keys = sorted(plan.keys.glob("*.pub"))
        if not keys:
            raise ConfigurationError(f"{plan.keys} has no public keys (*.pub); make one with `stonechat key new`.")
        for key in [*keys, *sorted(plan.keys.glob("retired/*.pub"))]:
            files[f"{layout.keys}/{key.relative_to(plan.keys).as_posix()}"] = (key.read_bytes(), "644")
    return files
