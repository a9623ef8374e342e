"""One deployment to a board at a time.

A process on the board holds the lock as long as it receives from us. So the lock ends with us however we end, also when
the connection breaks without a word: the next attempt need not wait for longer than LEASE_S.
"""

from __future__ import annotations

import getpass
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from device_runtime.errors import UpdateError
from toolkit.ssh.device import BoardDevice
from toolkit.ssh.ssh import RemoteError, last_words

__all__ = ["only_one"]

BEAT_S = 10.0  # between signs of life
LEASE_S = 60.0  # of silence, after which the board gives the lock back; ssh notices a dead connection in 45

_HELD = "held"
_TAKEN = 75  # exit code: EX_TEMPFAIL of sysexits.h
# $1 the lock file, $2 who we are, $3 LEASE_S. Its stdin is our signs of life.
_HOLD = """
import fcntl, os, select, sys
path, who, lease_s = sys.argv[1:]
file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print(os.read(file, 200).decode("utf-8", "replace"), file=sys.stderr)
    sys.exit(75)
os.ftruncate(file, 0)
os.write(file, who.encode())
print("held", flush=True)
while select.select([0], [], [], float(lease_s))[0] and os.read(0, 64):
    pass
"""


@contextmanager
def only_one(board: BoardDevice, lease_s: float = LEASE_S, beat_s: float = BEAT_S) -> Iterator[None]:
    """Within this context no other deployment to the board begins.

    Raises:
        UpdateError: one is under way.
    """
    who = f"{getpass.getuser()}@{socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}"
    path = f"{board.layout.state}/deploy.lock"
    process = board.remote.start('exec python3 -I -c "$@"', _HOLD, path, who, f"{lease_s:g}", user=board.user)
    ended = threading.Event()
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    try:
        if process.stdout.readline().strip() != _HELD.encode():
            said = board.remote.own(process.stderr.read().decode("utf-8", "replace")).strip()
            code = process.wait()
            board.remote.check_connection(code, said)
            if code == _TAKEN:
                raise UpdateError(
                    f"another deployment to {board.remote.target} is under way, by {said or 'somebody'}; wait until it "
                    f"has ended. One whose connection broke ends within {lease_s:.0f} s."
                )
            raise RemoteError(
                f"{board.remote.target}:{path} could not be locked: {last_words(said) or 'no reason given'}."
            )

        stdin = process.stdin

        def beat() -> None:
            with suppress(OSError):  # the connection broke, and its user will notice
                while not ended.wait(beat_s):
                    stdin.write(b".")
                    stdin.flush()

        heart = threading.Thread(target=beat, name="stonechat-lock", daemon=True)
        heart.start()
        try:
            yield
        finally:
            ended.set()
            heart.join()
    finally:
        with suppress(OSError):
            process.stdin.close()  # by which the board gives the lock back
        process.stdout.close()
        process.stderr.close()
        process.wait()
