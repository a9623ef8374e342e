"""What `device init` is to set up, and the files that the board gets for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from boards.board import Board
from device_runtime.errors import ConfigurationError
from device_runtime.fleet import file as fleet
from device_runtime.mqtt.address import read_password
from toolkit.device.layout import Layout
from toolkit.ssh.fleet_file import fleet_for_board

__all__ = ["Plan", "files_of"]


@dataclass(frozen=True)
class Plan:
    """What to set up."""

    device: str  # an id of the fleet file
    fleet: Path
    layout: Layout
    keys: Path | None = None  # a folder with public keys
    certs: Path | None = None  # a folder with ca.crt, and DEVICE.crt and DEVICE.key, or DEVICE.password
    wheelhouse: Path | None = None  # wheels of the dependencies, for boards without a package index
    service: str = "systemd"  # or none
    restart: str | None = None  # without systemd: the command that starts the service again
    board: Board | None = None  # found out when None
    board_file: Path | None = None  # of a board that does not come with stonechat


def files_of(plan: Plan, parsed: fleet.Fleet) -> dict[str, tuple[str | bytes, str]]:
    """path on the board -> content, mode. Read before the connection: what is missing here shows first.

    Raises:
        ConfigurationError: a file is missing, or the fleet file does not go with the flags.
    """
    layout = plan.layout
    files: dict[str, tuple[str | bytes, str]] = {layout.fleet: (fleet_for_board(plan.fleet), "640")}
    files |= {f"{layout.certs}/{name}": content for name, content in _credentials(plan, parsed.broker).items()}
    folder = plan.keys or parsed.keys_folder()
    if folder is not None:
        keys = sorted(folder.glob("*.pub"))
        if not keys:
            raise ConfigurationError(f"{folder} has no public keys (*.pub); make one with `stonechat key new`.")
        for key in [*keys, *sorted(folder.glob("retired/*.pub"))]:
            files[f"{layout.keys}/{key.relative_to(folder).as_posix()}"] = (key.read_bytes(), "644")
    if plan.board is not None and plan.board_file is not None:
        files[layout.board_file(plan.board.id)] = (plan.board_file.read_bytes(), "644")
    return files


def _credentials(plan: Plan, broker: fleet.Broker) -> dict[str, tuple[bytes, str]]:
    """By which device and broker know each other: name -> content, mode."""
    if plan.certs is not None and broker.certs is None and broker.password_file is None:
        raise ConfigurationError(
            f"{plan.fleet} names no certificates, so that --certs would have no use; add `certs: certs` to its broker."
        )
    found: dict[str, tuple[bytes, str]] = {}
    if broker.password_file is not None:
        password = read_password(plan.certs or _beside(plan, broker.password_file), plan.device)
        found[f"{plan.device}.password"] = (f"{password}\n".encode(), "600")
    if broker.certs is not None:
        folder = plan.certs or _beside(plan, broker.certs)
        own = [f"{plan.device}.crt", f"{plan.device}.key"]
        if found and not (folder / own[0]).is_file():
            own = []  # the password is enough
        for name in ("ca.crt", *own):
            try:
                found[name] = ((folder / name).read_bytes(), "640")
            except OSError as error:
                raise ConfigurationError(
                    f"{folder / name} cannot be read ({error.strerror}); make it with `stonechat broker init "
                    f"{folder} --device {plan.device}`, or name the folder with --certs."
                ) from None
    return found


def _beside(plan: Plan, path: str) -> Path:
    return (plan.fleet.parent / fleet.expand(path)).resolve()
