"""The serial port of a board: found by the USB ids of its board file, held while it is flashed, and what to say when it
cannot be opened.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import urllib.parse
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from boards import Board
from device_runtime.errors import ConfigurationError, UnreachableError
from device_runtime.machine.process_lock import process_lock
from device_runtime.machine.state_home import state_home

__all__ = ["claim", "find_port", "held_port", "silent"]


class _Port(Protocol):
    """What pyserial knows of a port."""

    device: str
    vid: int | None
    pid: int | None
    description: str


@contextmanager
def held_port(board: Board, port: str | None) -> Iterator[str]:
    """The port to flash through: the one that was asked for, or the one that `find_port` finds. It can be opened.

    While this lasts no other flashing of this user on this machine gets it: the methods open and close it between their
    requests, and another one in between would upload into the same slot.

    Raises:
        ConfigurationError: there is no such port, it may not be opened, or several boards are plugged in.
        UnreachableError: no board is plugged in, or the port is in use.
    """
    if port is None:
        port = find_port(board)
    claim(port)
    with _alone_on(port):
        yield port


def _alone_on(port: str) -> ExitStack:
    real = port if "://" in port else os.path.realpath(port)
    held = ExitStack()
    try:
        folder = state_home() / "stonechat" / "ports"
        folder.mkdir(parents=True, exist_ok=True)
        locked = process_lock(
            folder / f"{urllib.parse.quote(real, safe='')}.lock",
            unwritable=OSError,
            taken=lambda pid: UnreachableError(
                f"{port} is being flashed by another program (process {pid}). Nothing was written. Wait until it has "
                "ended, and try again."
            ),
        )
        held.enter_context(locked)
    except UnreachableError:
        raise
    except (OSError, RuntimeError):
        pass  # a service without a home: nobody but it flashes there
    return held


def find_port(board: Board, ports: Iterable[_Port] | None = None) -> str:
    """The one serial port whose USB id is among the board's.

    Args:
        ports: those to choose from; None: those of this machine.

    Raises:
        ConfigurationError: several fit.
        UnreachableError: none fits; the message lists what is there.
    """
    if ports is None:
        from serial.tools import list_ports

        ports = list_ports.comports()
    there = sorted((port for port in ports if port.vid is not None), key=lambda port: port.device)
    wanted = (*board.detect.usb, *board.detect.boot_usb)
    fitting = [port for port in there if _usb_id(port) in wanted]
    if len(fitting) == 1:
        return fitting[0].device
    if fitting:
        raise ConfigurationError(
            f"Several ports could be that of {board.name}:\n{_list(fitting)}\nChoose one with --port, or unplug the "
            "other boards. (Some debuggers have several ports; if one does not answer, try the next.)"
        )
    found = f"found:\n{_list(there)}" if there else "found no USB serial port at all."
    nowhere = "its board file gives no USB id, because it is flashed through a serial adapter of your own"
    expected = f"expected the USB id {' or '.join(wanted)}" if wanted else nowhere
    raise UnreachableError(
        f"No port of {board.name}: {expected}; {found}\nPlug the board in, or name its port with --port."
        + (f" If it does not show up: {board.flash.boot_loader}." if board.flash.boot_loader else "")
    )


def claim(port: str) -> None:
    """Check that a port can be opened, and that nobody else has it.

    Raises:
        ConfigurationError: there is no such port, it is no port, or this user may not open it.
        UnreachableError: another program has it open.
    """
    if "://" in port:  # socket:// and rfc2217:// are opened when they are used
        _require_address(port)
        return
    try:
        if not stat.S_ISCHR(os.stat(port).st_mode):
            raise ConfigurationError(f"{port} is not a serial port; expected one such as /dev/ttyACM0.")
        descriptor = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        raise _refusal(port, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise _refusal(port, error) from None
    finally:
        os.close(descriptor)


def silent(board: Board, port: str, what: str) -> UnreachableError:
    """What to say when a board does not answer; `what` names what was tried."""
    button = board.flash.boot_loader
    by_hand = "Check"
    if button:
        by_hand = f"Bring it into its boot loader by hand: {button}; then try again. If that does not help, check"
    where = (
        f"that something serves {port}, and that no other program (a bridge, a chat) is connected to it: a line has "
        "one at a time."
        if "://" in port
        else "the cable (some only charge) and --port."
    )
    return UnreachableError(f"{board.name} does not answer on {port} ({what}). {by_hand} {where}")


def _require_address(port: str) -> None:
    try:
        where = urllib.parse.urlsplit(port)
        whole = bool(where.hostname and where.port)
    except ValueError:  # a port that is no number, or beyond 65535
        whole = False
    if not whole:
        raise ConfigurationError(f"{port} is no address; expected one such as {port.split(':')[0]}://127.0.0.1:7333.")


def _refusal(port: str, error: OSError) -> Exception:
    if error.errno == errno.ENOENT:
        return ConfigurationError(f"There is no port {port}; plug the board in, or give another --port.")
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigurationError(
            f"You may not open {port}; run `sudo usermod -aG dialout $USER` (uucp on Arch), then log in again."
        )
    if error.errno in (errno.EBUSY, errno.EWOULDBLOCK):
        return UnreachableError(f"{port} is in use by another program; close it (a serial monitor?) and try again.")
    return UnreachableError(f"{port} cannot be opened: {error.strerror}.")


def _usb_id(port: _Port) -> str:
    return f"{port.vid:04x}:{port.pid:04x}"


def _list(ports: Iterable[Any]) -> str:
    return "\n".join(f"  {port.device}  {_usb_id(port)}  {port.description}" for port in ports)
