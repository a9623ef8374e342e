"""Requests over a line that drops, doubles and garbles frames: no answer is lost, doubled or altered; nothing grows.

Slow: 10,000 requests take five to ten minutes. STONECHAT_SOAK_REQUESTS sets another number.
"""

from __future__ import annotations

import os
import random
import select
import threading
import tty
from pathlib import Path

import pytest

from device_runtime.bridge.link import Link
from device_runtime.bridge.model import SerialModel
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.language_model import LanguageModel
from tests.support.host_boards import HostBoard, build_host_board, host_board_file, write_host_flash
from toolkit.cli import main
from toolkit.firmware.container import wrap
from toolkit.firmware.slots import model_image

REQUESTS = int(os.environ.get("STONECHAT_SOAK_REQUESTS", "10000"))
FAULTS = 0.01  # of the pieces that cross the line, each way
CHECKPOINT = Path(__file__).parents[2] / "data" / "checkpoints" / "gqa-tied"
PROMPTS = [f"Pump {number} reads {number * 7} l/min." for number in range(8)]


class BadLine:
    """Joins a board's port to one of its own, and treats some of what crosses badly."""

    def __init__(self, port: str, seed: int) -> None:
        self._board = os.open(port, os.O_RDWR | os.O_NOCTTY)
        self._own, others = os.openpty()
        tty.setraw(others)
        self.port, self._kept_open = os.ttyname(others), others
        self._dice, self._stop = random.Random(seed), threading.Event()
        self.faults = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _spoiled(self, data: bytes) -> bytes:
        if self._dice.random() >= FAULTS:
            return data
        self.faults += 1
        kind = self._dice.randrange(3)
        if kind == 0:
            return b""
        if kind == 1:
            return data + data
        spoiled = bytearray(data)
        spoiled[self._dice.randrange(len(spoiled))] ^= 1 << self._dice.randrange(8)
        return bytes(spoiled)

    def _run(self) -> None:
        ways = {self._board: self._own, self._own: self._board}
        while not self._stop.is_set():
            for source in select.select(list(ways), [], [], 0.1)[0]:
                data = self._spoiled(os.read(source, 512))
                if data:
                    os.write(ways[source], data)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for fd in (self._board, self._own, self._kept_open):
            os.close(fd)


def memory_kib(board: HostBoard) -> int:
    status = Path(f"/proc/{board.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


@pytest.mark.slow
def test_ten_thousand_requests_over_a_bad_line(tmp_path: Path) -> None:
    command = ["convert", str(CHECKPOINT), "--profile", "micro", "--context", "96", "--fast"]
    assert main([*command, "-o", str(tmp_path / "bundle")]) == 0
    bundle, file = Bundle.open(tmp_path / "bundle"), host_board_file()
    image = bundle.path / "model.image"
    with LanguageModel.open(bundle.path, backend="native") as local:
        expected = ["".join(local.generate([{"role": "user", "content": p}], max_new=4)) for p in PROMPTS]
    flash = write_host_flash(
        tmp_path / "flash.bin", file, wrap(b"x", "firmware", version="1", security_counter=0),
        model_image(image.read_bytes(), bundle.manifest, file),
    )  # fmt: skip
    with HostBoard(build_host_board(tmp_path / "board", image, file), flash) as board:
        line = BadLine(board.port, seed=15)
        model = SerialModel(Link(line.port), None).open(30)
        early = 0
        for number in range(REQUESTS):
            which = number % len(PROMPTS)
            answer = model.generate([{"role": "user", "content": PROMPTS[which]}], max_new=4)
            assert "".join(answer) == expected[which], number
            if number == REQUESTS // 10:
                early = memory_kib(board)
        assert memory_kib(board) <= early + 64  # there is no heap
        assert model.health()["board_starts"] == 1 and model.health()["board_resets"] == 0
        assert line.faults > REQUESTS / 100
        model.close()
        line.close()
