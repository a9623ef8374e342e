"""What a device asks of a bundle whose signature is good, before it installs it: the counter, the board, the date.

An expiry date says until when a bundle may be installed. What is installed already goes on running: a device that
stopped at a date, or because its clock is wrong, would be a bricked one.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from device_runtime.bundle.manifest import Manifest, utc_time
from device_runtime.errors import DoesNotFitError, SignatureError

__all__ = [
    "CLOCK_FLOOR",
    "check_admission",
    "check_board",
    "check_counter",
    "check_expiry",
    "warn_if_expired",
]

log = logging.getLogger("stonechat")

CLOCK_FLOOR = datetime(2025, 1, 1, tzinfo=UTC)  # stonechat is younger than this; an earlier clock was never set


def check_admission(
    manifest: Manifest, *, security_counter: int = 0, board: str | None = None, now: datetime | None = None
) -> None:
    """Raise unless this device may install the bundle. The signature has been verified before.

    Args:
        security_counter: the highest that the device has confirmed.
        board: the id of the device's board; None where it does not know, and then any will do.
        now: the device's clock; None reads it.

    Raises:
        SignatureError: downgraded or expired, or the clock does not know.
        DoesNotFitError: it is meant for other boards.
        BundleError: only an earlier stonechat runs it.
    """
    manifest.require_present_graph()
    check_counter(manifest, security_counter)
    check_expiry(manifest, now)
    check_board(manifest, board)


def check_counter(manifest: Manifest, security_counter: int) -> None:
    """Raise a `SignatureError` if the bundle is older than what the device has confirmed."""
    if manifest.security_counter < security_counter:
        raise SignatureError(
            f"{manifest.name} {manifest.version} has the security counter {manifest.security_counter}; this device has "
            f"confirmed {security_counter} and does not go back. Pack it with --security-counter {security_counter} "
            "or more if it is meant to replace what runs there."
        )


def check_expiry(manifest: Manifest, now: datetime | None = None) -> None:
    """Raise a `SignatureError` if the bundle has expired, or has a date and the clock was never set."""
    if manifest.expires is None:
        return
    now = now or datetime.now(UTC)
    issued = utc_time(manifest.issued) if manifest.issued else CLOCK_FLOOR
    if now < max(issued, CLOCK_FLOOR):
        raise SignatureError(
            f"The clock says {_short(now)}, which is before the bundle was made ({_short(max(issued, CLOCK_FLOOR))}), "
            f"so it is unknown whether it has expired ({manifest.expires}). Set the clock and try again."
        )
    if now >= utc_time(manifest.expires):
        raise SignatureError(
            f"{manifest.name} {manifest.version} has expired: it was good until {manifest.expires}, and the clock "
            f"says {_short(now)}. Pack and sign it again with a later --expires."
        )


def warn_if_expired(manifest: Manifest, now: datetime | None = None) -> None:
    """Say that what is installed has expired; it goes on running."""
    now = now or datetime.now(UTC)
    if manifest.expires is not None and now >= utc_time(manifest.expires):
        log.warning("%s %s was to be replaced by %s; it goes on", manifest.name, manifest.version, manifest.expires)


def check_board(manifest: Manifest, board: str | None) -> None:
    """Raise a `DoesNotFitError` if the bundle is meant for other boards than `board`."""
    if board is not None and manifest.boards and board not in manifest.boards:
        raise DoesNotFitError(
            f"{manifest.name} {manifest.version} is meant for {', '.join(manifest.boards)}, and this is {board}. "
            f"Pack one with --board {board}."
        )


def _short(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
