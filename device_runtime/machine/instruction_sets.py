"""Which instructions the runtimes need, so that nobody meets an illegal one.

What the packages really need was found by running a graph of each profile under QEMU with CPUs that lack one thing
after the other (`qemu-user -cpu …`); docs/guides/boards.md has the table.
"""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["NEEDED", "missing_instructions"]

_X86_64_V2 = ("ssse3", "sse4.1", "sse4.2", "popcnt")
# (arch, profile) -> features, and the package that needs them.
NEEDED: dict[tuple[str, str], tuple[tuple[str, ...], str]] = {
    # NumPy 2.4 is built for x86-64-v2 and does not start without. XNNPACK has kernels for less than AVX, but the
    # graph of the pi profile ended with an illegal instruction on a Nehalem, and ran on a Sandy Bridge.
    ("x86_64", "micro"): (_X86_64_V2, "NumPy"),
    ("x86_64", "pi"): ((*_X86_64_V2, "avx"), "LiteRT's CompiledModel"),
    # Armv8.0, which has it always.
    ("aarch64", "micro"): (("neon",), "LiteRT"),
    ("aarch64", "pi"): (("neon",), "LiteRT"),
    # Built for NEON with fused multiply-add, but a micro graph meets none: it ran on a Cortex-A8, and not without NEON.
    ("armv7l", "micro"): (("neon",), "tflite-runtime 2.14"),
}


def missing_instructions(arch: str, profile: str, features: Collection[str], where: str) -> str | None:
    """What a processor lacks to run a profile, in words; None if nothing.

    Args:
        features: by the names of board files.
        where: the processor's name.
    """
    needed, package = NEEDED.get((arch, profile), ((), ""))
    lacking = [feature for feature in needed if feature not in features]
    return f"{package} needs {' and '.join(lacking)}, which {where} does not have" if lacking else None
