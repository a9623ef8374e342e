"""The engine's NEON kernels, of 32-bit and 64-bit ARM, compute the same bits as those of this machine (qemu-user)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from converters.profiles import WeightType
from device_runtime.bundle.manifest import IMAGE
from device_runtime.micro.library import CEngine, compiler
from tests.support.c_programs import compile_program
from tests.support.micro_bundles import micro_bundle, random_network

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiler() is None, reason="there is no C compiler here"),
]
PROGRAM = Path(__file__).parents[1] / "device_runtime" / "micro" / "run_image.c"
# Always a named processor: QEMU's `max` has computed int8 products wrongly.
BOARDS = {
    "Raspberry Pi 2": (("arm-linux-gnueabihf-gcc", "-mfpu=neon-vfpv4"), ("qemu-arm-static", "-cpu", "cortex-a7")),
    "Raspberry Pi 3": (("aarch64-linux-gnu-gcc",), ("qemu-aarch64-static", "-cpu", "cortex-a53")),
    "Raspberry Pi 5": (("aarch64-linux-gnu-gcc", "-mcpu=cortex-a76"), ("qemu-aarch64-static", "-cpu", "cortex-a76")),
}
NETWORKS = {
    "heads of 16": random_network(),
    "odd sizes": random_network(width=40, heads=3, kv_heads=1, head_dim=10, ffn_width=52, vocabulary=77),
    "long rows": random_network(width=64, layers=1, ffn_width=1120),  # more than one sum of 1,024 int16 products
    "int4 weights": random_network(width=32, heads=5, kv_heads=1, head_dim=18, ffn_width=288, vocabulary=77),
}


@pytest.fixture(scope="module", params=BOARDS)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that feeds tokens to an image, compiled as the host's library is."""
    (cc, *flags), emulator = BOARDS[request.param]
    for tool, package in ((cc, f"gcc-{cc.removesuffix('-gcc')}"), (emulator[0], "qemu-user-static")):
        if shutil.which(tool) is None:
            pytest.skip(f"apt install {package}")
    folder = tmp_path_factory.mktemp("neon")
    return [*emulator, str(compile_program(folder / "run", PROGRAM, flags=["-static", "-O3", *flags], cc=cc))]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("images")

    def image(name: str) -> Path:
        weights: WeightType = "int4" if "int4" in name else "int8"
        return micro_bundle(folder / name.replace(" ", "-"), NETWORKS[name], weights=weights).path / IMAGE

    return {name: image(name) for name in NETWORKS}


@pytest.mark.parametrize("name", NETWORKS)
def test_neon_gives_the_bits_of_this_machine(runner: list[str], images: dict[str, Path], name: str) -> None:
    engine = CEngine(images[name])
    tokens = [int(t) for t in np.random.default_rng(3).integers(0, engine.needs.vocabulary, 34)]
    expected = b""
    for token in tokens:
        engine.feed(token)
        expected += engine.logits.tobytes()
    done = subprocess.run([*runner, str(images[name]), *map(str, tokens)], capture_output=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
