"""Which C files make up the engine, and the flags that they are compiled with everywhere."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FLAGS", "INCLUDES", "WARNINGS", "engine_sources"]

_ROOT = Path(__file__).parent
_FOLDERS = ("runtime", "kernels", "tokenizer", "chat", "sampler", "schema")
INCLUDES = (_ROOT / "include", *(_ROOT / folder for folder in _FOLDERS))
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


def engine_sources() -> list[Path]:
    """Every C file of the engine; the same list for a host, a test and a firmware."""
    return sorted(path for folder in _FOLDERS for path in (_ROOT / folder).glob("*.c"))
