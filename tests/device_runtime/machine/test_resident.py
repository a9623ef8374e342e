"""Pages that are given back, and pages that are there before they are asked for."""

import mmap
import platform
import re
from pathlib import Path

from device_runtime.machine.resident import populate_mapped_file, release_mapped_file

_SIZE = 9 << 20  # more than is asked for at once


def resident_kib(path: Path) -> int:
    """Of all mappings of a file, by /proc/self/smaps."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-", line):
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def test_a_mapped_file_leaves_memory_and_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "some weights.bin"
    path.write_bytes(b"ab" * (_SIZE // 2))
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[::4096]) == ord("a") * (_SIZE // 4096)
        assert resident_kib(path) == _SIZE >> 10
        assert release_mapped_file(path) == _SIZE
        assert resident_kib(path) == 0
        assert mapped[-2:] == b"ab"


def test_a_mapped_file_is_in_memory_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "some weights.bin"
    path.write_bytes(bytes(_SIZE))
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        assert resident_kib(path) == 0
        assert populate_mapped_file(path) == _SIZE
        if tuple(map(int, platform.release().split(".")[:2])) >= (5, 14):  # before, it is read but not mapped
            assert resident_kib(path) == _SIZE >> 10


def test_what_is_not_mapped_is_left_alone(tmp_path: Path) -> None:
    assert release_mapped_file(tmp_path / "nothing") == populate_mapped_file(tmp_path / "nothing") == 0
