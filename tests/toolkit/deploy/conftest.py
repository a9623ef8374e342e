"""A board for tests: a real sshd, a folder for its data and one for its program, mosquitto, and a service manager."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.brokers import mosquitto
from tests.support.ssh_boards import Board, new_board
from tests.support.ssh_servers import SshServer, ssh_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("sshd"), env={"STONECHAT_CACHE": os.environ["STONECHAT_CACHE"]}) as running:
        yield running


@pytest.fixture(scope="session")
def broker_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with mosquitto(tmp_path_factory.mktemp("broker")) as port:
        yield port


@pytest.fixture
def board(server: SshServer, tmp_path: Path) -> Iterator[Board]:
    """A board before `device init`, with a broker of its own: a board of a module has the same id at the other."""
    with mosquitto(tmp_path) as port:
        made = new_board(server, port, tmp_path)
        yield made
        made.stop()


@pytest.fixture
def ready(board: Board) -> Board:
    """The same after `device init`."""
    done = board.init(*board.restart_flag())
    assert done.returncode == 0, done.stderr
    return board
