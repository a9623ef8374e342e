"""What `stonechat firmware` reads and refuses before a compiler runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from boards import load_board
from device_runtime.errors import ConfigurationError
from toolkit.cli import main
from toolkit.firmware.build import firmware_of
from toolkit.firmware.size import Size, read_sizes
from toolkit.firmware.toolchain import toolchain_for

MAP = """Memory Configuration
 .text  0x1 0x999 ignored.o

Linker script and memory map

.text           0x00000000     0x1234
 .vectors       0x00000000       0x40 build/ports-start_arm.o
 .text.sc_open  0x00000040      0x100 build/runtime-engine.o
 .text.a_function_with_a_name_of_its_own
                0x00000140       0x20 build/tokenizer-bpe.o
 .text.memcpy   0x00000160       0x30 /usr/lib/libc.a(memcpy.o)

.data           0x20000000        0x8 load address 0x00000200
 .data.x        0x20000000        0x8 build/ports-console.o

.bss            0x20000008      0x400
 .bss.arena     0x20000010      0x400 build/ports-console.o

.stack          0x20000410     0x3000
"""


def test_flash_and_ram_by_part_come_from_the_linkers_map(tmp_path: Path) -> None:
    (tmp_path / "firmware.map").write_text(MAP)
    assert read_sizes(tmp_path / "firmware.map") == [
        Size("runtime", 0x100, 0),
        Size("ports", 0x48, 0x408),
        Size("libraries", 0x30, 0),
        Size("tokenizer", 0x20, 0),
        Size("stack", 0, 0x3000),
    ]


def test_a_board_without_firmware_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="builds no firmware for esp32-s3: its file has no `firmware:` block"):
        firmware_of(load_board("esp32-s3"))
    with pytest.raises(ConfigurationError, match="no firmware for the core esp32-c3; it does for cortex-m4"):
        toolchain_for(load_board("esp32-c3"))


def test_a_path_that_is_no_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["firmware", "size", str(tmp_path), "--board", "mps2-an386"]) == 2
    assert "is not a bundle" in capsys.readouterr().err


def test_an_encoder_is_refused_as_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = Path(__file__).parents[2] / "data" / "encoders" / "bert-classify"
    assert main(["convert", str(encoder), "--profile", "micro", "--fast", "-o", str(tmp_path / "encoder")]) == 0
    build = ["firmware", "build", str(tmp_path / "encoder"), "--board", "mps2-an386", "-o", str(tmp_path / "out")]
    assert main(build) == 2
    assert "it chooses labels and writes nothing" in capsys.readouterr().err
