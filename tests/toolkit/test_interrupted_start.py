"""Ctrl-C while the command still imports what it needs ends it as quietly as any other time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INTERRUPTED = b'{"error": {"code": "interrupted", "message": "interrupted"}}\n'
# Python imports `sitecustomize` before anything of ours. This one says that a module is imported, and waits.
SLOW_IMPORT = """\
import os, sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["SLOW_IMPORT"]:
            os.write(1, b"importing")
            time.sleep(120)

sys.meta_path.insert(0, Slow())
"""


@pytest.mark.parametrize("module", ["argparse", "device_runtime.errors", "toolkit.cli.parser", "toolkit.cli.convert"])
@pytest.mark.parametrize("start", ["-m", "script", "json"])
def test_it_ends_with_130_and_no_traceback(start: str, module: str, tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("stonechat")
    if start == "script" and not script.is_file():
        pytest.skip("stonechat is not installed in this environment")
    (tmp_path / "sitecustomize.py").write_text(SLOW_IMPORT)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [str(script)] if start == "script" else [sys.executable, "-m", "toolkit"]
    process = subprocess.Popen(
        [*command, "convert", *(["--json"] if start == "json" else []), "--help"],
        env={**os.environ, "PYTHONPATH": paths, "SLOW_IMPORT": module},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.read(len("importing")) == b"importing"
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, said) == (130, b"\nstonechat: interrupted\n")
    assert out == (INTERRUPTED if start == "json" else b"")
