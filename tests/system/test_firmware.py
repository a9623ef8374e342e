"""Emulated microcontrollers answer on their serial line as the engine does on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from boards import Board, load_board
from device_runtime.bridge.link import Link
from device_runtime.bridge.model import SerialModel
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import MANIFEST
from device_runtime.engine.prompts import PromptEncoder, tokenizer_of
from device_runtime.errors import BackendError, FlashError, UnreachableError
from device_runtime.micro.library import CEngine
from device_runtime.tasks.answering import Answerer
from toolkit.cli import main
from toolkit.demo import micro as demo
from toolkit.firmware.build import Build, build_firmware
from toolkit.firmware.qemu import Emulator
from toolkit.firmware.size import read_sizes
from toolkit.firmware.slots import firmware_image, model_image, write_flash
from toolkit.firmware.toolchain import toolchain_for
from toolkit.flash.images import Image
from toolkit.flash.smp import Flasher

pytestmark = pytest.mark.slow

CHECKPOINT = Path(__file__).parent.parent / "data" / "checkpoints" / "gqa-tied"
BOARDS = ["mps2-an386", "mps2-an500", "mps3-an547", "stm32f405", "qemu-riscv32"]
PROMPTS = ["Hello, pump", "  Überdruck im Kessel: 3.5 bar <|im_end|> ☺"]


def needs(board_id: str) -> None:
    """Skip where a compiler or QEMU is missing."""
    riscv = board_id == "qemu-riscv32"
    for program in ("riscv64-unknown-elf-gcc", "qemu-system-riscv32") if riscv else (
        "arm-none-eabi-gcc", "qemu-system-arm"
    ):  # fmt: skip
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("firmware") / "bundle"
    assert main(["convert", str(CHECKPOINT), "--profile", "micro", "--context", "64", "--fast", "-o", str(folder)]) == 0
    return Bundle.open(folder)


def build(bundle: Bundle, board_id: str, folder: Path) -> Build:
    needs(board_id)
    return build_firmware(bundle.path / "model.image", load_board(board_id), folder)


def flash_of(bundle: Bundle, built: Build, board: Board, folder: Path) -> Path | None:
    """The flash of a board with slots."""
    if built.program is None:
        return None
    path = folder / "flash.bin"
    model = model_image(built.image.read_bytes(), bundle.manifest, board)
    write_flash(path, board, firmware_image(built, board), model)
    return path


def on_this_machine(bundle: Bundle, text: str) -> str:
    """The answer of the same engine, its tokens from Python's libraries."""
    tokenizer = tokenizer_of(bundle)
    engine, known = CEngine(bundle.path / "model.image"), len(bundle.manifest.prefix_tokens)
    tokens = PromptEncoder(bundle.manifest, tokenizer).encode([{"role": "user", "content": text}])
    for token in tokens[known:]:
        engine.feed(token)
    answer: list[int] = []
    while (token := int(engine.logits.argmax())) not in bundle.manifest.tokenizer.eos_ids:
        answer.append(token)
        if len(tokens) + len(answer) > bundle.manifest.context:
            break
        engine.feed(token)
    return tokenizer.decode(answer)


@pytest.mark.parametrize("board_id", BOARDS)
def test_a_board_answers_as_this_machine_does(bundle: Bundle, board_id: str, tmp_path: Path) -> None:
    board, built = load_board(board_id), build(bundle, board_id, tmp_path)
    with Emulator(built, board, flash_of(bundle, built, board, tmp_path)) as emulator:
        assert "ready, context 64" in emulator.wait_until_ready()
        for prompt in PROMPTS:
            assert b"".join(emulator.ask(prompt)).decode() == on_this_machine(bundle, prompt)
        emulator.disconnect()
        for own in (bundle, None):  # in tokens, in text
            model = SerialModel(Link(emulator.url), own).open(20)
            answer = model.generate([{"role": "user", "content": PROMPTS[0]}])
            assert "".join(answer) == on_this_machine(bundle, PROMPTS[0])
            model.close()
        emulator.reset()
        assert "ready" in emulator.wait_until_ready()
        assert b", start 2" in b"".join(emulator.ask("/status"))


def test_the_line_of_a_board_can_be_opened_before_qemu_has_started(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the program that connects may be there first; here QEMU takes two seconds more."""
    board, built = load_board("mps2-an386"), build(bundle, "mps2-an386", tmp_path)
    late = tmp_path / "bin" / "qemu-system-arm"
    late.parent.mkdir()
    late.write_text(f'#!/bin/sh\nsleep 2\nexec {shutil.which("qemu-system-arm")} "$@"\n')
    late.chmod(0o755)
    monkeypatch.setenv("PATH", str(late.parent), prepend=":")
    with Emulator(built, board, flash_of(bundle, built, board, tmp_path)) as emulator:
        model = SerialModel(Link(emulator.url), bundle).open(60)
        assert "".join(model.generate([{"role": "user", "content": PROMPTS[0]}])) == on_this_machine(bundle, PROMPTS[0])
        model.close()


def test_a_damaged_image_is_refused_on_the_console(bundle: Bundle, tmp_path: Path) -> None:
    board, built = load_board("mps2-an386"), build(bundle, "mps2-an386", tmp_path)
    image = bytearray(built.image.read_bytes())
    image[len(image) // 2] ^= 1
    flash = tmp_path / "flash.bin"
    write_flash(flash, board, firmware_image(built, board), model_image(bytes(image), bundle.manifest, board))
    with (
        pytest.raises(BackendError, match="the image is damaged"),
        Emulator(built, board, flash) as emulator,
    ):
        emulator.wait_until_ready()


def test_a_model_is_flashed_over_the_emulated_line_and_the_power_may_go(bundle: Bundle, tmp_path: Path) -> None:
    """The whole way: smpclient, the UART by interrupt, slots in a file; QEMU is killed in the middle of uploads."""
    board, built = load_board("mps2-an386"), build(bundle, "mps2-an386", tmp_path)
    flash = flash_of(bundle, built, board, tmp_path)
    assert flash is not None
    flasher = Flasher(board)
    named = replace(bundle.manifest, version="2.0.0")
    parts = flasher.check(None, Image("model", model_image(built.image.read_bytes(), named, board)))
    for share in (0.1, 0.6):
        with Emulator(built, board, flash) as emulator:

            def cut(step: str, done: float, emulator: Emulator = emulator, share: float = share) -> None:
                if step == "upload model" and done >= share:
                    emulator.process.kill()

            with pytest.raises((FlashError, UnreachableError)):
                flasher.flash(parts, emulator.url, cut)
        with Emulator(built, board, flash) as emulator:
            assert "ready" in emulator.wait_until_ready()
            assert b"model slot 0" in b"".join(emulator.ask("/status"))
    with Emulator(built, board, flash) as emulator:
        assert "the model 2.0.0+0" in flasher.flash(parts, emulator.url, lambda step, done: None).verified
        assert b"model slot 1" in b"".join(emulator.ask("/status"))
        assert b"".join(emulator.ask(PROMPTS[0])).decode() == on_this_machine(bundle, PROMPTS[0])


def test_firmware_and_model_are_flashed_onto_a_board_that_run_serves(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two commands as they are typed, in two processes; then the board says its versions, and answers."""
    needs("mps2-an386")
    new = tmp_path / "bundle"
    shutil.copytree(bundle.path, new)
    (new / MANIFEST).write_text(replace(bundle.manifest, version="2.0.0").to_json())
    on_board = ["--board", "mps2-an386"]
    built = ["firmware", "build", str(new), *on_board, "-o", str(tmp_path / "new"), "--firmware-version", "1.2.0"]
    assert main(built) == 0
    command = [sys.executable, "-m", "toolkit", "firmware", "run", str(bundle.path), *on_board, "--serve", "0"]
    with subprocess.Popen([*command, "-o", str(tmp_path / "old")], stdout=subprocess.PIPE, text=True) as board:
        try:
            assert board.stdout is not None
            url = board.stdout.readline().strip()
            capsys.readouterr()
            firmware = str(tmp_path / "new" / "mps2-an386" / "firmware.image")
            assert main(["flash", firmware, "--model", str(new), *on_board, "--port", url, "--json"]) == 0
            said = json.loads(capsys.readouterr().out)
            assert [part["what"] for part in said["written"]] == ["firmware", "model"]
            assert "the firmware 1.2.0+0" in said["verified"] and "the model 2.0.0+0" in said["verified"]
            model = SerialModel(Link(url)).open(20)
            assert model.info()["firmware"] == "1.2.0"
            answer = model.generate([{"role": "user", "content": PROMPTS[0]}])
            assert "".join(answer) == on_this_machine(bundle, PROMPTS[0])
            model.close()
        finally:
            board.terminate()
            assert board.wait(20) != 0
    with pytest.raises(UnreachableError):  # and QEMU has ended with it
        Link(url).open(0.5)


def test_a_served_board_whose_qemu_was_killed_says_how_it_ended(bundle: Bundle, tmp_path: Path) -> None:
    needs("mps2-an386")
    run = ["firmware", "run", str(bundle.path), "--board", "mps2-an386", "--serve", "0", "-o", str(tmp_path)]
    command = [sys.executable, "-m", "toolkit", *run]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None and served.stdout.readline().startswith("socket://")
        (qemu,) = Path(f"/proc/{served.pid}/task/{served.pid}/children").read_text().split()
        os.kill(int(qemu), signal.SIGKILL)
        _, said = served.communicate(timeout=20)
    assert served.returncode == 1 and said.endswith("stonechat: qemu-system-arm has ended: by signal 9.\n")


def test_the_boiler_demo_answers_over_mqtt_as_the_library_does() -> None:
    needs("mps3-an547")
    if shutil.which("mosquitto") is None:
        pytest.skip("mosquitto is not installed")
    answerer = Answerer.open(demo.EXAMPLE / "bundle")
    shown = list(demo.show("mps3-an547", 3))
    assert len(shown) == 3
    for reading, answer in shown:
        assert answer["answer"] == answerer.answer(reading).answer
        assert set(answer["confidence"]) == {"severity", "cause"}
        assert all(0 < share <= 1 for share in answer["confidence"].values())


def test_the_engine_has_at_most_48_kib_and_the_map_accounts_for_all_of_it(bundle: Bundle, tmp_path: Path) -> None:
    """The engine with tokenizer and sampler; the serial protocol, updates and signatures come on top."""
    built = build(bundle, "mps2-an386", tmp_path)
    sizes = {size.part: size for size in read_sizes(built.map)}
    assert {"kernels", "runtime", "tokenizer", "chat", "firmware", "update", "third_party", "stack"} <= sizes.keys()
    engine = ("kernels", "runtime", "tokenizer", "chat", "sampler", "schema")
    assert sum(sizes[part].flash_bytes for part in engine) < 48 * 1024
    assert sizes["firmware"].ram_bytes > built.arena_bytes + built.kv_cache_bytes
    assert toolchain_for(load_board("mps2-an386")).compiler == "arm-none-eabi-gcc"
