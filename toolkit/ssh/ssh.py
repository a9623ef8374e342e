"""The system's ssh: one connection to a board, over which commands and files go.

ssh itself reads ~/.ssh/config, known_hosts and agents, and asks for a password where a person can answer. The first
command opens the connection (ControlMaster), the others share it.

Every remote command is a constant POSIX sh script whose variable parts are its arguments $1, $2 …, quoted here and
nowhere else: no value is ever pasted into a script.

Whose login shell is on the other side is unknown: it may be fish or tcsh, which quote otherwise, and it may print a
greeting before the command and something after it. So the command goes through it as letters, digits and octal escapes
that every shell leaves alone, `sh` decodes it, and only what is between our own marks is taken for its output.
"""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

from device_runtime.errors import ConfigurationError, RemoteError, StonechatError, UnreachableError

__all__ = ["Done", "Remote", "RemoteError", "Target", "last_words"]

CONNECT_S = 10
IDLE_S = 300  # a connection that nobody closed, since we were killed, closes itself
_ALIVE = ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3"]
_FAILED = 255  # ssh's own exit code; that of a command is passed through
_HOST = re.compile(r"[A-Za-z0-9_.:%-]+")
# $1 the command line, for `printf %b`; $2 the mark
_MARKED = 'echo "$2"; echo "$2" >&2; eval "$(printf %b "$1")"; code=$?; echo "$2"; echo "$2" >&2; exit $code'
_MERGED = 'echo "$2"; eval "$(printf %b "$1")" 2>&1; code=$?; echo "$2"; exit $code'
_PLAIN = 'eval "$(printf %b "$1")"'
_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _./=:,@+-")
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@-]*")


@dataclass(frozen=True)
class Target:
    """[user@]host[:port], where `host` may be a name of ~/.ssh/config."""

    host: str
    user: str | None = None  # ssh's choice when None
    port: int | None = None  # ssh's choice when None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `[user@]host[:port]`; an IPv6 address with a port is in brackets.

        Raises:
            ConfigurationError: it is no such text.
        """
        user, at, rest = text.rpartition("@")
        bracketed = re.fullmatch(r"\[([^]]*)\](?::(.*))?", rest)
        if bracketed:
            host, port = bracketed[1], bracketed[2]
        elif rest.count(":") == 1:
            host, _, port = rest.partition(":")
        else:
            host, port = rest, None
        good = _HOST.fullmatch(host) and not host.startswith("-") and (not at or _USER.fullmatch(user))
        if good and port is not None:
            good = port.isascii() and port.isdecimal() and 0 < int(port) < 65536
        if not good:
            raise ConfigurationError(f"{text!r} is not a board to connect to; expected [user@]host[:port].")
        return cls(host, user or None, int(port) if port else None)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host and self.port else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")


@dataclass(frozen=True)
class Done:
    """A command that has run."""

    code: int
    out: str
    err: str


@dataclass
class Remote:
    """A connection, inside a `with` block."""

    target: Target
    identity: Path | None = None  # a private key file
    options: tuple[str, ...] = ()  # further words for ssh, such as -F FILE
    sudo: bool = False  # whether `as_root` needs sudo
    _sockets: Path = field(init=False, repr=False)
    _mark: str = field(init=False, repr=False, default_factory=lambda: f"stonechat-{secrets.token_hex(8)}")

    def __enter__(self) -> Remote:
        """Connect.

        Raises:
            ConfigurationError: the board refuses us, is not the one we know, or there is no ssh here.
            UnreachableError: nothing answers there.
        """
        if shutil.which("ssh") is None:
            raise ConfigurationError("There is no ssh here; install it (Debian: sudo apt-get install openssh-client).")
        if self.identity is not None and not self.identity.is_file():
            raise ConfigurationError(f"There is no key file {self.identity} (--identity).")
        # Not in $TMPDIR, which may be long: the path of a socket has at most 107 bytes.
        self._sockets = Path(tempfile.mkdtemp(prefix="stonechat-", dir="/tmp" if Path("/tmp").is_dir() else None))
        try:
            self._connect()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def run(self, script: str, *arguments: str, as_root: bool = False, user: str | None = None) -> Done:
        """Run a sh script and return how it ended.

        Args:
            arguments: its $1, $2 …
            as_root: with sudo where we are not root.
            user: run as this user, through sudo or, where we are root, su.

        Raises:
            UnreachableError: the connection broke.
        """
        done = subprocess.run(
            self._command(script, arguments, as_root, user),
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        out, err = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))  # \r\n stays as it is
        self.check_connection(done.returncode, err)
        self._check_marks(out, err)
        return Done(done.returncode, self.own(out), self.own(err))

    def check(self, script: str, *arguments: str, as_root: bool = False, user: str | None = None) -> str:
        """Run a sh script that must succeed; returns its stdout.

        Raises:
            RemoteError: it failed; the message is what it said on stderr.
            UnreachableError: the connection broke.
        """
        done = self.run(script, *arguments, as_root=as_root, user=user)
        if done.code:
            raise RemoteError(last_words(done.err or done.out) or f"the command ended with {done.code}")
        return done.out

    def follow(
        self, script: str, *arguments: str, on_line: Callable[[str], None], as_root: bool = False,
        user: str | None = None,
    ) -> Done:  # fmt: skip
        """Run a long sh script; `on_line` gets each line of its stdout and stderr as it comes.

        Raises:
            UnreachableError: the connection broke.
        """
        command = self._command(script, arguments, as_root, user, _MERGED)
        said: list[str] = []
        # The script's stderr comes with its stdout. What comes on ssh's own is the login shell's, or ssh's: the two
        # streams have no order, so it cannot be distinguished by the marks.
        with (
            tempfile.TemporaryFile() as err,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
                encoding="utf-8",
                errors="replace",
            ) as process,
        ):
            try:
                assert process.stdout is not None
                lines = process.stdout
                for line in lines:
                    said.append(line)
                    if line.endswith(f"{self._mark}\n"):
                        break
                ended = False
                for line in lines:
                    said.append(line)
                    text, mark, _ = line.rstrip("\n").partition(self._mark)
                    if not ended and (text or not mark):
                        on_line(text)
                    ended |= bool(mark)
            except BaseException:
                process.terminate()
                raise
            code = process.wait()
            err.seek(0)
            of_ssh = err.read().decode("utf-8", "replace")
        whole = "".join(said)
        self.check_connection(code, of_ssh or "".join(said[-5:]))
        self._check_marks(whole, of_ssh)
        return Done(code, self.own(whole), "")

    def feed(
        self, script: str, *arguments: str, blocks: Iterable[bytes], as_root: bool = False, user: str | None = None
    ) -> str:
        """Run a sh script that reads `blocks` on its stdin and must succeed; returns its stdout, which is short.

        Raises:
            RemoteError: it failed.
            UnreachableError: the connection broke.
        """
        with tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                self._command(script, arguments, as_root, user), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=err,
            )  # fmt: skip
            try:
                assert process.stdin is not None and process.stdout is not None
                try:
                    for block in blocks:
                        process.stdin.write(block)
                    process.stdin.close()
                except BrokenPipeError:  # it ended early, and says why on stderr
                    pass
                out = process.stdout.read().decode("utf-8", "replace")
                code = process.wait()
            except BaseException:
                process.terminate()
                process.wait()
                raise
            err.seek(0)
            said = err.read().decode("utf-8", "replace")
        self.check_connection(code, said)
        self._check_marks(out, said)
        if code:
            raise RemoteError(last_words(self.own(said)) or f"the command ended with {code}")
        return self.own(out)

    def start(self, script: str, *arguments: str, user: str | None = None) -> subprocess.Popen[bytes]:
        """Start a sh script, and leave it running: its three streams are pipes, and its end is the caller's to see.

        Its stdout begins with what the script writes; `own` takes what it has written out of the rest.
        """
        process = subprocess.Popen(
            self._command(script, arguments, False, user), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        while (line := process.stdout.readline()) and not line.endswith(f"{self._mark}\n".encode()):
            pass  # a greeting of the login shell
        return process

    def own(self, text: str) -> str:
        """What a script has written, of all that came: not what the login shell prints before and after it."""
        parts = text.split(self._mark)
        return parts[1].removeprefix("\n") if len(parts) > 1 else text

    def _check_marks(self, out: str, err: str) -> None:
        """Raise a `ConfigurationError` if a command was not run as it was sent."""
        if self._mark not in out:
            said = last_words(err) or last_words(out) or "nothing"
            raise ConfigurationError(
                f"{self.target} lets us in, but does not run our commands; it says: {said}. Expected a login shell "
                "that runs `ssh HOST COMMAND`, not one for file transfer or a fixed command; connect as another user."
            )

    def stream(self, script: str, *arguments: str, as_root: bool = False, out: IO[str] | None = None) -> int:
        """Run a sh script whose output a person reads; returns its exit code."""
        done = subprocess.run(
            self._command(script, arguments, as_root, None, _PLAIN),
            stdin=subprocess.DEVNULL,
            stdout=out,
            encoding="utf-8",
        )
        self.check_connection(done.returncode, "")
        return done.returncode

    def check_connection(self, code: int, said: str) -> None:
        """Raise an `UnreachableError` if a command that `start` started ended with `code` because of the connection."""
        if code == _FAILED:
            raise UnreachableError(
                f"The connection to {self.target} broke ({last_words(said) or 'no reason given'}). "
                "Run the command again: it goes on where it stopped."
            )

    def _connect(self) -> None:
        """The master connection goes to the background and keeps stderr open: a file, since a pipe would not end."""
        with open(self._sockets / "log", "w+b") as log:
            command = ["ssh", "-fN", "-o", "ControlMaster=yes", "-o", f"ControlPersist={IDLE_S}", *self._words()]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            log.seek(0)
            said = log.read().decode("utf-8", "replace")
        if done.returncode:
            raise self._refusal(said)

    def _words(self) -> list[str]:
        t = self.target
        return [
            *self.options,
            *["-o", f"ControlPath={self._sockets}/%C", "-o", f"ConnectTimeout={CONNECT_S}", *_ALIVE],
            # What ~/.ssh/config may ask of a person's own sessions with this board.
            *["-o", "RemoteCommand=none", "-o", "PermitLocalCommand=no", "-o", "ClearAllForwardings=yes"],
            *([] if sys.stdin.isatty() else ["-o", "BatchMode=yes"]),
            *(["-i", str(self.identity), "-o", "IdentitiesOnly=yes"] if self.identity else []),
            *(["-p", str(t.port)] if t.port else []),
            *(["-l", t.user] if t.user else []),
            "--",
            t.host,
        ]

    def _command(
        self, script: str, arguments: Iterable[str], as_root: bool, user: str | None, wrapper: str = _MARKED
    ) -> list[str]:
        words = ["sh", "-c", script, "stonechat", *arguments]
        if user is not None:
            become = ["sudo", "-n", "-u", user, "--"] if self.sudo else ["runuser", "-u", user, "--"]
            words = [*become, *words]
        elif as_root and self.sudo:
            words = ["sudo", "-n", "--", *words]
        line = f"sh -c '{wrapper}' sh '{_escaped(shlex.join(words))}' {self._mark}"
        # BatchMode: without the master (it was cut) ssh would connect again, and could ask for a password once more.
        return ["ssh", "-T", "-o", "ControlMaster=no", "-o", "BatchMode=yes", *self._words(), line]

    def _refusal(self, said: str) -> StonechatError:
        """What ssh's own words mean."""
        t, reason = self.target, last_words(said) or "ssh gave no reason"
        by_hand = f"ssh {f'-p {t.port} ' if t.port else ''}{f'{t.user}@' if t.user else ''}{t.host}"
        if "IDENTIFICATION HAS CHANGED" in said:
            place = re.search(r"Offending .* key in (.+):\d+", said)
            name = f"[{t.host}]:{t.port}" if t.port and t.port != 22 else t.host
            return ConfigurationError(
                f"{t} has another host key than the one that is known here"
                f"{f' (in {place[1]})' if place else ''}: a card that was rewritten, or somebody in between. "
                f"If you know why, run `ssh-keygen -R '{name}'` and connect again."
            )
        if "Host key verification failed" in said or "host key is known" in said:
            return ConfigurationError(
                f"{t} is not known here yet: connect once by hand (`{by_hand}`), compare its host key, and run this "
                "again."
            )
        if "Permission denied" in said or "Too many authentication failures" in said:
            return ConfigurationError(
                f"{t} refuses us ({reason}). Copy your public key there (`ssh-copy-id`), name another with --identity, "
                "or name another user (user@host)."
            )
        if "Bad configuration option" in said or "bad permissions" in said.lower():
            return ConfigurationError(f"ssh cannot start: {reason}.")
        return UnreachableError(
            f"{t} does not answer: {reason}. Check that it is on, on this network, and runs an SSH server."
        )

    def _leave(self) -> None:
        if any(path.name != "log" for path in self._sockets.iterdir()):
            subprocess.run(
                ["ssh", "-O", "exit", *self._words()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        shutil.rmtree(self._sockets, ignore_errors=True)


def _escaped(line: str) -> str:
    """A command line for `printf %b`, of characters that no shell looks at inside single quotes."""
    return "".join(chr(byte) if byte in _SAFE else f"\\0{byte:03o}" for byte in line.encode("utf-8", "surrogateescape"))


def last_words(text: str) -> str:
    """The last line that says something, without a full stop."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else ""
