"""A Linux board with systemd as its first process and an SSH server, in a container made with `unshare` (tests only).

Its user `pi` may use sudo without a password, as on Raspberry Pi OS.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.brokers import free_port
from tests.support.ssh_servers import SshServer, make_key, sshd_path

__all__ = ["systemd_board"]

_SCRIPT = Path(__file__).with_suffix(".sh")
_SSHD_UNIT = """\
[Unit]
Description=SSH server of the test board
[Service]
ExecStart={sshd} -D -e -f /etc/test-board/sshd_config
RuntimeDirectory=sshd
"""
_TARGET = """\
[Unit]
Requires=basic.target test-sshd.service
After=basic.target test-sshd.service
AllowIsolate=yes
"""


@contextmanager
def systemd_board(folder: Path) -> Iterator[SshServer]:
    """Boot it; skips the test where this machine cannot."""
    sshd = sshd_path()
    for path in ("/lib/systemd/systemd", "/usr/bin/sudo", "/usr/bin/python3"):
        if not Path(path).exists():
            pytest.skip(f"{path} is not installed (Debian: apt install systemd sudo python3-venv)")
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a container with systemd needs root, and unshare")
    port = free_port()
    own, units = folder / "etc" / "test-board", folder / "etc" / "systemd" / "system"
    for made in (own, units, folder / "etc" / "sudoers.d"):
        made.mkdir(parents=True)
    host_key, identity = make_key(own / "host_key"), make_key(folder / "identity")
    (own / "authorized_keys").write_text(identity.with_suffix(".pub").read_text())
    (own / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey /etc/test-board/host_key\nUsePAM no\nStrictModes no\n"
        "AuthorizedKeysFile /etc/test-board/authorized_keys\nPasswordAuthentication no\n"
    )
    (units / "test-sshd.service").write_text(_SSHD_UNIT.format(sshd=sshd))
    (units / "board.target").write_text(_TARGET)
    sudoers = folder / "etc" / "sudoers.d" / "pi"
    sudoers.write_text("pi ALL=(ALL) NOPASSWD: ALL\n")
    sudoers.chmod(0o440)
    kind, key = host_key.with_suffix(".pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    config = folder / "ssh_config"
    config.write_text(f"UserKnownHostsFile {folder}/known_hosts\nStrictHostKeyChecking yes\nIdentityAgent none\n")
    log = folder / "console.log"
    command = ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--cgroup"]
    with log.open("wb") as console:
        process = subprocess.Popen(
            [*command, "sh", str(_SCRIPT), str(folder)], stdin=subprocess.DEVNULL, stdout=console, stderr=console
        )
        try:
            end_s = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
                    break
                except OSError:
                    if process.poll() is not None:
                        pytest.skip(f"no container with systemd here: {log.read_text().strip().splitlines()[-1:]}")
                    assert time.monotonic() < end_s, log.read_text()
                    time.sleep(0.1)
            yield SshServer(port, identity, config, log, "pi")
        finally:
            process.kill()
            process.wait(60)
