"""A board that `device init` has set up, as the commands after it see it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from device_runtime.device.watchdog import CONNECTING
from device_runtime.errors import ConfigurationError, UnreachableError, UpdateError
from device_runtime.fleet import yaml_schema
from device_runtime.fleet.file import FLEET, Fleet, check_fleet
from toolkit.device.layout import SERVICE, USER, Layout
from toolkit.device.record import Record
from toolkit.device.slot_state import SlotState
from toolkit.ssh.ssh import Remote, last_words

__all__ = ["BoardDevice", "error_fields", "restart_by_command", "restart_unit", "slot_state"]

_SHOW = """
systemctl show "$1" -p ActiveState -p SubState -p Result -p StatusText -p NRestarts -p ActiveEnterTimestamp \
    -p WatchdogUSec -p Job
"""
# Its words go to a file: the command must not end half-way because nobody listens to it any more.
_BY_COMMAND = """
said=$(mktemp)
sh -c "$1" > "$said" 2>&1
code=$?
cat "$said" >&2
rm -f "$said"
exit $code
"""
LOOK_S = 0.5  # between looks at a unit that starts
BROKER_S = 60.0  # that a service may look for its broker before the operator is informed
_KEYS = 'find "$1" -name "*.pub"'


class BoardDevice:
    """A connection, and what is at its other end."""

    def __init__(self, remote: Remote, root: str) -> None:
        """Find what `device init` has made.

        Raises:
            ConfigurationError: nothing, or by a newer stonechat.
        """
        self.remote = remote
        uid, *words = remote.check("id -u; command -v sudo >/dev/null && echo sudo || true").split()
        remote.sudo = uid != "0" and bool(words)
        layout = Layout(root)
        done = remote.run('cat "$1"', layout.record, as_root=remote.sudo and self._may_sudo())
        if "Permission denied" in done.err:
            raise ConfigurationError(
                f"{remote.target} may not read {layout.record}; allow it sudo without a password, or connect as root."
            )
        if done.code:
            raise ConfigurationError(
                f"{remote.target} has no {layout.record}; set it up with `stonechat device init {remote.target}` first "
                "(--root, if it has another folder)."
            )
        try:
            self.record = Record.from_json(done.out)
        except ValueError as error:
            raise ConfigurationError(
                f"{remote.target}:{layout.record} cannot be used: {error}; run `stonechat device init` again."
            ) from None
        self.layout = Layout(root, self.record.prefix)
        if not self.systemd:
            remote.sudo = False
        elif remote.sudo and not self._may_sudo():
            raise ConfigurationError(
                f"{remote.target} may not use sudo without a password; allow it, or connect as root."
            )

    @property
    def systemd(self) -> bool:
        """Whether systemd runs the service."""
        return self.record.service == "systemd"

    @property
    def restartable(self) -> bool:
        """Whether we can restart the service."""
        return self.systemd or self.record.restart is not None

    @property
    def user(self) -> str | None:
        """Whose the models are; None is the one that we are there."""
        return USER if self.systemd else None

    def stonechat(self, *arguments: str) -> tuple[int, str, str]:
        """Run the board's own stonechat, as the user of the service."""
        script = 'cd "$1" && STONECHAT_CACHE="$1/state/cache" && export STONECHAT_CACHE && shift && exec "$@"'
        done = self.remote.run(script, self.layout.root, self.layout.command, *arguments, user=self.user)
        return done.code, done.out, done.err

    def keys_flag(self) -> list[str]:
        """The keys whose bundles the board takes, as a flag for its stonechat; empty where it has none."""
        found = self.remote.check(_KEYS, self.layout.keys, user=self.user)
        return ["--keys", self.layout.keys] if found.strip() else []

    def unit(self) -> dict[str, str]:
        """What systemd says of the service; empty without it."""
        return _unit(self.remote) if self.systemd else {}

    def restart(self, say: Callable[[str], None]) -> str | None:
        """Start the service again and wait until it is ready. Once begun, it goes on without us.

        Args:
            say: is called with what the service does meanwhile.

        Returns:
            None, or why it is not ready.

        Raises:
            UnreachableError: its broker does not answer; it goes on trying. Or the connection to the board broke.
        """
        if self.systemd:
            return restart_unit(self.remote, say)
        assert self.record.restart is not None
        return restart_by_command(self.remote, self.record.restart)

    def plan(self) -> Fleet:
        """Its fleet file.

        Raises:
            ConfigurationError: it is faulty, with every fault and its place there.
        """
        text = self.remote.check('cat "$1"', self.layout.fleet, user=self.user)
        return yaml_schema.loads(text, FLEET, check_fleet, file=f"{self.remote.target}:{self.layout.fleet}")

    def _may_sudo(self) -> bool:
        return self.remote.run("sudo -n true").code == 0

    def slots(self, model: str) -> SlotState | None:
        """What `stonechat slots show` prints of a model; None where there is no bundle yet."""
        code, out, _ = self.stonechat("slots", "show", self.layout.slots(model), "--json")
        return slot_state(out) if code == 0 else None


def slot_state(out: str) -> SlotState | None:
    """What a `stonechat slots` on a board has printed, in the last line of its output; None if it is something else."""
    try:
        found = json.loads(out.strip().splitlines()[-1])
        return SlotState.from_fields(found) if isinstance(found, dict) else None
    except (ValueError, IndexError, UpdateError):
        return None


def error_fields(out: str) -> dict[str, Any]:
    """The error that a `stonechat … --json` on a board has printed; empty if it is something else."""
    try:
        return dict(json.loads(out.strip().splitlines()[-1])["error"])
    except (ValueError, IndexError, KeyError, TypeError):
        return {}


def restart_unit(remote: Remote, say: Callable[[str], None]) -> str | None:
    """Have systemd restart the service; as `BoardDevice.restart`."""
    remote.check('systemctl --no-block restart "$1"', SERVICE, as_root=True)
    say("systemd finishes the restart even if this connection drops …")
    reported, since_s = "", time.monotonic()
    while (unit := _unit(remote)).get("Job", "0") not in ("", "0"):
        text = unit.get("StatusText", "")
        if text != reported:
            reported, since_s = text, time.monotonic()
            if text and unit.get("ActiveState") == "activating":  # else it is the last word of the one that ends
                say(f"{text} …")
        if text.startswith(CONNECTING) and time.monotonic() - since_s > BROKER_S:
            raise UnreachableError(
                f"the service of {remote.target} does not reach its broker ({text}). It goes on trying; see "
                "`stonechat device doctor`."
            )
        time.sleep(LOOK_S)
    if unit.get("ActiveState") == "active":
        return None
    # What the service itself has said last; systemd speaks of it too.
    last = remote.run('journalctl "_SYSTEMD_UNIT=$1" -n 1 -o cat --no-pager', SERVICE, as_root=True).out
    return last_words(last) or unit.get("Result") or "no reason given"


def restart_by_command(remote: Remote, command: str) -> str | None:
    """Have another service manager restart it; as `BoardDevice.restart`."""
    done = remote.run(_BY_COMMAND, command)
    return (last_words(done.err) or f"the command ends with {done.code}") if done.code else None


def _unit(remote: Remote) -> dict[str, str]:
    lines = remote.check(_SHOW, SERVICE).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)
