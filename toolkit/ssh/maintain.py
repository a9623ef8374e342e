"""Status, logs, doctor and rollback of a board, over SSH."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from device_runtime.errors import ConfigurationError, RolledBackError
from device_runtime.records.printable import counted
from device_runtime.update.state import Last
from toolkit.device.layout import SERVICE
from toolkit.device.slot_state import SlotState
from toolkit.doctor import Finding, Level
from toolkit.ssh.deploy import error_of
from toolkit.ssh.device import BoardDevice, error_fields, slot_state
from toolkit.ssh.ssh import RemoteError

__all__ = ["Status", "doctor", "logs", "rollback", "status"]

_JOURNAL = 'unit=$1 lines=$2; shift 2; exec journalctl -u "$unit" -n "$lines" --no-pager -o short-iso "$@"'
_FILE = 'log=$1 lines=$2; shift 2; exec tail -n "$lines" "$@" "$log"'


@dataclass(frozen=True)
class Status:
    """What a board says of itself."""

    device: str
    target: str
    board: str | None
    version: str | None  # of stonechat there; None where it does not start
    service: dict[str, str]  # what systemd says of the unit; empty without systemd
    models: dict[str, SlotState | None]  # None where there is no bundle

    def to_fields(self) -> dict[str, Any]:
        """For --json."""
        models = {name: slots.to_fields() if slots else None for name, slots in self.models.items()}
        return vars(self) | {"models": models}

    def rows(self) -> list[tuple[str, str]]:
        """For a person: what, and how it is."""
        rows = [
            ("device", f"{self.device} at {self.target}"),
            ("board", self.board or "not known"),
            ("stonechat", self.version or "does not start; run `stonechat device init` again"),
            ("service", self._service()),
        ]
        for name, slots in self.models.items():
            if slots is None:
                rows.append((f"model {name}", "no bundle yet"))
                continue
            text = f"version {slots.version(slots.active)}, slot {slots.active}" if slots.active else "none runs"
            if slots.previous:
                text += f"; version {slots.version(slots.previous)} in slot {slots.previous} to go back to"
            rows.append((f"model {name}", text))
            if slots.last:
                rows.append(("last update", _last(slots.last)))
        return rows

    def _service(self) -> str:
        if not self.service:
            return "no systemd; started by somebody else"
        s = self.service
        words = [f"{s.get('ActiveState', '?')} ({s.get('SubState', '?')})"]
        if since := s.get("ActiveEnterTimestamp"):
            words.append(f"since {since}" if s.get("ActiveState") == "active" else f"last active {since}")
        words.append(f"restarted {counted(s.get('NRestarts', '?'), 'time')}")
        if text := s.get("StatusText"):
            words.append(text)
        return ", ".join(words)


def status(board: BoardDevice) -> Status:
    """Ask for all of it."""
    record = board.record
    code, out, _ = board.stonechat("--version")
    version = out.split()[-1] if code == 0 and out.split() else None
    plan = board.plan()
    own = plan.devices[record.device].models if record.device in plan.devices else ()
    models = {name: board.slots(name) for name in plan.models}
    models = {name: slots for name, slots in models.items() if slots is not None or name in own}
    return Status(record.device, str(board.remote.target), record.board, version, board.unit(), models)


def logs(board: BoardDevice, lines: int, follow: bool) -> int:
    """Print what the service has said; returns the exit code."""
    if board.systemd:
        return board.remote.stream(_JOURNAL, SERVICE, str(lines), *(["-f"] if follow else []), as_root=True)
    log = f"{board.layout.state}/serve.log"
    if board.remote.run('[ -f "$1" ]', log).code:
        raise ConfigurationError(
            f"{board.remote.target} has no {log}; have what starts the service append its stderr to this file."
        )
    return board.remote.stream(_FILE, log, str(lines), *(["-f"] if follow else []))


def doctor(board: BoardDevice) -> list[Finding]:
    """What `stonechat doctor` finds there, and what only an outsider sees."""
    words = ["doctor", "--fleet", board.layout.fleet, "--device", board.record.device, "--json"]
    if board.record.board:
        words += ["--board", board.record.board]
    code, out, err = board.stonechat(*words)
    try:
        found = [Finding(f["what"], Level(f["level"]), f["found"], f.get("next")) for f in json.loads(out)["findings"]]
    except (ValueError, KeyError, TypeError):
        return [_not_examined(board, code, out, err)]
    return found


def _not_examined(board: BoardDevice, code: int, out: str, err: str) -> Finding:
    """In place of the findings of a board whose `stonechat doctor` has printed none."""
    again = f"stonechat device init {board.remote.target} … makes its environment and its files again"
    if message := error_fields(out).get("message"):  # such as of its fleet file
        return Finding("program", Level.FAIL, str(message), again)
    if code in (0, 1) and out.startswith("{"):
        return Finding(
            "program", Level.FAIL, "its stonechat found what this one does not know: another version?", again
        )
    reason = (err or out).strip().splitlines()[-1:] or [f"it ends with {code}"]
    return Finding("program", Level.FAIL, f"stonechat does not start there: {reason[0]}", again)


def rollback(board: BoardDevice, model: str, say: Callable[[str], None]) -> SlotState:
    """Go back to the bundle before, and run it.

    Raises:
        StonechatError: there is none.
        RolledBackError: there is, but the service does not start with it.
    """
    code, out, err = board.stonechat("slots", "rollback", board.layout.slots(model), "--json", *board.keys_flag())
    state = slot_state(out)
    if code:
        fault = error_fields(out)
        raise error_of(code, str(fault.get("code")), f"{board.record.device}: {fault.get('message') or err.strip()}")
    if state is None:
        raise RemoteError(f"{board.record.device}: `stonechat slots rollback` printed no state: {out.strip()[:200]!r}")
    if board.restartable and (reason := board.restart(say)) is not None:
        raise RolledBackError(
            f"{board.record.device} is back at the bundle before, but its service does not start ({reason}); see "
            f"`stonechat device logs {shlex.quote(str(board.remote.target))}`."
        )
    return state


def _last(last: Last) -> str:
    words = f"version {last.version} {last.outcome.replace('_', ' ')}"
    return f"{words}: {last.reason}" if last.reason else words
