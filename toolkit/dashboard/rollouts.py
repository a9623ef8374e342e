"""Roll-outs on the page: those that this machine's user has begun.

Pausing and aborting is a word to the process that carries one out, or a note in its file. Going on needs an
operator's rights at the broker: a process of its own does it, by the operator's name that the dashboard was started
with. No key comes near the page.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from device_runtime.errors import ConfigurationError, RefusedError, StonechatError
from toolkit.rollout.control import fields_of, hold, is_paused, require_open
from toolkit.rollout.files import RolloutFiles, default_folder, writing
from toolkit.rollout.rollout import DevicePhase

__all__ = ["Rollouts"]

SHOWN = 20  # the newest
LOOK_S = 1.0


class Rollouts:
    """The roll-outs of this user. May be used from any thread."""

    def __init__(self, operator: tuple[str, ...] | None) -> None:
        """`operator`: flags of `stonechat rollout resume` that say who orders; None: nobody, from here."""
        self._files = RolloutFiles(default_folder())
        self._operator = operator
        self._running: dict[str, tuple[subprocess.Popen[bytes], int]] = {}  # and how long its log was before
        self._ended: dict[str, tuple[int, dict[str, Any]]] = {}  # those that change no more, and their files' times
        self._stop = threading.Event()

    def watch(self, on_change: Callable[[list[dict[str, Any]]], None]) -> None:
        """Call with all roll-outs, now and once a second, from a thread of its own."""

        def look() -> None:
            while True:
                on_change(self.all())
                if self._stop.wait(LOOK_S):
                    return

        threading.Thread(target=look, name="stonechat-rollouts", daemon=True).start()

    def close(self) -> None:
        """Look no more. What was resumed goes on."""
        self._stop.set()

    def all(self) -> list[dict[str, Any]]:
        """The newest first."""
        found = []
        for rollout_id in reversed(self._files.ids()[-SHOWN:]):
            try:
                found.append(self._fields(rollout_id))
            except StonechatError as error:
                found.append({"id": rollout_id, "error": str(error)})
        return found

    def act(self, rollout_id: str, action: str) -> dict[str, Any]:
        """Pause, resume or abort one.

        Raises:
            RefusedError: no such action, or nobody here may order updates.
            ConfigurationError: there is no such roll-out, or it has ended.
            UnreachableError: the process that carries it out does not answer.
            DiskFullError: the disk is full. The roll-out is as it was.
        """
        if action == "pause":
            hold(self._files, rollout_id, "pause")
        elif action == "abort":
            hold(self._files, rollout_id, "abort")
        elif action == "resume":
            self._resume(rollout_id)
        else:
            raise RefusedError(f"found {action[:40]!r}; expected pause, resume or abort.", status=404)
        return self._fields(rollout_id)

    def _resume(self, rollout_id: str) -> None:
        require_open(rollout := self._files.read(rollout_id))
        if self._operator is None:
            raise RefusedError(
                "this dashboard has no operator's rights at the broker. Start it with --operator NAME, or go on in a "
                f"terminal: stonechat rollout resume {rollout_id}",
                status=403, reason="no_operator",
            )  # fmt: skip
        if self._files.is_carried_out(rollout_id):
            raise ConfigurationError(f"Roll-out {rollout_id} is being carried out already.")
        self._files.write(rollout)  # what that process begins with; on a full disk it could not even say so in its log
        log = self._log(rollout_id)
        with writing(log):
            output = log.open("ab")
        with output:
            begins = output.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "toolkit", "rollout", "resume", rollout_id, *self._operator],
                stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            self._running[rollout_id] = process, begins

    def _log(self, rollout_id: str) -> Path:
        return self._files.folder / f"{rollout_id}.log"

    def _why_ended(self, rollout_id: str) -> str | None:
        """Why the process that was started from here has ended before its roll-out; None where it has not."""
        process, begins = self._running.get(rollout_id, (None, 0))
        if process is None or process.poll() in (None, 0):
            return None
        log = self._log(rollout_id)
        try:
            said = log.read_bytes()[begins:].decode("utf-8", "replace").strip()
        except OSError:
            said = ""
        why = f": {said.splitlines()[-1]}" if said else ""
        return f"`rollout resume` ended with {process.returncode}{why}; see {log.name} beside its file."

    def _fields(self, rollout_id: str) -> dict[str, Any]:
        path = self._files.folder / f"{rollout_id}.json"
        try:
            changed_ns = path.stat().st_mtime_ns
        except OSError:
            changed_ns = 0  # `read` says what is wrong with it
        known = self._ended.get(rollout_id)
        if known is not None and known[0] == changed_ns:
            return known[1]
        fields = self._read(rollout_id)
        if fields["ended"]:
            self._ended[rollout_id] = changed_ns, fields
        return fields

    def _read(self, rollout_id: str) -> dict[str, Any]:
        rollout = self._files.read(rollout_id)
        fields = fields_of(rollout, self._files)
        if not rollout.ended and (why := self._why_ended(rollout_id)):
            fields["error"] = why
        counts = {phase.value: rollout.count(phase) for phase in DevicePhase}
        return {
            **fields,
            "counts": counts,
            "ended": rollout.ended,
            "paused": is_paused(rollout, self._files),
            "may_resume": self._operator is not None,
            "devices": {
                name: device
                for name, device in fields["devices"].items()
                if device["phase"] in ("failed", "updating") or name in rollout.canaries
            },
        }
