"""The hashes are those that everybody else computes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from device_runtime.machine.hashes import blake2b_of_file, sha256_of


@pytest.mark.parametrize("size", [0, 1, 1 << 18, (1 << 18) + 7])
def test_they_are_those_of_hashlib(size: int, tmp_path: Path) -> None:
    data = bytes(i * 7 % 251 for i in range(size))
    (tmp_path / "data").write_bytes(data)
    assert sha256_of(data) == hashlib.sha256(data).hexdigest()
    with open(tmp_path / "data", "rb") as stream:
        assert blake2b_of_file(stream) == hashlib.blake2b(data).hexdigest()


def test_a_python_without_its_own_takes_those_of_openssl() -> None:
    code = (
        "import io, sys\n"
        "sys.modules.update(dict.fromkeys(('_blake2', '_sha2', '_sha256')))\n"
        "from device_runtime.machine.hashes import blake2b_of_file, sha256_of\n"
        "print(sha256_of(b'data'), blake2b_of_file(io.BytesIO(b'data')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [hashlib.sha256(b"data").hexdigest(), hashlib.blake2b(b"data").hexdigest()]
