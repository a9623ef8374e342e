"""A small service manager for machines where systemd is not the first process.

    supervisor.py FOLDER LINE…   ends what it started before, starts the command LINE… with NOTIFY_SOCKET set, and
                                 returns 0 once that has said READY=1, or 1 when it ends before
    supervisor.py FOLDER         ends what it started

FOLDER keeps the process id, and `log`. It speaks the same protocol as systemd, on a real socket.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def stop(folder: Path) -> None:
    """End what runs, and wait for it."""
    try:
        pid = int((folder / "pid").read_text())
        os.kill(pid, signal.SIGTERM)
        while True:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z":
                return
            time.sleep(0.02)
    except (OSError, ValueError):
        pass


def start(folder: Path, command: list[str]) -> int:
    """Start and wait for READY=1."""
    address = folder / "notify"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, open(folder / "log", "ab") as log:
        notify.bind(str(address))
        notify.settimeout(0.1)
        environment = os.environ | {"NOTIFY_SOCKET": str(address)}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        (folder / "pid").write_text(str(process.pid))
        while process.poll() is None:
            try:
                if b"READY=1" in notify.recv(4096):
                    return 0
            except TimeoutError:
                continue
    print((folder / "log").read_text().strip().splitlines()[-1:], file=sys.stderr)
    return 1


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    stop(place)
    sys.exit(start(place, sys.argv[2:]) if sys.argv[2:] else 0)
