"""A packed bundle is unpacked as it was signed, or refused; each refusal has its test."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_runtime.bundle import archive as archive_module
from device_runtime.bundle.archive import HEAD_BYTES, MODEL_ALIGNMENT, Archive, layout, pack, read_head
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import MAX_MANIFEST_BYTES
from device_runtime.bundle.trust import TrustStore
from device_runtime.errors import BundleError, ConfigurationError, SignatureError, StonechatError
from tests.support.signed_bundles import FILES, Workshop, entry_span
from toolkit.signing.bundles import edited


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def folder(shop: Workshop) -> Path:
    return shop.signed("good")


@pytest.fixture(scope="module")
def packed(shop: Workshop, folder: Path) -> bytes:
    return shop.packed(folder).read_bytes()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "bundle.zip"


def unpack(path: Path, trust: TrustStore | None, target: Path) -> Bundle:
    with Archive.open(path, trust) as archive:
        return archive.unpack(target)


def refused(path: Path, trust: TrustStore | None, kind: type[StonechatError], *words: str) -> None:
    """Refused, with the path and these words, and nothing is left of it."""
    target = path.parent / "out"
    before = sorted(path.parent.iterdir())
    with pytest.raises(kind) as caught:
        unpack(path, trust, target)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert str(path) in message and all(word in message for word in words), message
    assert sorted(path.parent.iterdir()) == before


def test_what_was_packed_comes_out(shop: Workshop, folder: Path, packed: bytes, file: Path, tmp_path: Path) -> None:
    file.write_bytes(packed)
    bundle = unpack(file, shop.trust, tmp_path / "out")
    assert shop.contents(tmp_path / "out") == shop.contents(folder)
    assert bundle == Bundle.open(tmp_path / "out", verify=True, trust=shop.trust)


def test_the_same_bundle_gives_the_same_bytes_from_another_place_and_time(
    shop: Workshop, folder: Path, packed: bytes, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    for path in copy.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o600)
    assert shop.packed(copy).read_bytes() == packed


def test_the_manifest_comes_first_and_other_programs_can_read_it(packed: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(packed)) as z:
        assert z.namelist() == FILES
        assert z.testzip() is None
        assert {info.compress_type for info in z.infolist()} == {zipfile.ZIP_STORED}


def test_the_first_bytes_tell_whether_the_rest_is_wanted(shop: Workshop, folder: Path, packed: bytes) -> None:
    head = read_head(io.BytesIO(packed[: packed.index(b"model.tflite") + 2000]))
    assert head.manifest == (folder / "manifest.json").read_bytes()
    assert shop.trust.verify(head.manifest, head.signature) == shop.trusted.public.key_id
    assert HEAD_BYTES < 2**21


def test_the_layout_says_where_each_file_lies(shop: Workshop, folder: Path, packed: bytes) -> None:
    places = layout(Bundle.open(folder).manifest, read_head(io.BytesIO(packed)))
    assert list(places) == FILES
    for name, place in places.items():
        assert packed[place.offset : place.offset + place.size_bytes] == (folder / name).read_bytes()


@pytest.mark.parametrize("large", [False, True])
def test_the_graph_is_aligned_whatever_stands_before_it(
    large: bool, shop: Workshop, folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A microcontroller runs it from where the zip lies in flash. Every remainder of the alignment comes up."""
    if large:
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 4000)  # which model.tflite passes
    raw = (folder / "manifest.json").read_bytes()
    graph, paddings = (folder / "model.tflite").read_bytes(), set()
    for more in range(MODEL_ALIGNMENT):
        manifest = raw + b" " * more
        pack(Bundle.open(folder), file, manifest=manifest, signature=None)
        packed = file.read_bytes()
        begin, end = entry_span(packed, "model.tflite") if not large else (packed.index(graph), None)
        assert begin % MODEL_ALIGNMENT == 0 and packed[begin:end].startswith(graph)
        head = read_head(io.BytesIO(packed))
        assert layout(Bundle.open(folder).manifest, head)["model.tflite"].offset == begin
        extra = zipfile_extra(packed, "model.tflite")
        paddings.add(len(extra) - 20 * large)
        for field, content in extra_fields(extra):  # well formed: no reader stumbles over it
            assert field == 1 or (field, content.rstrip(b"\0")) == (0xD935, bytes([MODEL_ALIGNMENT]))
        with zipfile.ZipFile(io.BytesIO(packed)) as z:
            assert z.testzip() is None
            assert all(info.extra == b"" for info in z.infolist()) or large  # zip64 has its own there
        with Archive.open(file) as archive:
            archive.check("model.tflite")
    assert paddings == {0, *range(6, 64), *range(65, 70)}  # an extra field has at least 6 bytes


def zipfile_extra(packed: bytes, name: str) -> bytes:
    """The extra field in the local header of a file."""
    at = next(i.header_offset for i in zipfile.ZipFile(io.BytesIO(packed)).infolist() if i.filename == name)
    name_bytes, extra_bytes = struct.unpack_from("<2H", packed, at + 26)
    return packed[at + 30 + name_bytes :][:extra_bytes]


def extra_fields(extra: bytes) -> list[tuple[int, bytes]]:
    """Ids and contents (APPNOTE.TXT 4.5.1)."""
    fields = []
    while extra:
        field, size = struct.unpack_from("<2H", extra)
        assert len(extra) >= 4 + size
        fields.append((field, extra[4 : 4 + size]))
        extra = extra[4 + size :]
    return fields


def test_files_beyond_four_gigabytes_take_the_zip64_form(
    shop: Workshop, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is lowered: nobody wants to write 4 GiB in a test."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 4000)
    path = shop.packed(shutil.copytree(folder, tmp_path / "copy"))
    packed = path.read_bytes()
    assert b"PK\x06\x06" in packed  # the zip64 end of central directory record
    unpack(path, shop.trust, tmp_path / "out")
    assert shop.contents(tmp_path / "out") == shop.contents(folder)
    for name, place in layout(Bundle.open(folder).manifest, read_head(io.BytesIO(packed))).items():
        assert packed[place.offset : place.offset + place.size_bytes] == (folder / name).read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused(shop: Workshop, packed: bytes, file: Path, name: str, share: float) -> None:
    begin, end = entry_span(packed, name)
    damaged = bytearray(packed)
    damaged[begin + round(share * (end - begin - 1))] ^= 1
    file.write_bytes(damaged)
    refused(file, shop.trust, SignatureError if name in ("manifest.json", "manifest.sig") else BundleError)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_a_folder_is_refused(shop: Workshop, folder: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    kind = SignatureError if name in ("manifest.json", "manifest.sig") else BundleError
    with pytest.raises(kind, match="copy"):
        Bundle.open(copy, trust=shop.trust)


def test_a_flipped_bit_with_a_checksum_to_match_is_refused_by_its_hash(
    shop: Workshop, folder: Path, file: Path, tmp_path: Path
) -> None:
    contents = shop.contents(folder)
    contents["model.tflite"] = bytes([contents["model.tflite"][0] ^ 1]) + contents["model.tflite"][1:]
    path = shutil.copy(shop.zipped("flipped.zip", contents), file)
    refused(path, shop.trust, BundleError, "model.tflite is not the file that the manifest describes")


def test_without_keys_a_damaged_manifest_is_refused_by_its_checksum(packed: bytes, file: Path) -> None:
    begin, _ = entry_span(packed, "manifest.json")
    damaged = bytearray(packed)
    at = packed.index(b'"noise"', begin) + 1
    damaged[at] ^= 1
    file.write_bytes(damaged)
    refused(file, None, BundleError, "manifest.json is damaged")


def test_a_truncated_file_is_refused_at_every_length(shop: Workshop, packed: bytes, file: Path) -> None:
    lengths = {*range(200), *range(200, len(packed), 197), *range(len(packed) - 400, len(packed))}
    trust = shop.trust
    for length in sorted(lengths):
        file.write_bytes(packed[:length])
        with pytest.raises(BundleError) as caught:
            Archive.open(file, trust)
        assert str(file) in str(caught.value)


def test_an_oversized_file_is_refused_before_its_index_is_read(
    shop: Workshop, packed: bytes, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_bytes(packed)
    os.truncate(file, 10**9)  # sparse
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("the index was read"))
    refused(file, shop.trust, BundleError, "oversized: 1,000,000,000 bytes")


def test_an_oversized_manifest_is_refused_before_it_is_read(shop: Workshop, file: Path) -> None:
    head = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, 2**31, 2**31, 13, 0) + b"manifest.json"
    file.write_bytes(head)
    refused(file, shop.trust, BundleError, "manifest.json has 2,147,483,648 bytes; at most 1,048,576")


def test_an_oversized_manifest_in_a_folder_is_refused(shop: Workshop, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    os.truncate(copy / "manifest.json", MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BundleError, match="more than 1,048,576 bytes"):
        Bundle.open(copy, trust=shop.trust)


def test_an_index_of_any_size_is_not_read_whole() -> None:
    """zipfile reads as much as the end record says, before it looks at it."""
    reader = archive_module._ShortReads(io.BytesIO(b"x" * 2**21))  # type: ignore[arg-type]
    with pytest.raises(zipfile.BadZipFile, match="index"):
        reader.read(2**21)
    with pytest.raises(zipfile.BadZipFile, match="index"):
        reader.read()


def test_a_file_from_another_bundle_is_refused(shop: Workshop, folder: Path, file: Path) -> None:
    """Of the same size, also signed, with a checksum to match: only the hash tells."""
    other = shop.signed("other", seed=2)
    for name in ("model.tflite", "prefix.npz", "tokenizer.json"):
        contents = shop.contents(folder) | {name: (other / name).read_bytes()}
        shutil.copy(shop.zipped("mixed.zip", contents), file)
        refused(file, shop.trust, BundleError, f"{name} is not the file that the manifest describes")


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sig"])
def test_a_manifest_and_a_signature_of_two_bundles_are_refused(
    shop: Workshop, folder: Path, tmp_path: Path, name: str
) -> None:
    mixed = Workshop(tmp_path / "w")
    other = mixed.signed("other", shop.trusted, seed=3)
    path = mixed.zipped("mixed.zip", shop.contents(folder) | {name: (other / name).read_bytes()})
    refused(path, shop.trust, SignatureError, "manifest.json is not what plant-2026", "has signed")


TRAVERSALS = [
    "../evil", "../../etc/cron.d/evil", "/etc/passwd", "a/../../evil", "sub/model.tflite", "..\\evil", "C:\\evil",
    "evil\0.tflite", ".", "..", "model.tflite/", "./model.tflite", "extra.txt", "MODEL.TFLITE", "modèle.tflite", "",
]  # fmt: skip


@pytest.mark.parametrize("name", TRAVERSALS)
def test_a_name_that_the_manifest_does_not_list_is_refused(shop: Workshop, folder: Path, file: Path, name: str) -> None:
    shutil.copy(shop.zipped("evil.zip", {**shop.contents(folder), name: b"evil"}, orig_filename=name), file)
    refused(file, shop.trust, BundleError)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/b", "..\\evil", ".hidden", "manifest.json"])
def test_a_signed_manifest_that_lists_a_path_elsewhere_is_refused(
    shop: Workshop, folder: Path, file: Path, name: str
) -> None:
    """Even the holder of a key cannot write outside of the bundle."""
    fields = json.loads((folder / "manifest.json").read_bytes())
    fields["files"][name] = {"sha256": "0" * 64, "size_bytes": 4}
    manifest = json.dumps(fields).encode()
    signature = {"schema": 1, "signatures": [shop.trusted.sign(manifest).to_fields()]}
    contents = {"manifest.json": manifest, "manifest.sig": json.dumps(signature).encode()}
    contents |= {n: (folder / n).read_bytes() for n in FILES[2:]} | ({name: b"evil"} if name not in contents else {})
    shutil.copy(shop.zipped("listed.zip", contents), file)
    refused(file, shop.trust, BundleError)


@pytest.mark.parametrize("mode", [0o120777, 0o040755, 0o020644, 0o010644, 0o140644])
def test_a_link_or_a_device_in_place_of_a_file_is_refused(shop: Workshop, folder: Path, file: Path, mode: int) -> None:
    shutil.copy(shop.zipped("link.zip", shop.contents(folder), external_attr=mode << 16), file)
    refused(file, shop.trust, BundleError, "link or a folder")


def test_a_file_that_comes_twice_is_refused(shop: Workshop, folder: Path, file: Path) -> None:
    shutil.copy(shop.zipped("twice.zip", shop.contents(folder)), file)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(file, "a") as z:
        z.writestr("model.tflite", b"another")
    refused(file, shop.trust, BundleError, "twice")


def test_a_missing_file_is_refused(shop: Workshop, folder: Path, file: Path) -> None:
    contents = shop.contents(folder)
    del contents["prefix.npz"]
    shutil.copy(shop.zipped("less.zip", contents), file)
    refused(file, shop.trust, BundleError, "lacks prefix.npz")


def test_a_compressed_file_is_refused(shop: Workshop, folder: Path, file: Path) -> None:
    shutil.copy(shop.zipped("small.zip", shop.contents(folder), compress_type=zipfile.ZIP_DEFLATED), file)
    refused(file, shop.trust, BundleError)


def test_a_compression_bomb_is_refused(shop: Workshop, folder: Path, file: Path) -> None:
    contents = shop.contents(folder) | {"tokenizer.json": bytes(10**8)}
    shutil.copy(shop.zipped("bomb.zip", contents, compress_type=zipfile.ZIP_DEFLATED), file)
    refused(file, shop.trust, BundleError)


def patched(packed: bytes, name: str, offset: int, value: bytes, local: bool = True) -> bytes:
    """A field of a file's header in the zip, here and in the index, set to `value`; offsets of APPNOTE 4.3.7."""
    begin, _ = entry_span(packed, name)
    data = bytearray(packed)
    start = begin - 30 - len(name)
    if local:
        data[start + offset : start + offset + len(value)] = value
    index = packed.index(b"PK\1\2")
    while packed[index + 46 : index + 46 + len(name)] != name.encode():
        index = packed.index(b"PK\1\2", index + 4)
    data[index + offset + 2 : index + offset + 2 + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_an_encrypted_file_is_refused(shop: Workshop, packed: bytes, file: Path, name: str) -> None:
    file.write_bytes(patched(packed, name, 6, b"\1\0"))
    refused(file, shop.trust, BundleError, "encrypted")


@pytest.mark.parametrize("name", FILES)
def test_a_size_other_than_the_manifests_is_refused(shop: Workshop, packed: bytes, file: Path, name: str) -> None:
    file.write_bytes(patched(packed, name, 22, struct.pack("<I", 10**9), local=False))
    refused(file, shop.trust, BundleError, "1,000,000,000")


def test_a_zip_behind_something_else_is_refused(shop: Workshop, packed: bytes, file: Path) -> None:
    file.write_bytes(b"#!/bin/sh\n" + packed)
    refused(file, shop.trust, BundleError, "not a packed bundle")


def test_a_second_manifest_in_the_index_is_refused(shop: Workshop, folder: Path, packed: bytes, file: Path) -> None:
    """Two readers must not see two manifests: the index has to mean the one at the beginning."""
    contents = shop.contents(folder)
    index = packed.index(b"PK\1\2")
    moved = bytearray(packed)
    struct.pack_into("<I", moved, index + 42, entry_span(packed, "model.tflite")[0])
    assert packed[index + 46 : index + 59] == b"manifest.json" and len(contents) == 5
    file.write_bytes(moved)
    refused(file, shop.trust, BundleError)


def test_an_unsigned_zip_is_refused(shop: Workshop, folder: Path, file: Path) -> None:
    contents = shop.contents(folder)
    del contents["manifest.sig"]
    shutil.copy(shop.zipped("unsigned.zip", contents), file)
    refused(file, shop.trust, SignatureError, "not signed")


def test_a_zip_that_any_program_has_stored_is_taken(shop: Workshop, folder: Path, tmp_path: Path) -> None:
    path = shop.zipped("by-hand.zip", shop.contents(folder))
    unpack(path, shop.trust, tmp_path / "out")
    assert shop.contents(tmp_path / "out") == shop.contents(folder)


def test_a_missing_file_and_a_target_that_exists_are_configuration_errors(
    shop: Workshop, packed: bytes, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Archive.open(tmp_path / "nowhere.zip")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Archive.open(tmp_path)
    file.write_bytes(packed)
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigurationError, match="there already"):
        unpack(file, shop.trust, tmp_path / "out")
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="there already"):
        unpack(file, shop.trust, tmp_path / "dangling")


class TestWhatIsVerifiedIsWhatIsUsed:
    """Nobody gains by changing a file between the check and the use."""

    def test_a_zip_put_in_its_place_after_the_check_is_not_read(
        self, shop: Workshop, folder: Path, packed: bytes, file: Path, tmp_path: Path
    ) -> None:
        file.write_bytes(packed)
        with Archive.open(file, shop.trust) as archive:
            (tmp_path / "evil.zip").write_bytes(b"evil")
            (tmp_path / "evil.zip").replace(file)
            archive.unpack(tmp_path / "out")
        assert shop.contents(tmp_path / "out") == shop.contents(folder)

    @pytest.mark.parametrize("name", FILES[2:])
    def test_a_file_changed_after_the_check_is_refused(
        self, shop: Workshop, packed: bytes, file: Path, tmp_path: Path, name: str
    ) -> None:
        file.write_bytes(packed)
        with Archive.open(file, shop.trust) as archive:
            with open(file, "r+b") as stream:
                stream.seek(entry_span(packed, name)[0])
                stream.write(b"evil")
            with pytest.raises(BundleError):
                archive.unpack(tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_manifest_changed_after_the_check_is_not_used(
        self, shop: Workshop, folder: Path, packed: bytes, file: Path, tmp_path: Path
    ) -> None:
        file.write_bytes(packed)
        with Archive.open(file, shop.trust) as archive:
            with open(file, "r+b") as stream:
                stream.seek(entry_span(packed, "manifest.json")[0])
                stream.write(b"evil")
            archive.unpack(tmp_path / "out")
        assert (tmp_path / "out" / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()

    def test_a_folders_manifest_is_read_once(
        self, shop: Workshop, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy = shutil.copytree(folder, tmp_path / "copy")
        verify = TrustStore.verify

        def slow(self: TrustStore, manifest: bytes, signature: bytes | None) -> str | None:
            (copy / "manifest.json").write_bytes(edited(manifest, {"name": "evil"}))
            return verify(self, manifest, signature)

        monkeypatch.setattr(TrustStore, "verify", slow)
        assert Bundle.open(copy, trust=shop.trust).manifest.name == "noise"


many = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture
def mutated(shop: Workshop, folder: Path, tmp_path: Path) -> Callable[[bytes, TrustStore | None], None]:
    """Refused with our own errors, or what comes out is what was signed."""
    expected, path, out = shop.contents(folder), tmp_path / "m.zip", tmp_path / "out"

    def run(content: bytes, trust: TrustStore | None) -> None:
        path.write_bytes(content)
        shutil.rmtree(out, ignore_errors=True)
        try:
            unpack(path, trust, out)
        except StonechatError as error:
            assert len(str(error)) < 1000
            str(error).encode()
            assert not out.exists()
        else:
            assert trust is None or shop.contents(out) == expected
        assert {p.name for p in tmp_path.iterdir()} <= {"m.zip", "out"}

    return run


@many
@given(st.lists(st.tuples(st.floats(0, 0.9999), st.integers(1, 255)), min_size=1, max_size=4), st.booleans())
def test_changed_bytes_anywhere(
    shop: Workshop, packed: bytes, mutated: Callable[..., None], changes: list[tuple[float, int]], trusting: bool
) -> None:
    content = bytearray(packed)
    for share, change in changes:
        content[int(share * len(content))] ^= change
    mutated(bytes(content), shop.trust if trusting else None)


@many
@given(st.data())
def test_changed_bytes_in_the_zips_own_structures(
    shop: Workshop, packed: bytes, mutated: Callable[..., None], data: st.DataObject
) -> None:
    spans = [entry_span(packed, name) for name in FILES]
    own = [i for i in range(len(packed)) if not any(begin <= i < end for begin, end in spans)]
    content = bytearray(packed)
    for at in data.draw(st.lists(st.sampled_from(own), min_size=1, max_size=3)):
        content[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    mutated(bytes(content), shop.trust)


@many
@given(st.integers(0, 7000), st.integers(0, 3000), st.binary(max_size=60))
def test_pieces_cut_out_and_put_in(
    shop: Workshop, packed: bytes, mutated: Callable[..., None], at: int, gone: int, new: bytes
) -> None:
    mutated(packed[:at] + new + packed[at + gone :], shop.trust)


@many
@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda junk: b"PK\3\4" + junk))
def test_junk(shop: Workshop, mutated: Callable[..., None], junk: bytes) -> None:
    mutated(junk, shop.trust)


anything: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@many
@given(st.sampled_from(["boards", "issued", "expires", "trial", "security_counter", "files", "name"]), anything)
def test_any_value_in_a_signed_manifest_is_read_or_refused(
    shop: Workshop, folder: Path, mutated: Callable[..., None], field: str, value: Any
) -> None:
    """The holder of a key can make mistakes, too."""
    manifest = json.dumps(json.loads((folder / "manifest.json").read_bytes()) | {field: value}).encode()
    signature = json.dumps({"schema": 1, "signatures": [shop.trusted.sign(manifest).to_fields()]}).encode()
    contents = shop.contents(folder) | {"manifest.json": manifest, "manifest.sig": signature}
    path = shop.zipped("any.zip", contents)
    try:
        with Archive.open(path, shop.trust) as archive:
            assert archive.head.manifest == manifest
    except StonechatError as error:
        str(error).encode()
