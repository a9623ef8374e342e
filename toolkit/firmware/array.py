"""A model image as C source, for a firmware that carries its model in one binary instead of apart."""

from __future__ import annotations

from pathlib import Path

from device_runtime.bundle.work_place import whole_file

__all__ = ["write_array"]

_HEADER = """/* A model image of stonechat, for sc_open: it is read where the linker puts it. */
#ifndef MODEL_IMAGE_H
#define MODEL_IMAGE_H

#include <stddef.h>
#include <stdint.h>

extern const uint32_t model_image[];
extern const size_t model_image_bytes;

#endif
"""
_WORDS_A_LINE = 8


def write_array(image: Path, folder: Path) -> tuple[Path, Path]:
    """Write `model_image.c` and `model_image.h`.

    The array is of 32-bit words, which compilers take several times faster than bytes; a target is little-endian, as
    the image is.

    Returns:
        source and header.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source, header = folder / "model_image.c", folder / "model_image.h"
    with open(image, "rb") as data, whole_file(source) as write:
        write('#include "model_image.h"\n\n')
        write("__attribute__((aligned(16))) const uint32_t model_image[] = {\n")
        while block := data.read(4 * _WORDS_A_LINE):
            block += bytes(-len(block) % 4)
            words = (int.from_bytes(block[i : i + 4], "little") for i in range(0, len(block), 4))
            write("    " + " ".join(f"{word:#010x}," for word in words) + "\n")
        write(f"}};\nconst size_t model_image_bytes = {image.stat().st_size};\n")
    with whole_file(header) as write:
        write(_HEADER)
    return source, header
