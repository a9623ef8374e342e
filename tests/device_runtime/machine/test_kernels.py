"""The kernels that a processor gets."""

import pytest

from boards import load_board
from device_runtime.machine.kernels import better_package, kernel_family

ZEN_3 = {"sse4.1", "avx", "avx2", "fma"}
AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}


@pytest.mark.parametrize(
    ("features", "name"),
    [
        (ZEN_3, "AVX2"),
        (ZEN_3 | {"avx_vnni"}, "AVX-VNNI"),
        (ZEN_3 | AVX512, "AVX-512"),
        (ZEN_3 | AVX512 | {"avx512_vnni"}, "AVX-512 VNNI"),
        ({"avx"}, "AVX"),
    ],
)
def test_of_x86_processors(features: set[str], name: str) -> None:
    family = kernel_family("x86_64", features)
    assert family is not None and family.name == name


@pytest.mark.parametrize(
    ("board", "name"),
    [
        ("raspberry-pi-zero-2-w", "NEON"),
        ("raspberry-pi-4-2gb", "NEON"),
        ("raspberry-pi-5-8gb", "NEON dotprod"),
        ("raspberry-pi-zero-2-w-32bit", "NEON, 32 bits"),
    ],
)
def test_of_boards(board: str, name: str) -> None:
    file = load_board(board)
    family = kernel_family(file.arch, file.soc.features)
    assert family is not None and family.name == name


def test_the_kernel_says_dotprod_in_its_own_way_and_some_processors_have_nothing() -> None:
    family = kernel_family("aarch64", {"neon", "asimddp"})
    assert family is not None and family.name == "NEON dotprod"
    assert kernel_family("x86_64", {"sse4.1"}) is None
    assert kernel_family("riscv64", set()) is None


@pytest.mark.parametrize(
    ("arch", "machine", "installed", "said"),
    [
        ("aarch64", "aarch64", ("ai_edge_litert", "2.3.0"), None),
        ("aarch64", "aarch64", ("ai_edge_litert", "2.1.0"), "2.1.0 has older kernels"),
        ("aarch64", "aarch64", ("tflite_runtime", "2.14.0"), "ai-edge-litert~=2.3.0"),
        ("x86_64", "x86_64", ("ai_edge_litert", "2.10.0"), "2.10.0 has an interface that this stonechat does not know"),
        ("armv7l", "aarch64", ("tflite_runtime", "2.14.0"), "a 64-bit system"),
        ("armv7l", "armv7l", ("tflite_runtime", "2.14.0"), None),
        ("x86_64", "x86_64", None, None),
    ],
)
def test_a_better_package_is_named(
    arch: str, machine: str, installed: tuple[str, str] | None, said: str | None
) -> None:
    found = better_package(arch, machine, installed)
    assert found is None if said is None else said in str(found)
