"""LiteRT runs without the GPU driver of its own package, which ends the process on some 64-bit boards.

That it does so on such a board shows tests/system/test_emulated_boards.py: its CPU is a Cortex-A53.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

DRIVER = "libLiteRtWebGpuAccelerator.so"
# Prints the native libraries of LiteRT that are in use while a model is.
CHILD = """
import sys
from pathlib import Path
from device_runtime.engine.language_model import LanguageModel

with LanguageModel.open(sys.argv[1], threads=1) as model:
    "".join(model.generate("hello", max_new=2))
    mapped = {Path(line.split()[-1]).name for line in Path("/proc/self/maps").read_text().splitlines()}
print(*sorted(name for name in mapped if "litert" in name.lower() and ".so" in name))
"""


def libraries(bundle: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", CHILD, str(bundle)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_driver_is_not_loaded(pi_bundle: Path) -> None:
    spec = find_spec("ai_edge_litert")
    assert spec is not None and spec.origin is not None
    if not (Path(spec.origin).parent / DRIVER).exists():
        pytest.skip(f"this LiteRT has no {DRIVER}")
    assert libraries(pi_bundle) == ["libLiteRt.so"]  # nor the one of its Python module, which takes 8 MB
