"""The environment of a measured process: with compiled bytecode, as pip leaves it when it installs a package.

A checkout under PYTHONDONTWRITEBYTECODE compiles all of stonechat's modules at each start, and its peers have theirs
compiled; so what is measured would be the setting.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["with_bytecode"]

ROOT = Path(__file__).resolve().parents[1]


def with_bytecode() -> dict[str, str]:
    """This process's environment, but bytecode is kept in build/bytecode; the first run writes it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return environment | {"PYTHONPYCACHEPREFIX": str(ROOT / "build" / "bytecode")}
