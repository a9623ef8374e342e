"""The firmware's sources and a model as a component of another toolchain.

What is platform's own (the serial port, a clock) stays with the user, who calls four functions of `stonechat_device.h`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from device_runtime import __version__
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.work_place import made_folders
from device_runtime.errors import ConfigurationError
from device_runtime.micro.library import CEngine
from device_runtime.micro.sources import (
    FIRMWARE_INCLUDES,
    FLAGS,
    INCLUDES,
    THIRD_PARTY,
    engine_sources,
    firmware_sources,
)
from toolkit.firmware.array import write_array
from toolkit.firmware.images import image_for
from toolkit.firmware.recipes import RECIPES

__all__ = ["export"]

_SLACK_BYTES = 1024  # the host's records have wider pointers than a microcontroller's

_DEVICE_H = """\
/* stonechat on your board: give it the bytes of a serial line, and time. docs/reference/serial-protocol.md says what it
 * speaks; a terminal sees its console. */
#ifndef STONECHAT_DEVICE_H
#define STONECHAT_DEVICE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Once: `send` writes to the line, and `now_ms` counts since the start. Proves the model, and says who this is. */
void stonechat_begin(void (*send)(const uint8_t *bytes, uint32_t size), uint32_t (*now_ms)(void));

/* A byte has come. Receive by interrupt or DMA into a buffer of 2,048 bytes, and hand it on from the main loop. */
void stonechat_receive(uint8_t byte);

/* In the main loop, after all bytes that have come: one step of the model. Returns 0 when there was nothing to do. */
int stonechat_step(void);

/* Called often while the model computes: feed a watchdog there. May be NULL. */
void stonechat_on_progress(void (*call)(void));

#ifdef __cplusplus
}
#endif
#endif
"""
_DEVICE_C = """\
#include "stonechat_device.h"

#include "device.h"
#include "model_image.h"

enum {{ CONTEXT = {context}, VOCABULARY = {vocabulary}, ARENA_BYTES = {arena}, KV_BYTES = {kv_cache} }};
enum {{ WORK_BYTES = 8192, PROMPT_BYTES = 4 * CONTEXT > 2048 ? 4 * CONTEXT : 2048,
       ANSWER_BYTES = 8 * CONTEXT > 1024 ? 8 * CONTEXT : 1024 }};

static union {{
    uint64_t first;
    uint8_t bytes[ARENA_BYTES + 16];
}} arena;
static union {{
    uint64_t first;
    uint8_t bytes[KV_BYTES + 16];
}} kv_cache;
static uint32_t work[WORK_BYTES / 4], prompt_tokens[CONTEXT], held[CONTEXT];
static uint8_t prompt[PROMPT_BYTES], answer[ANSWER_BYTES];
static float logits[VOCABULARY]; /* for sampling and schemas */
static sc_device device;
static void (*write_line)(const uint8_t *bytes, uint32_t size);
static void (*progress)(void);

static void *aligned(uint8_t *at) {{ return at + (16 - (uintptr_t)at % 16) % 16; }}

static void send(void *context, const uint8_t *bytes, uint32_t size) {{
    (void)context;
    write_line(bytes, size);
    if (progress != NULL) progress();
}}

static void after_call(uint32_t call, const void *at, void *context) {{
    (void)call;
    (void)at;
    (void)context;
    if (progress != NULL) progress();
}}

void stonechat_begin(void (*send_bytes)(const uint8_t *bytes, uint32_t size), uint32_t (*now_ms)(void)) {{
    sc_generator_memory *m = &device.generator.memory;
    write_line = send_bytes;
    device.board = "{toolchain}";
    device.firmware = "{version}";
    device.send = send;
    device.now_ms = now_ms;
    device.prompt = prompt;
    device.prompt_room = sizeof prompt;
    device.answer = answer;
    device.answer_room = sizeof answer;
    device.image = (const uint8_t *)model_image;
    device.image_room = (uint32_t)model_image_bytes;
    m->arena = aligned(arena.bytes);
    m->arena_bytes = ARENA_BYTES;
    m->kv_cache = aligned(kv_cache.bytes);
    m->kv_bytes = KV_BYTES;
    m->prompt = prompt_tokens;
    m->held = held;
    m->context = CONTEXT;
    m->logits = logits;
    m->vocabulary = VOCABULARY;
    m->work = work;
    m->work_bytes = sizeof work;
    device.generator.after_call = after_call;
    sc_device_begin(&device);
}}

void stonechat_receive(uint8_t byte) {{ sc_device_receive(&device, byte); }}

int stonechat_step(void) {{
    if (!sc_device_is_working(&device)) return 0;
    sc_device_step(&device);
    return 1;
}}

void stonechat_on_progress(void (*call)(void)) {{ progress = call; }}
"""


def export(bundle: Bundle, toolchain: str, folder: Path, schemas: Sequence[Mapping[str, Any]] = ()) -> list[Path]:
    """Write a component into a new folder; the first of the returned files is its README.

    Raises:
        ConfigurationError: the folder is there already, or no recipe has this name.
        BundleError: the bundle is not for microcontrollers.
    """
    recipe = RECIPES.get(toolchain)
    if recipe is None:
        raise ConfigurationError(f"there is no recipe for {toolchain!r}; there are {', '.join(RECIPES)}.")
    if folder.exists():
        raise ConfigurationError(f"{folder} is there already; name a new folder with -o.")
    with made_folders(folder.parent), tempfile.TemporaryDirectory(prefix=".stonechat-", dir=folder.parent) as work:
        made = Path(work) / "component"
        source = made / recipe.sources
        source.mkdir(parents=True)
        image = image_for(bundle, Path(work), schemas, current=True)
        needs = CEngine(image).needs
        for path in (*engine_sources(), *firmware_sources(), *_headers()):
            shutil.copyfile(path, source / path.name)
        for path in (THIRD_PARTY / "LICENSE-monocypher.txt",):
            shutil.copyfile(path, made / path.name)
        (source / "stonechat_device.h").write_text(_DEVICE_H, encoding="ascii")
        device = _DEVICE_C.format(
            context=needs.context, vocabulary=needs.vocabulary, arena=needs.arena_bytes + _SLACK_BYTES,
            kv_cache=max(16, needs.kv_cache_bytes), toolchain=toolchain, version=__version__,
        )  # fmt: skip
        (source / "stonechat_device.c").write_text(device, encoding="ascii")
        write_array(image, source)
        names = sorted(path.name for path in source.glob("*.c"))
        flags = [flag for flag in FLAGS if flag.startswith("-f")]
        for name, text in recipe.files(names, flags).items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_text(text, encoding="utf-8")
        made.rename(folder)
    rest = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    return [folder / "README.md", *rest]


def _headers() -> list[Path]:
    return [path for include in (*INCLUDES, *FIRMWARE_INCLUDES) for path in sorted(include.glob("*.h"))]
