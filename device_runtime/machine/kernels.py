"""Which of XNNPACK's matmul kernels a processor gets, and so how fast its int8 and int4 weights can be.

After XNNPACK's gemm-config (August 2026), as it is in the packages of LiteRT 2.3: the first that the processor has
all features of is taken.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["LITERT", "LITERT_PACKAGE", "KernelFamily", "better_package", "kernel_family"]

LITERT = (2, 3)  # which has all of these, and whose C interface the engine calls; setup.cfg asks for it too
LITERT_PACKAGE = f"ai-edge-litert~={LITERT[0]}.{LITERT[1]}.0"


@dataclass(frozen=True)
class KernelFamily:
    """Kernels for one kind of processor."""

    name: str  # "AVX2"
    like: str  # processors that get it
    features: tuple[str, ...]  # that it needs, by the names of board files or of /proc/cpuinfo
    int8: str  # what multiplies int8 weights
    int4: str  # and int4 weights in blocks
    rows: int = 4  # that it multiplies at once: so many tokens take little more time than one with int8 weights
    # Times that a run for four tokens takes as long as one for one, with int4 weights; with int8 it is about 1.2.
    four_by_int4: float = 3.2


_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
_FAMILIES = {
    "x86_64": (
        KernelFamily("AVX-512 VNNI", "Zen 4, Ice Lake", (*_AVX512, "avx512_vnni"), "vpdpbusd, 64 rows", "AVX2", 5, 1.9),
        KernelFamily("AVX-VNNI", "Alder Lake, N100", ("avx2", "avx_vnni"), "vpdpbusd, 8 rows", "AVX2"),
        KernelFamily("AVX-512", "Skylake-X", _AVX512, "vpmaddwd, 16 rows", "AVX2"),
        KernelFamily("AVX2", "Zen 3, Haswell", ("avx2", "fma"), "vpmaddwd, 8 rows", "AVX2"),
        KernelFamily("AVX", "Sandy Bridge", ("avx",), "pmaddwd, 4 rows", "SSE4.1"),
    ),
    "aarch64": (
        KernelFamily("NEON i8mm", "Cortex-X2, A510", ("neon", "i8mm"), "smmla", "smmla"),
        KernelFamily("NEON dotprod", "Cortex-A76, A55", ("neon", "dotprod"), "sdot", "sdot"),
        KernelFamily("NEON", "Cortex-A53, A72", ("neon",), "smlal", "smlal"),
    ),
    "armv7l": (KernelFamily("NEON, 32 bits", "Cortex-A7", ("neon",), "vmlal, in tflite-runtime", "none"),),
}
_ALIASES = {"asimddp": "dotprod"}


def kernel_family(arch: str, features: Collection[str]) -> KernelFamily | None:
    """The kernels that a processor gets; None where only plain C is left.

    Args:
        features: by the names of board files or of /proc/cpuinfo.
    """
    known = {_ALIASES.get(feature, feature) for feature in features}
    return next((family for family in _FAMILIES.get(arch, ()) if known.issuperset(family.features)), None)


def better_package(arch: str, kernel_machine: str, installed: tuple[str, str] | None) -> str | None:
    """What would run the same bundles faster on this machine; None where nothing is known.

    Args:
        arch: of the programs here.
        kernel_machine: what the kernel says it runs on, `uname -m`.
        installed: the runtime's package and its version.
    """
    if arch == "armv7l" and kernel_machine == "aarch64":
        return "a 64-bit system: this processor could run LiteRT with XNNPACK, which has no package for 32 bits"
    if installed is None or arch not in ("x86_64", "aarch64"):
        return None
    name, version = installed
    if name == "tflite_runtime":
        return f"pip install '{LITERT_PACKAGE}': it has newer kernels, and is needed for the profile pi"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers == LITERT:
        return None
    wrong = "older kernels" if numbers < LITERT else "an interface that this stonechat does not know"
    return f"pip install '{LITERT_PACKAGE}': {version} has {wrong}"
