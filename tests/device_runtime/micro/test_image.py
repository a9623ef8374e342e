"""The container of a model image: C reads what Python writes, and refuses anything else."""

from __future__ import annotations

import hashlib
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.emit.c.bundle import write_bundle_image
from converters.emit.c.image import SectionKind, read_image, write_image
from device_runtime.bundle.folder import Bundle
from device_runtime.errors import BundleError
from device_runtime.micro.library import CEngine
from device_runtime.micro.sources import FIRMWARE_INCLUDES, firmware_sources
from tests.support.c_programs import SANITIZED, compile_program, compiler, run

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*/bundle/model.image"))
FUZZ = Path(__file__).parents[2] / "fuzz"
SECTIONS = {SectionKind.CONSTANTS: bytes(range(250)), SectionKind.GRAPH: b"calls", SectionKind.CHAT: b""}
OK, TRUNCATED, NOT_AN_IMAGE, UNKNOWN_FORMAT, DAMAGED = 0, 2, 3, 4, 5


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("c")
    return compile_program(folder / "read_image", Path(__file__).parent / "read_image.c", flags=SANITIZED["native"])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("image") / "model.image"
    write_image(path, SECTIONS)
    return path.read_bytes()


def opened(program: Path, tmp_path: Path, data: bytes) -> tuple[int, dict[int, bytes]]:
    """The status that C gives, and the bytes of each section."""
    path = tmp_path / "tried.image"
    path.write_bytes(data)
    _, output = run(program, path)
    first, *lines = output.decode().splitlines()
    places = [tuple(map(int, line.split())) for line in lines]
    assert all(offset > 48 and offset + size <= len(data) for _, offset, size in places)
    return int(first.split()[0]), {kind: data[offset : offset + size] for kind, offset, size in places}


def hashed(data: bytes) -> bytes:
    """The same image with the hash that fits it: what a reader cannot tell from one that was made so."""
    return data[:16] + hashlib.sha256(data[:16] + data[48:]).digest() + data[48:]


def test_c_finds_the_sections_that_python_wrote(program: Path, tmp_path: Path, image: bytes) -> None:
    assert opened(program, tmp_path, image) == (OK, {int(kind): data for kind, data in SECTIONS.items()})
    assert {kind: bytes(view) for kind, view in read_image(image).items()} == SECTIONS
    # a flash partition is larger than the image in it
    assert opened(program, tmp_path, image + b"\xff" * 40)[0] == OK
    assert read_image(image + b"\xff" * 40)[SectionKind.GRAPH] == b"calls"


def test_sections_are_aligned_and_in_the_order_of_their_kinds(image: bytes) -> None:
    entries = list(struct.iter_unpack("<IIII", image[48 : 48 + 48]))
    assert [kind for kind, *_ in entries] == [1, 2, 17]
    assert all(offset % 16 == 0 for _, offset, _, _ in entries)


def test_a_hash_that_python_and_c_share_is_sha_256(image: bytes) -> None:
    assert hashed(image) == image


def test_every_changed_byte_is_noticed(program: Path, tmp_path: Path, image: bytes) -> None:
    for place in range(0, len(image), 7):
        damaged = bytearray(image)
        damaged[place] ^= 0x10
        assert opened(program, tmp_path, bytes(damaged))[0] != OK, place
        with pytest.raises(BundleError):
            read_image(damaged)


@pytest.mark.parametrize("size", [0, 3, 47, 48, 95, 200])
def test_a_short_file_is_refused(program: Path, tmp_path: Path, image: bytes, size: int) -> None:
    assert opened(program, tmp_path, image[:size])[0] == TRUNCATED
    with pytest.raises(BundleError):
        read_image(image[:size])


@pytest.mark.parametrize(
    ("place", "value", "status"),
    [
        (0, b"TFL3", NOT_AN_IMAGE),
        (4, b"\x02\x00", UNKNOWN_FORMAT),
        (6, b"\xff\x00", DAMAGED),  # more sections than there may be
        (8, b"\x20\x00\x00\x00", DAMAGED),  # smaller than its own table
        (12, b"\x01\x00\x00\x00", DAMAGED),  # reserved
        (48, b"\x11\x00\x00\x00", DAMAGED),  # kinds do not ascend
        (52, b"\x08\x00\x00\x00", DAMAGED),  # a section in the table, not aligned
        (52, b"\x30\x00\x00\x00", DAMAGED),  # aligned, but in the table
        (68, b"\xf0\xff\xff\xff", DAMAGED),  # starts past the end
        (72, b"\xff\xff\xff\xff", DAMAGED),  # ends past the end
        (60, b"\x01\x00\x00\x00", DAMAGED),  # reserved
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused_though_its_hash_fits(
    program: Path, tmp_path: Path, image: bytes, place: int, value: bytes, status: int
) -> None:
    wrong = hashed(image[:place] + value + image[place + len(value) :])
    assert opened(program, tmp_path, wrong)[0] == status


@settings(max_examples=40)
@given(st.data())
def test_any_header_is_read_within_the_file(
    program: Path, tmp_path_factory: pytest.TempPathFactory, image: bytes, data: st.DataObject
) -> None:
    """The sanitizer ends the program at the first byte outside, and `opened` asserts that what is accepted lies inside;
    the hash is not what keeps it there."""
    header = bytearray(image[:96])
    for place in data.draw(st.lists(st.integers(0, 95), max_size=6)):
        header[place] = data.draw(st.integers(0, 255))
    tried = hashed(bytes(header) + image[96:])
    status, sections = opened(program, tmp_path_factory.mktemp("tried"), tried)
    assert (status == OK) or not sections


@pytest.mark.parametrize("target", ["image", "whole_image"])
def test_damaged_images_stay_inside_of_their_memory(target: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The targets of `make fuzz` on their corpora and on damage to them. The hash of an image is made right again, so
    that it is the checks of the call list, of shifts, of the prefix and of each table that keep it where it belongs."""
    folder = tmp_path_factory.mktemp("fuzz")
    sources = [FUZZ / "replay.c", FUZZ / f"{target}.c"]
    flags = list(SANITIZED["native"])
    if target == "whole_image":
        sources += [path for path in firmware_sources() if path.stem in ("generator", "fields")]
        flags += [f"-I{include}" for include in FIRMWARE_INCLUDES]
    dice, files = random.Random(7), sorted((FUZZ / "corpus" / target).iterdir())
    strict = compile_program(folder / "strict", *sources, flags=[*flags, "-DMUST_RUN"])
    assert run(strict, *files) == (0, b"%d\n" % len(files))  # what is not damaged is run, not refused
    program = compile_program(folder / target, *sources, flags=flags)
    for whole in [file.read_bytes() for file in files]:
        for number in range(40 if target == "image" else 150):
            damaged = bytearray(whole)
            for place in damaged_places(whole, target, dice):
                damaged[place] = dice.choice([0, 1, 127, 255, dice.randrange(256)])
            files.append(folder / f"{len(whole)}-{number}")
            files[-1].write_bytes(damaged)
    status, output = run(program, *files)
    assert (status, int(output)) == (0, len(files))


def damaged_places(whole: bytes, target: str, dice: random.Random) -> list[int]:
    """Up to six bytes, mostly of the call list, or of one section that the self-test does not guard."""
    count = dice.choice([1, 1, 2, 6])
    if target == "image":
        return [dice.randrange(48, len(whole) if dice.random() < 0.3 else 2500) for _ in range(count)]
    sections = {kind: whole.index(part) for kind, part in read_image(whole).items()}
    kind = dice.choice([kind for kind in sections if kind not in (SectionKind.GRAPH, SectionKind.CONSTANTS)])
    return [sections[kind] + dice.randrange(min(400, len(read_image(whole)[kind]))) for _ in range(count)]


def test_there_are_four_images_of_examples() -> None:
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parts[-3])
def test_an_examples_image_opens_and_is_what_its_graph_gives_today(path: Path, tmp_path: Path) -> None:
    """After a change of the format: python scripts/example_images.py."""
    compiler()
    CEngine(path).self_test()
    bundle = Bundle.open(path.parent, verify=True)
    write_bundle_image(bundle, path=tmp_path / "model.image")
    assert set(read_image(path.read_bytes())) >= {SectionKind.CHAT, SectionKind.SCHEMA, SectionKind.IDENTITY}
    assert path.read_bytes() == (tmp_path / "model.image").read_bytes()


def test_too_many_sections_or_none_are_refused_by_the_writer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 to 32 sections"):
        write_image(tmp_path / "none.image", {})
