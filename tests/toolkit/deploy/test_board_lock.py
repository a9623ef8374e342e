"""Whose turn it is at a board, over a real sshd; test_deploy.py has what a second deployment says."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from device_runtime.errors import UpdateError
from tests.support.ssh_servers import SshServer, ssh_server
from toolkit.device.layout import Layout
from toolkit.ssh.board_lock import only_one
from toolkit.ssh.ssh import Remote, RemoteError, Target


def connected(server: SshServer) -> Remote:
    return Remote(Target.parse(server.target), server.identity, ("-F", str(server.config)))


def board(remote: Remote, root: Path) -> SimpleNamespace:
    """What the lock needs of a `BoardDevice`."""
    (root / "state").mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(remote=remote, layout=Layout(str(root)), user=None)


def is_free(board: SimpleNamespace) -> bool:
    try:
        with only_one(board):
            return True
    except UpdateError:
        return False


def until_free(board: SimpleNamespace) -> None:
    end_s = time.monotonic() + 120
    while not is_free(board):
        assert time.monotonic() < end_s


def test_a_turn_ends_with_its_block(server, tmp_path):
    with connected(server) as remote:
        place = board(remote, tmp_path)
        with only_one(place):
            assert not is_free(place)
        assert is_free(place)


def test_a_turn_lasts_while_the_board_hears_from_its_owner_and_no_longer(server, tmp_path):
    """Two owners with the same lease, of which one falls silent."""
    with connected(server) as remote:
        alive, silent = board(remote, tmp_path / "alive"), board(remote, tmp_path / "silent")
        with only_one(alive, lease_s=5, beat_s=0.05), only_one(silent, lease_s=5, beat_s=1e6):
            until_free(silent)
            assert not is_free(alive)


def test_a_turn_ends_with_its_connection(tmp_path):
    with (
        ssh_server(tmp_path / "sshd") as server,
        connected(server) as remote,
        only_one(board(remote, tmp_path), lease_s=1e6, beat_s=1e6),
    ):
        os.kill(server.session_pid(), signal.SIGKILL)
        with connected(server) as another:
            until_free(board(another, tmp_path))


def test_a_turn_that_cannot_be_had_is_no_turn(server, tmp_path):
    with connected(server) as remote:
        place = board(remote, tmp_path)
        (tmp_path / "state").rmdir()
        message = r"deploy.lock could not be locked: FileNotFoundError: .*No such file"
        with pytest.raises(RemoteError, match=message), only_one(place):
            pass
