"""What each toolchain wants beside the sources: build files and a README."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["RECIPES", "Recipe"]

NOT_BUILT = "The build with {name} was not tried here: its toolchain comes from its maker alone."
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
QEMU on five emulated boards. {tried} A real board was not tried.

Licence: Apache-2.0; monocypher.c and monocypher.h: BSD-2-Clause or CC0-1.0 (LICENSE-monocypher.txt).
"""


_PICO_PROJECT = """\
cmake_minimum_required(VERSION 3.13)
include($ENV{PICO_SDK_PATH}/external/pico_sdk_import.cmake)
project(board C CXX ASM)
pico_sdk_init()
add_subdirectory(${CMAKE_CURRENT_LIST_DIR}/.. stonechat)
add_executable(board main.c)
target_link_libraries(board pico_stdlib hardware_uart hardware_irq stonechat)
set_target_properties(board PROPERTIES LINKER_LANGUAGE C) # without a C++ library
pico_add_extra_outputs(board)
"""
_PICO_MAIN = """\
/* stonechat on UART 0: what comes is kept by an interrupt while the model computes. */
#include "hardware/irq.h"
#include "hardware/uart.h"
#include "pico/stdlib.h"
#include "stonechat_device.h"

enum { BAUD = 115200, TX_PIN = 0, RX_PIN = 1 };

static volatile uint8_t ring[2048];
static volatile uint32_t in, out;

static void received(void) {
    while (uart_is_readable(uart0)) {
        const uint8_t byte = (uint8_t)uart_getc(uart0);
        const uint32_t next = (in + 1) % sizeof ring;
        if (next == out) continue; /* full: the bridge asks again */
        ring[in] = byte;
        in = next;
    }
}

static void send(const uint8_t *bytes, uint32_t size) { uart_write_blocking(uart0, bytes, size); }
static uint32_t now_ms(void) { return to_ms_since_boot(get_absolute_time()); }

int main(void) {
    uart_init(uart0, BAUD);
    gpio_set_function(TX_PIN, GPIO_FUNC_UART);
    gpio_set_function(RX_PIN, GPIO_FUNC_UART);
    irq_set_exclusive_handler(UART0_IRQ, received);
    irq_set_enabled(UART0_IRQ, true);
    uart_set_irq_enables(uart0, true, false);
    stonechat_begin(send, now_ms);
    for (;;) {
        while (out != in) {
            const uint8_t byte = ring[out];
            out = (out + 1) % sizeof ring;
            stonechat_receive(byte);
        }
        if (!stonechat_step()) tight_loop_contents();
    }
}
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
            update="MCUboot and mcumgr", tried=NOT_BUILT.format(name="Zephyr"),
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
            steps="Put the folder into `components/stonechat` of your project.",
            update="esp_ota_ops", tried=NOT_BUILT.format(name="ESP-IDF"),
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
            steps="`add_subdirectory(stonechat)` and `target_link_libraries(your_program stonechat)`; `example/` is a "
                  "whole program on UART 0 (pins 0 and 1):\n\n"
                  "```sh\nPICO_SDK_PATH=… cmake -S example -B build -DPICO_BOARD=pico2\ncmake --build build\n```",
            update="UF2 over USB",
            tried="`example/` was built with the Pico SDK 2.2.0 and Debian's arm-none-eabi-gcc 12.2 for `pico` and "
                  "`pico2` (`-DPICO_NO_PICOTOOL=1`: without the step from .elf to .uf2).",
        ),
        "CMakeLists.txt": (
            f"add_library(stonechat STATIC\n{_list(names, 'src')}\n)\n"
            "target_include_directories(stonechat PUBLIC src)\n"
            "set_property(TARGET stonechat PROPERTY C_STANDARD 99)\n"
            f"target_compile_options(stonechat PRIVATE -O2 {' '.join(flags)})\n"
        ),
        "example/CMakeLists.txt": _PICO_PROJECT,
        "example/main.c": _PICO_MAIN,
    }  # fmt: skip


def _arduino(names: Sequence[str], flags: Sequence[str]) -> dict[str, str]:
    return {
        "README.md": _README.format(
            name="Arduino", what="a library",
            steps="Put the folder into your `libraries` folder. Arduino sets the compiler's flags itself: answers "
                  f"may differ in the last bits from a PC's unless `{' '.join(flags)}` are among them (platform.txt).",
            update="the board's own upload", tried=NOT_BUILT.format(name="Arduino"),
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
            tried="`stonechat.mk` was built with Debian's arm-none-eabi-gcc 12.2 for a Cortex-M4F, in a Makefile as "
                  "CubeMX writes them, without STM32Cube's own drivers.",
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
