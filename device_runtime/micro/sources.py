"""Which C files make up the engine and the firmware, and the flags that they are compiled with everywhere."""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "FIRMWARE_INCLUDES", "FLAGS", "INCLUDES", "LWIP_PORT", "PORTS", "THIRD_PARTY", "WARNINGS", "engine_sources",
    "firmware_sources", "update_sources",
]  # fmt: skip

_ROOT = Path(__file__).parent
_KERNELS = ("kernels", "kernels/blocks", "kernels/dot", "kernels/floats")
_FOLDERS = ("runtime", *_KERNELS, "tokenizer", "chat", "sampler", "schema")
INCLUDES = (_ROOT / "include", *(_ROOT / folder for folder in _FOLDERS))
PORTS = _ROOT / "ports"
THIRD_PARTY = _ROOT / "third_party"
FIRMWARE_INCLUDES = (_ROOT / "firmware", _ROOT / "update", _ROOT / "network", THIRD_PARTY)
LWIP_PORT = PORTS / "lwip"  # lwIP's own sources are not ours: toolkit/firmware/lwip.py says where they are
# No contraction of a multiplication and an addition: every target rounds both, so that all compute the same bits.
FLAGS = (
    "-std=c99",
    "-O2",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-strict-aliasing",  # the arena holds floats and integers in turn
)
# Where stonechat itself is built and tested; another compiler's new warning must not keep a user from running a model.
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-pedantic")
_PROGRAMS = ("main.c", "boot.c")  # each has a `main` of its own, for a port


def engine_sources() -> list[Path]:
    """Every C file of the engine; the same list for a host, a test and a firmware."""
    return sorted(path for folder in _FOLDERS for path in (_ROOT / folder).glob("*.c"))


def update_sources() -> list[Path]:
    """What a boot loader needs, apart from its port: updates, their server, and signatures."""
    shared = [_ROOT / "firmware" / "line.c", _ROOT / "runtime" / "sha256.c"]
    return [*sorted((_ROOT / "update").glob("*.c")), THIRD_PARTY / "monocypher.c", *shared]


def firmware_sources() -> list[Path]:
    """What a firmware has besides the engine, apart from its port: protocols, console, updates."""
    own = [path for path in sorted((_ROOT / "firmware").glob("*.c")) if path.name not in _PROGRAMS]
    network = sorted((_ROOT / "network").glob("*.c"))
    return [*own, *network, *sorted((_ROOT / "update").glob("*.c")), THIRD_PARTY / "monocypher.c"]
