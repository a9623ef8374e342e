"""What `stonechat firmware export` writes compiles as it is, and answers as the library does."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from c_objects import object_files
from c_programs import compiler, link

from device_runtime.bundle.folder import Bundle
from device_runtime.errors import ConfigurationError
from device_runtime.micro.sources import FLAGS, WARNINGS
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
    assert "was not tried here" in readme.read_text()
    sources = [path for path in files if path.suffix == ".c"]
    build_files = "\n".join(path.read_text() for path in files if path.suffix in (".txt", ".mk"))
    assert len(sources) > 35
    if toolchain != "arduino":  # which takes all that is in src/
        assert all(f"/{path.name}" in build_files for path in sources)
    with pytest.raises(ConfigurationError, match="is there already"):
        export(Bundle.open(BUNDLE), toolchain, tmp_path / "out")


def test_the_sources_compile_without_a_warning_and_answer(tmp_path: Path) -> None:
    _, *files = export(Bundle.open(BUNDLE), "pico-sdk", tmp_path / "out")
    (tmp_path / "main.c").write_text(MAIN)
    sources = [path for path in files if path.suffix == ".c"]
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
