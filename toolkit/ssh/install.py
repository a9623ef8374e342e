"""`stonechat device init`: set a board up over SSH, or repair and upgrade it.

Every step looks first and changes only what is not as it should be. The program goes into an environment of its own
beside the one in use, and a link is switched when it has proven that it starts: a step that fails leaves the board
as it was.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from boards.detect import detect
from device_runtime.errors import ConfigurationError
from device_runtime.fleet import file as fleet
from toolkit.device.layout import SERVICE, USER
from toolkit.device.record import Record
from toolkit.ssh.copy import copy_file, file_sha256, put_text
from toolkit.ssh.device import restart_by_command, restart_unit
from toolkit.ssh.plan import Plan, files_of
from toolkit.ssh.probe import Facts, check_board, probe
from toolkit.ssh.ssh import Remote, RemoteError
from toolkit.ssh.unit import unit_text
from toolkit.ssh.wheel import write_wheel

__all__ = ["Installer", "Report", "Step"]

_UNIT_PATH = f"/etc/systemd/system/{SERVICE}"

_USER = """
id -u "$1" >/dev/null 2>&1 && exit 0
nologin=$(command -v nologin || echo /usr/sbin/nologin)
useradd --system --user-group --no-create-home --home-dir "$2" --shell "$nologin" "$1" && echo changed
"""
# $1 root, $2 prefix, $3 the service's user or nothing. `chown` and `chmod` of what is right already change nothing.
_FOLDERS = """
set -eu
before=$(ls -ldn "$1" "$1"/* "$2" 2>/dev/null | cut -d' ' -f1,3,4 | cksum)
umask 022
mkdir -p "$2/venvs" "$2/incoming" "$1/models" "$1/state" "$1/incoming" "$1/certs" "$1/keys/retired"
chmod 755 "$2" "$1/keys" "$1/keys/retired"
chmod 750 "$1" "$1/models" "$1/state" "$1/incoming" "$1/certs"
if [ -n "$3" ]; then
    chown root:"$3" "$1" "$1/certs"
    chown "$3":"$3" "$1/models" "$1/state" "$1/incoming"
fi
after=$(ls -ldn "$1" "$1"/* "$2" | cut -d' ' -f1,3,4 | cksum)
[ "$before" = "$after" ] || echo changed
"""
_STARTS = 'cd / && "$1/bin/python" -c "import device_runtime.engine.language_model, toolkit.cli.command, cryptography"'
# $1 the new environment, $2 the wheel, $3 a wheelhouse or nothing, $4 "32" on a 32-bit system, "32 on 64" if its kernel
# is a 64-bit one: programs then take the machine for one, unless that is set (docs/guides/boards-32-bit.md).
_MAKE = """
set -eu
umask 022
rm -rf "$1"
python3 -m venv ${4:+--system-site-packages} "$1"
venv=$1 as=
[ "$4" != "32 on 64" ] || as="env _PYTHON_HOST_PLATFORM=linux-armv7l setarch linux32"
set -- --only-binary :all: "$2[sign]" ${3:+--no-index --find-links "$3"}
PIP_DISABLE_PIP_VERSION_CHECK=1 $as "$venv/bin/python" -m pip install --no-cache-dir --progress-bar off "$@"
"""
# The link, and after it what is neither the one in use nor the one before.
_SWITCH = """
set -eu
cd "$1"
before=$(readlink venv 2>/dev/null || true)
[ "$before" != "venvs/$2" ] || exit 0
rm -f venv.new
ln -s "venvs/$2" venv.new
mv -T venv.new venv
for other in venvs/*; do
    [ "$other" = "venvs/$2" ] || [ "$other" = "$before" ] || rm -rf "$other"
done
echo changed
"""
_ENABLE = """
set -eu
systemctl daemon-reload
systemctl is-enabled -q "$1" 2>/dev/null || { systemctl enable -q "$1"; echo changed; }
"""
_HAS_MODEL = '[ -f "$1/slots.json" ] && [ -f "$1/a/manifest.json" -o -f "$1/b/manifest.json" ]'


@dataclass(frozen=True)
class Step:
    """What one step came to."""

    name: str
    changed: bool
    note: str  # what it found or did


@dataclass
class Report:
    """What a run of all steps came to."""

    device: str
    target: str
    steps: list[Step] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    next: str = ""  # what the operator does now


class Installer:
    """Runs the steps on one board."""

    def __init__(
        self, remote: Remote, plan: Plan, say: Callable[[str], None], progress: Callable[[str, float], None]
    ) -> None:
        """`say` gets a line per step, `progress` the name and the share of a copy that is under way."""
        self.remote, self.plan, self._say, self._progress = remote, plan, say, progress
        self.report = Report(plan.device, str(remote.target))
        self._plan = fleet.load(plan.fleet)
        self._models = tuple(self._plan.models_of(plan.device))
        self._files = files_of(plan, self._plan)

    def run(self, dry_run: bool = False) -> Report:
        """All steps.

        Raises:
            StonechatError: a step failed; its message says what to do.
        """
        steps: list[tuple[str, Callable[[], Step]]] = [("check the board", self._check)]
        if self._systemd:
            steps += [("system user", self._user)]
        steps += [("folders", self._folders), ("program", self._program), ("configuration", self._configure)]
        if self._systemd:
            steps += [("unit", self._unit)]
        steps += [("service", self._service)]
        for number, (name, step) in enumerate(steps, 1):
            if dry_run and number > 1:
                self._say(f"[{number}/{len(steps)}] {name}: {self._would(name)}")
                continue
            self._say(f"[{number}/{len(steps)}] {name} …")
            try:
                done = step()
            except RemoteError as error:
                raise RemoteError(f"step {number}, {name}: {error}. The board is as it was; run this again.") from None
            self.report.steps.append(done)
            self._say(f"      {'' if done.changed else 'unchanged: '}{done.note}")
        if dry_run:
            self.report.next = "nothing was changed (--dry-run)"
        return self.report

    @property
    def _systemd(self) -> bool:
        return self.plan.service == "systemd"

    def _owner(self, path: str) -> str:
        """Root's, and the service may read it; a password nobody else may."""
        user = USER if path.endswith(".password") else "root"
        return f"{user}:{USER}" if self._systemd else ""

    def _board_name(self) -> str | None:
        """What the commands on the board know it by."""
        if self._board is None or self.plan.board_file is None:
            return self._board.id if self._board else None
        return self.plan.layout.board_file(self._board.id)

    def _check(self) -> Step:
        facts = self._facts = probe(self.remote, self.plan.layout)
        self.remote.sudo = self._systemd and facts.uid != 0
        if self._systemd and not facts.systemd:
            raise ConfigurationError(
                f"{self.remote.target} does not run systemd; use --service none, and start the service your own way."
            )
        if self.remote.sudo and not facts.sudo:
            raise ConfigurationError(
                f"{self.remote.target} may not use sudo without a password; allow it there, or connect as root."
            )
        if not self._systemd and not facts.writable:
            raise ConfigurationError(
                f"{self.remote.target} may not write {self.plan.layout.root} or {self.plan.layout.prefix}; name "
                "folders of yours with --root and --prefix."
            )
        self._board = self.plan.board or detect(facts.compatible, facts.arch, facts.ram_kib)
        self.report.warnings += check_board(facts, self._board, str(self.remote.target))
        for warning in self.report.warnings:
            self._say(f"      warning: {warning}")
        return Step("check the board", False, self._describe(facts))

    def _describe(self, facts: Facts) -> str:
        board = self._board.name if self._board else "no known board"
        python = ".".join(map(str, facts.python))
        return f"{board}, {facts.arch}, Python {python}, {facts.free_prefix_mb:,.0f} MB free"

    def _user(self) -> Step:
        changed = self.remote.check(_USER, USER, self.plan.layout.root, as_root=True)
        return Step("system user", bool(changed), USER)

    def _folders(self) -> Step:
        layout = self.plan.layout
        changed = self.remote.check(_FOLDERS, layout.root, layout.prefix, USER if self._systemd else "", as_root=True)
        return Step("folders", bool(changed), f"{layout.root}, {layout.prefix}")

    def _program(self) -> Step:
        layout = self.plan.layout
        with tempfile.TemporaryDirectory() as folder:
            wheel = write_wheel(Path(folder))
            name = f"{wheel.version}-{wheel.sha256[:12]}"
            venv = f"{layout.prefix}/venvs/{name}"
            if self._starts(venv) is not None or self.remote.run('[ -f "$1/complete" ]', venv, as_root=True).code:
                house, wheels = f"{layout.prefix}/incoming", [wheel.path]
                if self.plan.wheelhouse is not None:
                    wheels += sorted(self.plan.wheelhouse.glob("*.whl"))
                for index, path in enumerate(wheels):
                    self._progress("copy", index / len(wheels))
                    self._bring(path, f"{house}/{path.name}")
                self._progress("copy", 1.0)
                done = self.remote.follow(
                    _MAKE, venv, f"{house}/{wheel.path.name}", house if self.plan.wheelhouse else "",
                    self._facts.word_size,
                    on_line=lambda line: self._say(f"      {line}") if line.startswith(_TOLD) else None, as_root=True,
                )  # fmt: skip
                if done.code:
                    self.remote.run('rm -rf "$1"', venv, as_root=True)
                    raise RemoteError(f"no environment could be made in {venv}: {_pip_fault(done.out)}")
                if (fault := self._starts(venv)) is not None:
                    raise RemoteError(f"the new environment in {venv} does not start: {fault}")
                self.remote.check(': > "$1/complete"; rm -rf "$2"', venv, house, as_root=True)
        changed = self.remote.check(_SWITCH, layout.prefix, name, as_root=True)
        return Step("program", bool(changed), f"stonechat {wheel.version} in {venv}")

    def _starts(self, venv: str) -> str | None:
        """Why the program does not start there for the user who runs it, or None."""
        done = self.remote.run(_STARTS, venv, user=USER if self._systemd else None)
        return (done.err.strip().splitlines() or ["no reason given"])[-1] if done.code else None

    def _bring(self, path: Path, to: str) -> None:
        copy_file(self.remote, path, file_sha256(path), f"{self.plan.layout.prefix}/incoming", to, as_root=True)

    def _configure(self) -> Step:
        plan = self.plan
        record = Record(plan.device, plan.layout.prefix, plan.service, plan.restart, self._board_name())
        files = {**self._files, plan.layout.record: (record.to_json(), "644")}  # last: it says that all is there
        changed = [
            path
            for path, (content, mode) in files.items()
            if put_text(self.remote, content, path, mode=mode, owner=self._owner(path), as_root=True)
        ]
        names = ", ".join(path.removeprefix(plan.layout.root + "/") for path in changed or files)
        self._restart_needed = bool(changed)
        return Step("configuration", bool(changed), names)

    def _unit(self) -> Step:
        text = unit_text(self.plan.layout, self.plan.device, self._board)
        changed = put_text(self.remote, text, _UNIT_PATH, mode="644", owner="root:root", as_root=True)
        enabled = self.remote.check(_ENABLE, SERVICE, as_root=True)
        return Step("unit", changed or bool(enabled), f"{_UNIT_PATH}, enabled")

    def _service(self) -> Step:
        layout, changed = self.plan.layout, any(step.changed for step in self.report.steps)
        deploy = f"stonechat deploy BUNDLE --to {self.remote.target}"
        for model in self._models:
            if self.remote.run(_HAS_MODEL, layout.slots(model), as_root=True).code:
                self.report.next = f"bring a model: {deploy}" + (f" --model {model}" if self._models[1:] else "")
                return Step("service", False, f"no model {model} yet, so it is not started")
        if not self._systemd and self.plan.restart is None:
            self.report.next = f"restart it: {shlex.join(layout.serve(self.plan.device))}"
            return Step("service", False, "left to you (--service none)")
        if self._systemd:
            running = self.remote.run('systemctl is-active -q "$1"', SERVICE).code == 0
            if running and not changed:
                return Step("service", False, "ready")
            fault = restart_unit(self.remote, lambda line: self._say(f"      {line}"))
        elif not changed:
            return Step("service", False, "left as it is")
        else:
            fault = restart_by_command(self.remote, self.plan.restart or "")
        if fault is not None:
            raise RemoteError(
                f"the service does not become ready ({fault}); see `stonechat device logs {self.remote.target}`"
            )
        return Step("service", True, "restarted, and ready")

    def _would(self, name: str) -> str:
        layout = self.plan.layout
        return {
            "system user": f"see that {USER} exists",
            "folders": f"see that {layout.root} and {layout.prefix} have the right owners and modes",
            "program": f"make an environment in {layout.prefix}/venvs and switch {layout.venv} to it",
            "configuration": "write " + ", ".join(p.removeprefix(layout.root + "/") for p in self._files),
            "unit": f"write and enable {_UNIT_PATH}",
            "service": f"run {shlex.join(layout.serve(self.plan.device))}, once there is a model",
        }[name]


_TOLD = ("Collecting", "Downloading", "Installing", "Successfully", "ERROR")


def _pip_fault(said: str) -> str:
    """The line of pip's that says most, and what to do."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else "no reason given"
    fault = next((line for line in reversed(lines) if line.startswith("ERROR") and "Exception" not in line), last)
    if "No space left" in said:
        return f"{fault}. Make room there, or name another disk with --prefix"
    return f"{fault}. If it cannot reach a package index, bring the wheels along with --wheelhouse"
