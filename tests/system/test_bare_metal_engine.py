"""The engine's Cortex-M kernels compute the same bits as those of this machine, on boards that QEMU emulates."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from bare_metal import BOARDS, compile_for, missing_tools, run_on
from micro_bundles import micro_bundle, random_network

from device_runtime.bundle.manifest import IMAGE
from device_runtime.micro.library import CEngine, compiler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing_tools() is not None, reason=missing_tools() or ""),
    pytest.mark.skipif(compiler() is None, reason="there is no C compiler here"),
]
TOKENS_AFTER = 0x200000  # bytes behind the image


@pytest.mark.parametrize("core", BOARDS)
def test_a_cortex_m_gives_the_bits_of_this_machine(core: str, tmp_path: Path) -> None:
    board, bundle = BOARDS[core], micro_bundle(tmp_path / "bundle", random_network())
    image, engine = bundle.path / IMAGE, CEngine(bundle.path / IMAGE)
    tokens = [int(t) for t in np.random.default_rng(3).integers(0, engine.needs.vocabulary, 20)]
    digest = hashlib.sha256()
    for token in tokens:
        engine.feed(token)
        digest.update(engine.logits.tobytes())
    (tmp_path / "tokens").write_bytes(struct.pack(f"<{len(tokens) + 1}I", len(tokens), *tokens))
    defines = {
        "IMAGE_AT": board.memory, "IMAGE_BYTES": image.stat().st_size, "TOKENS_AT": board.memory + TOKENS_AFTER,
        "ARENA_BYTES": engine.needs.arena_bytes + 64, "KV_BYTES": engine.needs.kv_cache_bytes,
    }  # fmt: skip
    program = compile_for(board, tmp_path / "run.elf", "run_bare.c", defines)
    blobs = {board.memory: image, board.memory + TOKENS_AFTER: tmp_path / "tokens"}
    assert run_on(board, program, blobs).split()[0] == digest.hexdigest()
