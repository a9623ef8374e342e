"""Ctrl-C at each step of an update of stonechat's own firmware: what the user reads is what the board is like."""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path

import pytest

from boards import Board
from converters.emit.c.bundle import write_bundle_image
from device_runtime.bundle.folder import Bundle
from device_runtime.errors import UnreachableError
from tests.support.host_boards import HostBoard, build_host_board, host_board_file, write_host_flash
from toolkit.cli import main
from toolkit.firmware.container import wrap
from toolkit.firmware.slots import model_image
from toolkit.flash.images import Image
from toolkit.flash.smp import Flasher
from toolkit.progress import ProgressBar

BOILER = Bundle.open(Path(__file__).parents[3] / "examples" / "boiler-advisor" / "bundle")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.image"
    write_bundle_image(BOILER, path=path)
    return path


@pytest.fixture(scope="module")
def file() -> Board:
    return host_board_file()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, model: Path, file: Board) -> Path:
    return build_host_board(tmp_path_factory.mktemp("board"), model, file)


@pytest.fixture
def flash(tmp_path: Path, model: Path, file: Board) -> Path:
    first = model_image(model.read_bytes(), BOILER.manifest, file, None)
    return write_host_flash(tmp_path / "flash.bin", file, firmware("1.0.0"), first)


def firmware(version: str) -> bytes:
    return wrap(version.encode() * 9000, "firmware", version=version, security_counter=0, board="host", key=None)


@pytest.mark.parametrize(
    ("step", "share", "said", "steps_again"),
    [
        (
            "upload firmware",
            0.3,
            "The board runs what it ran before: an upload goes",
            {"upload firmware"},
        ),
        ("restart", 0.0, "It was all uploaded and is not kept yet", set()),
        ("restart", 1.0, "It was all uploaded and is not kept yet", set()),
    ],
)
def test_what_is_said_of_a_board_after_ctrl_c_is_so_and_the_same_command_ends_the_update(
    program: Path, flash: Path, file: Board, step: str, share: float, said: str, steps_again: set[str]
) -> None:
    flasher = Flasher(file)
    new = firmware("1.1.0")
    parts = flasher.check(Image("new.image", new), None)
    shares: list[tuple[str, float]] = []

    def interrupt(at: str, done: float) -> None:
        if at == step and done >= share:
            raise KeyboardInterrupt

    with HostBoard(program, flash) as board:
        with pytest.raises(KeyboardInterrupt):
            flasher.flash(parts, board.port, interrupt)
        assert said in flasher.half_done and "Run the same command again" in flasher.half_done
        again = Flasher(file)
        verified = again.flash(parts, board.port, lambda at, done: shares.append((at, done))).verified
        assert "firmware 1.1.0+0" in verified
        assert {at for at, _ in shares} - {"restart"} == steps_again
        if steps_again:
            assert next(done for at, done in shares if at == step and done > 0) > share  # it went on where it stopped


def test_a_second_flashing_of_one_port_is_refused_before_it_writes(
    program: Path, flash: Path, file: Board, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both open and close the port between their requests, and would upload into one slot by turns."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    refused: list[str] = []

    with HostBoard(program, flash) as board:

        def flash_as_well(at: str, done: float) -> None:
            if (at, done) == ("restart", 0.0):  # the port is closed
                second = Flasher(file)
                with pytest.raises(UnreachableError) as error:
                    second.flash(second.check(Image("other", firmware("1.2.0")), None), board.port, lambda *_: None)
                refused.append(str(error.value))

        flasher = Flasher(file)
        parts = flasher.check(Image("new.image", firmware("1.1.0")), None)
        assert "firmware 1.1.0+0" in flasher.flash(parts, board.port, flash_as_well).verified
        (said,) = refused
        assert f"is being flashed by another program (process {os.getpid()}). Nothing was written." in said
        other = flasher.check(Image("other", firmware("1.2.0")), None)  # the first has ended
        assert "firmware 1.2.0+0" in flasher.flash(other, board.port, lambda *_: None).verified


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_that_begins_in_the_middle_goes_on_by_single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of an upload that goes on where it stopped."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressBar() as bar:
        bar.update("upload", 0.0)
        for percent in (70, 71, 72):
            time.sleep(0.15)  # tqdm draws ten times a second
            bar.update("upload", percent / 100)
        assert "70%" in terminal.getvalue() and "71%" in terminal.getvalue() and "72%" in terminal.getvalue()


def test_chat_without_the_bundle_says_that_nothing_holds_the_answers_of_a_model_with_a_schema(
    program: Path, flash: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading = '{"temp_c": 60, "bar": 1.5, "flow_l_min": 12, "window": []}\n'
    with HostBoard(program, flash) as board:
        monkeypatch.setattr(sys, "stdin", io.StringIO(reading))
        assert main(["chat", "--port", board.port, "--max-new", "4"]) == 0
        assert f"`stonechat chat BUNDLE --port {board.port}`" in capsys.readouterr().err
        monkeypatch.setattr(sys, "stdin", io.StringIO(reading))
        assert main(["chat", str(BOILER.path), "--port", board.port]) == 0
        held = capsys.readouterr()
        assert '"severity": "ok"' in held.out and "BUNDLE" not in held.err
