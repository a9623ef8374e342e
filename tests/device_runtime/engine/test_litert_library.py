"""LiteRT runs without the GPU driver of its own package, which ends the process on some 64-bit boards.

That it does so on such a board shows tests/system/test_emulated_boards.py: its CPU is a Cortex-A53.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DRIVER = "libLiteRtWebGpuAccelerator.so"
# Prints the native libraries of LiteRT that are in use while a graph is.
CHILD = """
import sys
from pathlib import Path
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends import open_backend

backend = open_backend(Bundle.open(sys.argv[1]), sys.argv[2], threads=1)
backend.prefill([5, 6])
mapped = {Path(line.split()[-1]).name for line in Path("/proc/self/maps").read_text().splitlines()}
print(*sorted(name for name in mapped if name.startswith("lib") and "litert" in name.lower()))
"""


def libraries(bundle: Path, backend: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(bundle), backend], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(autouse=True)
def _driver_is_there() -> None:
    spec = find_spec("ai_edge_litert")
    assert spec is not None and spec.origin is not None
    if not (Path(spec.origin).parent / DRIVER).exists():
        pytest.skip(f"this LiteRT has no {DRIVER}")


def test_a_pi_bundle_loads_one_library_and_no_driver(pi_bundle: Path) -> None:
    """Nor that of LiteRT's Python module, which takes 8 MB."""
    assert libraries(pi_bundle, "compiled") == ["libLiteRt.so"]


def test_a_micro_bundle_loads_no_driver() -> None:
    bundle = ROOT / "examples/fall-alert/bundle"
    assert libraries(bundle, "litert") == ["libLiteRt.so", "libpywrap_litert_common.so"]
