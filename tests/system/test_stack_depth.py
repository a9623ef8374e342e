"""The engine's stack is bounded: the deepest chain of calls, by the compiler's own account of every frame."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from device_runtime.micro.sources import FLAGS, INCLUDES, engine_sources
from tests.support.bare_metal import BOARDS, missing_tools

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing_tools() is not None, reason=missing_tools() or "")]
# These call themselves: to SC_SCHEMA_DEPTH (checked when a table is opened), to DEEPEST, and once.
RECURSIVE = {"depth_is_sound", "start_value", "decompose", "take_byte"}
MOST_BYTES = 2560  # 2,456 when this was written: the sampler, called by a typed answer


def test_no_chain_of_calls_takes_more_stack_than_is_stated(tmp_path: Path) -> None:
    frames: dict[str, int] = {}
    calls: dict[str, set[str]] = {}
    for source in engine_sources():
        command = ["arm-none-eabi-gcc", "-mthumb", *BOARDS["M4"].cpu, *FLAGS, "-fcallgraph-info=su", "-c", str(source)]
        command += [*(f"-I{folder}" for folder in INCLUDES), "-o", str(tmp_path / "object.o")]
        subprocess.run(command, check=True, cwd=tmp_path)
        text = (tmp_path / "object.ci").read_text()
        for name, label in re.findall(r'node: \{ title: "([^"]+)" label: "([^"]*)"', text):
            if size := re.search(r"(\d+) bytes", label):
                frames[name] = int(size[1])
        for caller, callee in re.findall(r'edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"', text):
            calls.setdefault(caller, set()).add(callee)
    depths: dict[str, int] = {}
    recursive: set[str] = set()

    def depth(name: str, path: tuple[str, ...] = ()) -> int:
        if name in path:
            recursive.update(path[path.index(name) :])
            return 0
        if name not in depths:
            below = max((depth(callee, (*path, name)) for callee in calls.get(name, ())), default=0)
            depths[name] = frames.get(name, 0) + below
        return depths[name]

    assert max(map(depth, frames)) < MOST_BYTES
    assert {name.rsplit(":", 1)[-1] for name in recursive} == RECURSIVE
