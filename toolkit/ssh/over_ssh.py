"""Deployment over SSH, to a board that `device init` has set up."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from typing import NoReturn

from device_runtime.errors import ConfigurationError, RolledBackError, UnreachableError
from device_runtime.machine.disk import disk_full
from device_runtime.update.state import ATTEMPTS, TrialLimits
from toolkit.device.slot_state import SlotState
from toolkit.ssh.copy import copy_file
from toolkit.ssh.deploy import Outgoing, error_of
from toolkit.ssh.device import BoardDevice, error_fields, slot_state
from toolkit.ssh.ssh import RemoteError

__all__ = ["OverSsh"]

# Every file of both slots, as "sha256 path": manifests say it, and the trial checks it.
_MANIFESTS = """
for slot in a b; do
    [ ! -f "$1/$slot/manifest.json" ] || { echo "$slot"; tr -d '\\n' < "$1/$slot/manifest.json"; echo; }
done
"""
# Files that nobody will go on with: those of other bundles. $3 … are the hashes of this one's.
_BEGIN = """
set -eu
umask 022
mkdir -p "$1/$2"
cd "$1"
for other in */; do [ ! -d "$other" ] || [ "$other" = "$2/" ] || rm -rf "$other"; done
shift 2
for part in *.part; do
    wanted=no
    for sha256 in "$@"; do [ "$part" != "$sha256.part" ] || wanted=yes; done
    [ $wanted = yes ] || rm -f "$part"
done
"""
_REUSE = """
set -eu
cd "$1"
[ -f "$3" ] && [ "$(sha256sum "$3" | cut -d' ' -f1)" = "$4" ] && exit 0
[ "$(sha256sum "$2" | cut -d' ' -f1)" = "$4" ] || exit 1
rm -f "$3"
ln "$2" "$3" 2>/dev/null || cp "$2" "$3"
"""
# The line of the disk, then a line for each slot, in KiB (POSIX `df -P`, `du`).
_ROOM = """
df -Pk "$1" | tail -n 1
for slot in a b; do [ ! -d "$2/$slot" ] || du -sk "$2/$slot"; done
"""
_AVAILABLE = re.compile(r"\s\d+\s+\d+\s+(\d+)\s+\d+%")


class OverSsh:
    """A `Transport`."""

    def __init__(self, board: BoardDevice, say: Callable[[str], None]) -> None:
        self._board, self._remote, self._say = board, board.remote, say
        self.device = board.record.device
        self._others: tuple[str, ...] = ()  # models that the device serves besides the chosen one

    def choose_model(self, name: str | None) -> str:
        """As in `Transport`."""
        plan = self._board.plan()
        if self.device not in plan.devices:
            raise ConfigurationError(f"The fleet file of {self._remote.target} has no device {self.device!r} any more.")
        if name is not None and name not in plan.models:
            raise ConfigurationError(
                f"The fleet file of {self._remote.target} has no model {name!r}; it has {', '.join(plan.models)}."
            )
        own = plan.devices[self.device].models
        chosen = name or own[0]
        if chosen not in own:
            raise ConfigurationError(
                f"{self.device} does not serve {chosen!r}; its models are {', '.join(own)}. Change that in the fleet "
                "file, and run `stonechat device init` again."
            )
        self._others = tuple(model for model in own if model != chosen)
        return chosen

    def send(self, bundle: Outgoing, model: str, progress: Callable[[str, float], None]) -> tuple[list[str], int]:
        """As in `Transport`."""
        layout, user = self._board.layout, self._board.user
        slots, folder = layout.slots(model), f"{layout.incoming}/{bundle.id}"
        self._remote.check(_BEGIN, layout.incoming, bundle.id, *bundle.files.values(), user=user)
        have = self._files_there(slots)
        wanted = []
        for name, sha256 in bundle.files.items():
            known = have.get(sha256)
            if known is None or self._remote.run(_REUSE, folder, known, name, sha256, user=user).code:
                wanted.append(name)
        sizes = {name: (bundle.path / name).stat().st_size for name in wanted}
        self._require_space(bundle, sum(sizes.values()), slots)
        total, before, travelled = sum(sizes.values()) or 1, 0, 0
        for name in wanted:

            def on_progress(sent: int, before: int = before) -> None:
                progress("copy", (before + sent) / total)

            travelled += copy_file(
                self._remote, bundle.path / name, bundle.files[name], layout.incoming, f"{folder}/{name}",
                mode="640", user=user, on_progress=on_progress,
            )  # fmt: skip
            before += sizes[name]
        return wanted, travelled

    def install(self, bundle: Outgoing, model: str, limits: TrialLimits) -> SlotState:
        """As in `Transport`."""
        layout = self._board.layout
        words = ["slots", "install", f"{layout.incoming}/{bundle.id}", layout.slots(model), "--json"]
        # The service lets go of its model for the trial, so that there is never memory needed for two.
        words.append("--no-trial" if self._board.restartable and not self._lacking() else "--trial")
        words += self._board.keys_flag()
        if self._board.record.board is not None:
            words += ["--board", self._board.record.board]
        if limits.min_tps is not None:
            words += ["--min-tps", f"{limits.min_tps:g}"]
        if limits.max_rss_mb is not None:
            words += ["--max-rss-mb", f"{limits.max_rss_mb:g}"]
        code, out, err = self._board.stonechat(*words)
        self._remote.run('rm -rf "$1"', f"{layout.incoming}/{bundle.id}", user=self._board.user)
        if code:
            fault = error_fields(out)
            message = fault.get("message") or err.strip() or f"`stonechat slots install` ended with {code}"
            raise error_of(code, str(fault.get("code")), f"{self.device}: {message}")
        if (state := slot_state(out)) is None:
            raise RemoteError(f"{self.device}: `stonechat slots install` printed no state: {out.strip()[:200]!r}")
        return state

    def start(self, model: str, slots: SlotState) -> SlotState | None:
        """As in `Transport`."""
        board = self._board
        if not board.restartable:
            self._say(f"restart the service there: {shlex.join(board.layout.serve(self.device))}")
            return None
        if lacking := self._lacking():
            self._say(
                f"the service starts once there is a model {lacking[0]} as well: "
                f"stonechat deploy BUNDLE --to {self._remote.target} --model {lacking[0]}"
            )
            return None
        due = slots.trial is not None
        self._say("the service restarts and runs the trial …" if due else "the service restarts …")
        for _ in range(ATTEMPTS + 1):  # a start that is cut off counts as one, and the last one gives the bundle back
            fault, away = None, None
            try:
                fault = board.restart(self._say)
            except UnreachableError as error:  # its broker; or the board, and then what comes next says so
                away = error
            now = board.slots(model)
            if away or now is None or now.trial is None:
                break
        goes_on = f", but the service does not start: {fault}" if fault else ""
        if away and now is not None and now.trial is not None:
            raise UnreachableError(f"{self.device} has the new bundle, and its trial is still due: {away}")
        if now is None or now.trial is not None:
            raise RemoteError(f"{self.device}: the trial was not held{goes_on}; see `stonechat device logs`.")
        if due and (last := now.last) is not None and last.outcome == "rolled_back":
            runs = f"Version {now.version(now.active)} runs as before" if now.active else "No bundle runs there yet"
            raise RolledBackError(
                f"{self.device}: version {last.version} of {last.name} did not pass its trial: {last.reason}. "
                f"{runs}{goes_on if now.active else ''}."
            )
        if away:
            raise UnreachableError(f"{self.device} has the new bundle, and {away}")
        if fault and due:
            self._go_back(model, fault)
        if fault:
            raise RemoteError(f"{self.device}: the service does not start ({fault}); see `stonechat device logs`.")
        return now

    def _require_space(self, bundle: Outgoing, travelling_bytes: int, slots: str) -> None:
        """Refuse what cannot fit there: what travels, and its place in a slot, where all of it is written once more.

        The bundle to go back to is given up where it has to be, so that the larger slot counts as room.

        Raises:
            DiskFullError: before anything travels.
        """
        incoming = self._board.layout.incoming
        free, *used = self._remote.check(_ROOM, incoming, slots, user=self._board.user).splitlines()
        found = _AVAILABLE.search(free)
        if found is None:  # a `df` of another kind; the board itself looks again before it writes
            return
        needed = travelling_bytes + sum((bundle.path / name).stat().st_size for name in bundle.files)
        available = 1024 * (int(found[1]) + max((int(size.split()[0]) for size in used), default=0))
        if needed > available:
            what = f"{bundle.name} {bundle.version}, on its way and in a slot,"
            raise disk_full(what, f"{self._remote.target}:{incoming}", needed, available, "Free some there.")

    def _lacking(self) -> list[str]:
        """Models without which the service does not start."""
        states = ((name, self._board.slots(name)) for name in self._others)
        return [name for name, state in states if state is None or state.active is None]

    def _go_back(self, model: str, reason: str) -> NoReturn:
        """The bundle passed its trial, and the service does not start with it: the one before has to run again."""
        code, out, err = self._board.stonechat(
            "slots", "rollback", self._board.layout.slots(model), "--json", *self._board.keys_flag()
        )
        if code:
            fault = error_fields(out).get("message") or err.strip()
            raise RemoteError(
                f"{self.device} has the new bundle, and its service does not start with it ({reason}). There is no way "
                f"back: {fault} See `stonechat device logs`."
            )
        fault = self._board.restart(self._say)
        raise RolledBackError(
            f"{self.device}: the service does not start with the new bundle ({reason}). The one before is back"
            + (f", but does not start either ({fault}); see `stonechat device logs`." if fault else ", and runs.")
        )

    def _files_there(self, slots: str) -> dict[str, str]:
        """sha256 -> path, of what the slots hold."""
        lines = self._remote.check(_MANIFESTS, slots, user=self._board.user).splitlines()
        found = {}
        for slot, text in zip(lines[::2], lines[1::2], strict=False):
            try:
                files = json.loads(text)["files"]
                found.update({entry["sha256"]: f"{slots}/{slot}/{name}" for name, entry in files.items()})
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a damaged slot: its files are sent again
        return found
