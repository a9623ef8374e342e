"""Real SSH servers for tests: sshd on a free port of this machine, with keys of its own."""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.brokers import free_port

__all__ = ["SshServer", "make_key", "ssh_server", "sshd_path"]


@dataclass(frozen=True)
class SshServer:
    """A running sshd."""

    port: int
    identity: Path  # a private key that it takes
    config: Path  # for `ssh -F`: its host key is known
    log: Path
    user: str = field(default_factory=getpass.getuser)

    @property
    def target(self) -> str:
        return f"{self.user}@127.0.0.1:{self.port}"

    def session_pid(self) -> int:
        """The process that serves a connection."""
        listener = int((self.config.parent / "pid").read_text())
        children = Path(f"/proc/{listener}/task/{listener}/children").read_text().split()
        return int(children[-1])

    @property
    def flags(self) -> list[str]:
        return ["--identity", str(self.identity), "--ssh-config", str(self.config)]


def sshd_path() -> str:
    """Where sshd is; Debian keeps it out of a user's PATH. Skips the test where it is missing."""
    found = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if found is None or shutil.which("ssh") is None:
        pytest.skip("sshd or ssh is not installed (Debian: apt install openssh-server openssh-client)")
    return found


def make_key(path: Path) -> Path:
    """A key pair without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@contextmanager
def ssh_server(
    folder: Path, *lines: str, port: int | None = None, env: Mapping[str, str] | None = None
) -> Iterator[SshServer]:
    """An sshd for this user; `lines` join its configuration, `env` is the environment of its sessions."""
    binary = sshd_path()
    folder.mkdir(parents=True, exist_ok=True)
    host_key, identity = folder / "host_key", folder / "identity"
    for key in (host_key, identity):
        if not key.exists():
            make_key(key)
    port = port or free_port()
    (folder / "authorized_keys").write_text(identity.with_suffix(".pub").read_text())
    host = host_key.with_suffix(".pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host[0]} {host[1]}\n")
    (folder / "ssh_config").write_text(
        f"UserKnownHostsFile {folder}/known_hosts\nGlobalKnownHostsFile none\nStrictHostKeyChecking yes\n"
        "IdentityAgent none\n"
    )
    settings = [
        f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {host_key}",
        f"AuthorizedKeysFile {folder}/authorized_keys",
        f"PidFile {folder}/pid", "PasswordAuthentication no", "KbdInteractiveAuthentication no", "UsePAM no",
        "StrictModes no", "PermitRootLogin prohibit-password", "MaxStartups 100", *lines,
    ]  # fmt: skip
    # SHLVL: or bash would read this user's own ~/.bashrc, as it does for an SSH server
    settings.append(
        "SetEnv " + " ".join(f"{name}={value}" for name, value in ({"SHLVL": "3"} | dict(env or {})).items())
    )
    (folder / "sshd_config").write_text("\n".join([*settings, ""]))
    if Path("/run").is_dir() and not Path("/run/sshd").exists() and getpass.getuser() == "root":
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # what Debian's unit makes
    log = folder / "sshd.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [binary, "-D", "-e", "-f", str(folder / "sshd_config")], stdout=stream, stderr=stream
        )
        try:
            end_s = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < end_s, log.read_text()
                    time.sleep(0.02)
            yield SshServer(port, identity, folder / "ssh_config", log)
        finally:
            process.terminate()
            process.wait(60)
