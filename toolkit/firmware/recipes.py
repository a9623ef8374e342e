"""What each toolchain wants beside the sources: build files and a README."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["RECIPES", "Recipe"]

_README = """\
# stonechat for {name}

The engine, the serial protocol, the console and one model, as {what}.

{steps}

In your program:

```c
#include "stonechat_device.h"

stonechat_begin(write_to_uart, milliseconds);       /* your functions */
for (;;) {{
    while (a_byte_has_come()) stonechat_receive(the_byte());
    if (!stonechat_step()) wait_for_interrupt();
}}
```

Receive by interrupt or DMA into a buffer of 2,048 bytes: a step of the model takes its time, and nothing else empties
the UART. `stonechat_on_progress` is the place to feed a watchdog. Then, from a computer:

```sh
stonechat chat --port /dev/ttyACM0
stonechat bridge FLEET.yaml --device ID --port /dev/ttyACM0
```

Updates of firmware and model are the platform's own here ({update}); `update/` of stonechat has slots and an SMP server
for those who want to port them (`update.h`, `smp.h` are among the sources).

**What was tried:** the sources are compiled with a C99 compiler of a PC by stonechat's tests, and the same files run in
QEMU on five emulated boards. The build with {name} was not tried here, and neither was a real board.

Licence: Apache-2.0; monocypher.c and monocypher.h: BSD-2-Clause or CC0-1.0 (LICENSE-monocypher.txt).
"""


@dataclass(frozen=True)
class Recipe:
    """One toolchain."""

    sources: str  # the folder for the sources
    files: Callable[[Sequence[str], Sequence[str]], Mapping[str, str]]  # of C files' names and compiler flags


def _list(names: Sequence[str], folder: str, indent: str = "    ") -> str:
    return "\n".join(f"{indent}{folder}/{name}" for name in names)


def _zephyr(names: Sequence[str], flags: Sequence[str]) -> dict[str, str]:
    return {
        "README.md": _README.format(
            name="Zephyr", what="a module",
            steps="Add the folder to `ZEPHYR_EXTRA_MODULES` (or to west.yml) and set `CONFIG_STONECHAT=y` in prj.conf.",
            update="MCUboot and mcumgr",
        ),
        "zephyr/module.yml": "name: stonechat\nbuild:\n  cmake: .\n  kconfig: Kconfig\n",
        "Kconfig": 'config STONECHAT\n\tbool "stonechat: a language model"\n\tselect FPU if CPU_HAS_FPU\n',
        "CMakeLists.txt": (
            "if(CONFIG_STONECHAT)\n"
            "  zephyr_library()\n"
            f"  zephyr_library_sources(\n{_list(names, 'src')}\n  )\n"
            "  zephyr_include_directories(src)\n"
            f"  zephyr_library_compile_options({' '.join(flags)})\n"
            "endif()\n"
        ),
    }  # fmt: skip


def _esp_idf(names: Sequence[str], flags: Sequence[str]) -> dict[str, str]:
    return {
        "README.md": _README.format(
            name="ESP-IDF", what="a component",
            steps="Put the folder into `components/stonechat` of your project.", update="esp_ota_ops",
        ),
        "CMakeLists.txt": (
            f"idf_component_register(\n  SRCS\n{_list(names, 'src')}\n  INCLUDE_DIRS src\n)\n"
            f"target_compile_options(${{COMPONENT_LIB}} PRIVATE {' '.join(flags)})\n"
        ),
        "idf_component.yml": 'version: "0.1.0"\ndescription: A language model on a microcontroller\n'
                             'dependencies:\n  idf: ">=5.0"\n',
    }  # fmt: skip


def _pico_sdk(names: Sequence[str], flags: Sequence[str]) -> dict[str, str]:
    return {
        "README.md": _README.format(
            name="the Pico SDK", what="a CMake library",
            steps="`add_subdirectory(stonechat)` and `target_link_libraries(your_program stonechat)`.",
            update="UF2 over USB",
        ),
        "CMakeLists.txt": (
            f"add_library(stonechat STATIC\n{_list(names, 'src')}\n)\n"
            "target_include_directories(stonechat PUBLIC src)\n"
            "set_property(TARGET stonechat PROPERTY C_STANDARD 99)\n"
            f"target_compile_options(stonechat PRIVATE -O2 {' '.join(flags)})\n"
        ),
    }  # fmt: skip


def _arduino(names: Sequence[str], flags: Sequence[str]) -> dict[str, str]:
    return {
        "README.md": _README.format(
            name="Arduino", what="a library",
            steps="Put the folder into your `libraries` folder. Arduino sets the compiler's flags itself: answers "
                  f"may differ in the last bits from a PC's unless `{' '.join(flags)}` are among them (platform.txt).",
            update="the board's own upload",
        ),
        "library.properties": (
            "name=Stonechat\nversion=0.1.0\nauthor=stonechat\nmaintainer=stonechat\n"
            "sentence=A small language model on a microcontroller\nparagraph=\ncategory=Other\nurl=\n"
            "architectures=*\nincludes=stonechat_device.h\n"
        ),
        "examples/Console/Console.ino": (
            "#include <stonechat_device.h>\n\n"
            "static void send(const uint8_t *bytes, uint32_t size) { Serial.write(bytes, size); }\n"
            "static uint32_t now_ms() { return millis(); }\n\n"
            "void setup() {\n  Serial.begin(115200);\n  stonechat_begin(send, now_ms);\n}\n\n"
            "void loop() {\n  while (Serial.available()) stonechat_receive(Serial.read());\n  stonechat_step();\n}\n"
        ),
    }  # fmt: skip


def _stm32cube(names: Sequence[str], flags: Sequence[str]) -> dict[str, str]:
    return {
        "README.md": _README.format(
            name="STM32Cube", what="a folder of middleware",
            steps="Put the folder into `Middlewares/Third_Party/stonechat`, add `Src` to the include and source paths, "
                  f"and `{' '.join(flags)}` to the compiler's flags; with CubeMX's Makefile: `include stonechat.mk`.",
            update="the ROM's boot loader",
        ),
        "stonechat.mk": (
            "STONECHAT := $(dir $(lastword $(MAKEFILE_LIST)))\n"
            "C_SOURCES += \\\n" + " \\\n".join(f"  $(STONECHAT)Src/{name}" for name in names) + "\n"
            "C_INCLUDES += -I$(STONECHAT)Src\n"
            f"CFLAGS += {' '.join(flags)}\n"
        ),
    }  # fmt: skip


RECIPES: Mapping[str, Recipe] = {
    "zephyr": Recipe("src", _zephyr),
    "esp-idf": Recipe("src", _esp_idf),
    "pico-sdk": Recipe("src", _pico_sdk),
    "arduino": Recipe("src", _arduino),
    "stm32cube": Recipe("Src", _stm32cube),
}
