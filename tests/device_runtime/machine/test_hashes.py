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


def said_by(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


IMPORT = """
import sys
from device_runtime.machine.hashes import imports_without_openssl
with imports_without_openssl():
    from hashlib import sha1
print(sha1(b"data").hexdigest(), "_hashlib" in sys.modules)
import hashlib
print(hashlib.sha1(b"data").hexdigest(), hashlib.sha256.__module__, hashlib is sys.modules["hashlib"])
"""


def test_a_library_gets_pythons_own_hash_and_those_who_ask_later_all_of_hashlib() -> None:
    digest = hashlib.sha1(b"data").hexdigest()
    assert said_by(IMPORT) == [digest, "False", digest, "_hashlib", "True"]


def test_where_hashlib_is_loaded_or_python_has_no_hash_of_its_own_a_library_gets_openssls() -> None:
    digest = hashlib.sha1(b"data").hexdigest()
    for before in ("import hashlib", "import sys\nsys.modules['_sha1'] = None"):
        assert said_by(f"{before}\n{IMPORT}") == [digest, "True", digest, "_hashlib", "True"]
