"""Emulated microcontrollers answer on their serial line as the engine does on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from boards import load_board
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.prompts import PromptEncoder, tokenizer_of
from device_runtime.errors import BackendError
from device_runtime.micro.library import CEngine
from toolkit.cli import main
from toolkit.firmware.build import Build, build_firmware, image_of
from toolkit.firmware.qemu import Emulator
from toolkit.firmware.size import read_sizes
from toolkit.firmware.toolchain import toolchain_for

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
    assert main(["convert", str(CHECKPOINT), "--profile", "micro", "--context", "48", "--fast", "-o", str(folder)]) == 0
    return Bundle.open(folder)


def build(bundle: Bundle, board_id: str, folder: Path) -> Build:
    needs(board_id)
    return build_firmware(bundle, load_board(board_id), folder)


def on_this_machine(bundle: Bundle, text: str) -> str:
    """The answer of the same engine, its tokens from Python's libraries."""
    tokenizer = tokenizer_of(bundle)
    engine, known = CEngine(image_of(bundle)), len(bundle.manifest.prefix_tokens)
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
    board = load_board(board_id)
    with Emulator(build(bundle, board_id, tmp_path), board) as emulator:
        assert "ready, context 48" in emulator.wait_until_ready()
        for prompt in PROMPTS:
            assert b"".join(emulator.ask(prompt)).decode() == on_this_machine(bundle, prompt)


def test_a_damaged_image_is_refused_on_the_console(bundle: Bundle, tmp_path: Path) -> None:
    built = build(bundle, "mps2-an386", tmp_path)
    image = bytearray(built.image.read_bytes())
    image[len(image) // 2] ^= 1
    damaged = tmp_path / "damaged.image"
    damaged.write_bytes(image)
    other = Build(built.elf, built.map, damaged, built.image_address, built.arena_bytes, built.kv_cache_bytes)
    with (
        pytest.raises(BackendError, match="the image is damaged"),
        Emulator(other, load_board("mps2-an386")) as emulator,
    ):
        emulator.wait_until_ready()


def test_code_has_at_most_48_kib_and_the_map_accounts_for_all_of_it(bundle: Bundle, tmp_path: Path) -> None:
    built = build(bundle, "mps2-an386", tmp_path)
    sizes = {size.part: size for size in read_sizes(built.map)}
    assert {"kernels", "runtime", "tokenizer", "chat", "ports", "stack"} <= sizes.keys()
    assert sum(size.flash_bytes for size in sizes.values()) < 48 * 1024
    assert sizes["ports"].ram_bytes > built.arena_bytes + built.kv_cache_bytes
    assert toolchain_for(load_board("mps2-an386")).compiler == "arm-none-eabi-gcc"
