"""What `stonechat firmware export` writes compiles as it is, and answers as the library does."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from device_runtime.bundle.folder import Bundle
from device_runtime.errors import ConfigurationError
from device_runtime.micro.sources import FLAGS, WARNINGS
from tests.support.c_objects import object_files
from tests.support.c_programs import compiler, link
from toolkit.firmware.export import export
from toolkit.firmware.recipes import RECIPES

BUNDLE = Path(__file__).parents[3] / "examples" / "boiler-advisor" / "bundle"
MAIN = """
#include <stdio.h>
#include "stonechat_device.h"

static uint32_t clock_ms;
static void send(const uint8_t *bytes, uint32_t size) { fwrite(bytes, 1, size, stdout); }
static uint32_t now_ms(void) { return clock_ms++; }

int main(void) {
    int byte;
    stonechat_begin(send, now_ms);
    while ((byte = getchar()) != EOF) {
        stonechat_receive((uint8_t)byte);
        while (stonechat_step()) {
        }
    }
    return 0;
}
"""


@pytest.mark.parametrize("toolchain", RECIPES)
def test_each_recipe_names_every_source_and_says_what_was_not_tried(toolchain: str, tmp_path: Path) -> None:
    readme, *files = export(Bundle.open(BUNDLE), toolchain, tmp_path / "out")
    tried = readme.read_text()
    assert ("was not tried here" in tried) == (toolchain in ("zephyr", "esp-idf", "arduino"))
    assert "A real board was not tried." in tried
    sources = [path for path in files if path.suffix == ".c" and path.parent.name != "example"]
    build_files = "\n".join(path.read_text() for path in files if path.suffix in (".txt", ".mk"))
    assert len(sources) > 35
    if toolchain != "arduino":  # which takes all that is in src/
        assert all(f"/{path.name}" in build_files for path in sources)
    with pytest.raises(ConfigurationError, match="is there already"):
        export(Bundle.open(BUNDLE), toolchain, tmp_path / "out")


def test_the_sources_compile_without_a_warning_and_answer(tmp_path: Path) -> None:
    _, *files = export(Bundle.open(BUNDLE), "pico-sdk", tmp_path / "out")
    (tmp_path / "main.c").write_text(MAIN)
    sources = [path for path in files if path.suffix == ".c" and path.parent.name != "example"]
    third_party = [path for path in sources if path.name == "monocypher.c"]
    own = [path for path in sources if path not in third_party]
    objects = object_files(
        compiler(), [*WARNINGS, *FLAGS, f"-I{tmp_path / 'out' / 'src'}"], [*own, tmp_path / "main.c"]
    )
    link(tmp_path / "board", [*objects, *object_files(compiler(), [*FLAGS, "-w"], third_party)])
    said = subprocess.run(
        [tmp_path / "board"], input=b"/schema 1\nhello\n/last\n", capture_output=True, timeout=60
    ).stdout
    assert b"stonechat: ready" in said and b"confidence" in said
    shutil.rmtree(tmp_path / "out")


def _built(command: list[str], elf: Path, folder: Path) -> None:
    """Run a build; its program has to be one of Arm's."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert elf.read_bytes()[18:20] == b"\x28\0"  # EM_ARM


MAKEFILE = """\
C_SOURCES = main.c
CFLAGS = -mcpu=cortex-m4 -mthumb -mfpu=fpv4-sp-d16 -mfloat-abi=hard -O1 -ffunction-sections -fdata-sections
include Middlewares/Third_Party/stonechat/stonechat.mk
OBJECTS = $(addprefix build/,$(notdir $(C_SOURCES:.c=.o)))
vpath %.c $(sort $(dir $(C_SOURCES)))
build/board.elf: $(OBJECTS) ; arm-none-eabi-gcc $(CFLAGS) $^ -specs=nosys.specs -Wl,--gc-sections -lm -o $@
build/%.o: %.c ; @mkdir -p build; arm-none-eabi-gcc -c $(CFLAGS) $(C_INCLUDES) $< -o $@
"""


@pytest.mark.slow  # half a minute
def test_the_recipe_for_stm32cube_builds_in_a_makefile_such_as_cubemx_writes(tmp_path: Path) -> None:
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("arm-none-eabi-gcc is not installed")
    export(Bundle.open(BUNDLE), "stm32cube", tmp_path / "Middlewares" / "Third_Party" / "stonechat")
    (tmp_path / "Makefile").write_text(MAKEFILE)
    (tmp_path / "main.c").write_text(MAIN)
    _built(["make", "-j2", "build/board.elf"], tmp_path / "build" / "board.elf", tmp_path)


@pytest.mark.slow  # a minute
@pytest.mark.parametrize("board", ["pico", "pico2"])
def test_the_example_for_the_pico_sdk_builds(board: str, tmp_path: Path) -> None:
    if "PICO_SDK_PATH" not in os.environ or shutil.which("cmake") is None:
        pytest.skip("PICO_SDK_PATH does not name the Pico SDK, or cmake is not installed")
    export(Bundle.open(BUNDLE), "pico-sdk", tmp_path / "stonechat")
    configure = ["cmake", "-S", "stonechat/example", "-B", "build", f"-DPICO_BOARD={board}", "-DPICO_NO_PICOTOOL=1"]
    subprocess.run(configure, cwd=tmp_path, check=True, capture_output=True)
    _built(["cmake", "--build", "build", "-j2"], tmp_path / "build" / "board.elf", tmp_path)
