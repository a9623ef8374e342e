"""A bundle is opened as the manifest describes it, or refused with the reason."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_runtime.bundle import folder as bundle_module
from device_runtime.bundle.folder import Bundle, cache_folder
from device_runtime.bundle.manifest import GraphShape, Manifest
from device_runtime.bundle.prefix import read_prefix
from device_runtime.errors import BundleError, ConfigurationError, OutdatedBundleError, StonechatError

FILES = ["model.tflite", "prefix.npz", "tokenizer.json", "tokenizer.table"]


@pytest.fixture
def bundle(pi_bundle: Path, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(pi_bundle, tmp_path / "bundle"))


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def refused(bundle: Path, *words: str, kind: type[BundleError] = BundleError) -> str:
    with pytest.raises(kind) as caught:
        Bundle.open(bundle)
    message = str(caught.value)
    assert all(word in message for word in words), message
    return message


def flip(file: Path, at: int) -> None:
    with open(file, "r+b") as stream:
        stream.seek(at)
        (byte,) = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte ^ 1]))


def test_a_sound_bundle_opens(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.manifest.name == "gqa-tied"
    assert sorted(opened.manifest.files) == FILES
    assert opened.manifest.quality["ratio"] == pytest.approx(1, abs=0.1)


def test_a_manifest_survives_being_written_and_read(pi_bundle: Path) -> None:
    manifest = Bundle.open(pi_bundle).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_one_flipped_bit_is_refused(name: str, share: float, bundle: Path) -> None:
    size = (bundle / name).stat().st_size
    flip(bundle / name, round(share * (size - 1)))
    refused(bundle, str(bundle / name), "altered or damaged", "copy the bundle again")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused(name: str, bundle: Path) -> None:
    size = (bundle / name).stat().st_size
    os.truncate(bundle / name, size - 1)
    refused(bundle, str(bundle / name), f"{size - 1:,} bytes", f"{size:,}")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    refused(bundle, str(bundle / name), "No such file")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file_is_refused(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    (bundle / name).mkdir()
    refused(bundle, str(bundle / name))


@pytest.mark.parametrize(
    "name", [name for name in FILES if name != "tokenizer.table"]
)  # without it the library reads the tokenizer
def test_a_manifest_that_does_not_list_a_file_that_is_needed_is_refused(name: str, bundle: Path) -> None:
    edit(bundle, lambda m: m["files"].pop(name))
    refused(bundle, f"does not list {name}")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "nul\0", ".hidden", "ä"])
def test_a_file_outside_of_the_bundle_is_refused_before_it_is_looked_at(name: str, bundle: Path) -> None:
    edit(bundle, lambda m: m["files"].update({name: {"sha256": "0" * 64, "size_bytes": 1}}))
    refused(bundle, "outside of the bundle", repr(name))


def test_a_tokenizer_elsewhere_is_refused(bundle: Path) -> None:
    edit(bundle, lambda m: m["tokenizer"].update(file="../tokenizer.json"))
    refused(bundle, "tokenizer.file", "'tokenizer.json' or 'tokenizer.model'")


@pytest.mark.parametrize("found", [0, 2, "1", None, True, [1], 10**30])
def test_another_format_is_refused(found: Any, bundle: Path) -> None:
    edit(bundle, lambda m: m.update(format=found))
    refused(bundle, str(bundle), "format")


def test_a_newer_format_names_both_versions_and_the_way_out(bundle: Path) -> None:
    edit(bundle, lambda m: m.update(format=2))
    words = "has format 2", "reads format 1", "convert the checkpoint again"
    refused(bundle, *words, kind=OutdatedBundleError)  # no device ends for it: it takes the next one


@pytest.mark.parametrize("text", ["", "{", "not json", "[]", "7", "null", '"x"', "[" * 100_000, "NaN", "1" * 10_000])
def test_what_is_not_a_manifest_is_refused(text: str, bundle: Path) -> None:
    (bundle / "manifest.json").write_text(text)
    assert len(refused(bundle, str(bundle), "manifest.json")) < 500


def test_a_manifest_in_another_encoding_is_refused(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b'{"format": 1, "name": "\xff"}')
    refused(bundle, "manifest.json", "not UTF-8")


@pytest.mark.parametrize("name", [f.name for f in fields(Manifest) if f.name != "format" and f.default is MISSING])
def test_a_missing_field_is_named(name: str, bundle: Path) -> None:
    edit(bundle, lambda m: m.pop(name))
    refused(bundle, f"{name} is missing", kind=OutdatedBundleError)  # as earlier manifests lack it


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(context="256"), ["context is '256'", "whole number"]),
        (lambda m: m.update(context=-1), ["context is -1"]),
        (lambda m: m.update(context=512), ["graph.windows is [256]", "512"]),
        (lambda m: m.update(profile="tiny"), ["profile is 'tiny'", "'pi' or 'micro'"]),
        (lambda m: m["graph"].update(windows=[]), ["graph.windows is []"]),
        (lambda m: m["graph"].update(windows=[256, 64]), ["ascending"]),
        (lambda m: m["graph"].update(windows=7), ["graph.windows is 7", "a list"]),
        (lambda m: m["graph"].update(windows=[2.5]), ["graph.windows[0] is 2.5"]),
        (lambda m: m["graph"].pop("layers"), ["graph.layers is missing"]),
        (lambda m: m["tokenizer"].update(eos_ids=[None]), ["tokenizer.eos_ids[0] is None"]),
        (lambda m: m["files"]["model.tflite"].update(size_bytes="1"), ["files['model.tflite'].size_bytes is '1'"]),
        (lambda m: m.update(name="x" * 10_000, files=[]), ["files is []", "an object"]),
    ],
)
def test_a_field_of_another_type_is_named(change: Callable[[dict], object], words: list[str], bundle: Path) -> None:
    edit(bundle, change)
    refused(bundle, *words)


def test_fields_of_a_later_version_are_left_alone(bundle: Path) -> None:
    edit(bundle, lambda m: (m.update(colour="red"), m["graph"].update(colour="red")))
    assert Bundle.open(bundle).manifest.name == "gqa-tied"


def test_a_path_without_a_bundle_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match=r"not a bundle: it has no manifest\.json"):
        Bundle.open(tmp_path)


class TestVerification:
    """Hashing is saved for a file that has not changed, and only for such a file."""

    @pytest.fixture(autouse=True)
    def settled(self, bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("STONECHAT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(bundle_module, "_SETTLED_NS", 0)
        Bundle.open(bundle)

    def hashed(self, bundle: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> int:
        count = 0
        digest = hashlib.file_digest

        def counted(*args: Any) -> Any:
            nonlocal count
            count += 1
            return digest(*args)

        monkeypatch.setattr(hashlib, "file_digest", counted)
        Bundle.open(bundle, **options)
        return count

    def test_a_verified_bundle_is_not_hashed_again(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.hashed(bundle, monkeypatch) == 0

    def test_verify_hashes_every_file(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.hashed(bundle, monkeypatch, verify=True) == len(FILES)

    @pytest.mark.parametrize("name", FILES)
    def test_a_change_after_verification_is_refused(self, name: str, bundle: Path) -> None:
        flip(bundle / name, 100)
        refused(bundle, str(bundle / name))

    def test_a_change_whose_modification_time_was_set_back_is_refused(self, bundle: Path) -> None:
        file = bundle / "model.tflite"
        before = file.stat()
        time.sleep(0.02)  # a tick of the file system's clock
        flip(file, 100)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        refused(bundle, str(file))

    def test_a_file_put_in_its_place_is_refused(self, bundle: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        shutil.copy2(bundle / "model.tflite", other)
        flip(other, 100)
        other.replace(bundle / "model.tflite")
        refused(bundle, "model.tflite")

    def test_damaged_records_are_not_believed(self, bundle: Path, tmp_path: Path) -> None:
        records = list((tmp_path / "cache").rglob("verified-*"))
        assert len(records) == len(FILES)
        for record in records:
            record.write_bytes(b"\xff\xfe")
        flip(bundle / "prefix.npz", 100)
        refused(bundle, "prefix.npz")

    def test_another_report_keeps_what_the_runtime_prepared_for_the_graph(self, bundle: Path) -> None:
        before = Bundle.open(bundle).cache_path
        edit(bundle, lambda m: m.update(quality={}))
        assert Bundle.open(bundle).cache_path == before


class TestTextsThatCannotBeWrittenAgain:
    """Refused when they are read: an update that cannot write its own manifest would have given up the old one."""

    @pytest.mark.parametrize(
        "change, words",
        [
            (lambda m: m.update(name="half \ud83d"), "name has half a character"),
            (lambda m: m.update(instruction="\udcff"), "instruction has half a character"),
            (lambda m: m["tokenizer"]["special_tokens"].update({"\ud800": "x"}), "a name in tokenizer.special_tokens"),
            (lambda m: m.update(quality={"a": [{"b": "\ud800"}]}), "quality.a[0].b has half a character"),
            (lambda m: m.update(boards=["pi\0"]), "boards[0] has a zero byte"),
            (lambda m: m.update(version="1\0"), "version has a zero byte"),
            (lambda m: m.update(issued=""), "issued is ''; expected a date-time"),
            (lambda m: m.update(expires=""), "expires is ''; expected a date-time"),
            (lambda m: m.update(expires="9999-12-31T23:59:59-00:01"), "expires is"),
        ],
    )
    def test_in_a_manifest(self, change: Callable[[dict[str, Any]], object], words: str, bundle: Path) -> None:
        edit(bundle, change)
        refused(bundle, words)

    @pytest.mark.parametrize("width", [0, 1, 3, 7, 16, 10**12])
    def test_pointers_of_no_machine(self, width: int, bundle: Path) -> None:
        sizes = dict.fromkeys(("total_bytes", "head_bytes", "tail_bytes", "kv_cache_bytes"), 1000)
        edit(bundle, lambda m: m.update(arena=sizes | {"pointer_bytes": width}))
        refused(bundle, f"arena.pointer_bytes is {width}; expected 4 or 8")

    def test_what_is_read_can_be_written(self, bundle: Path) -> None:
        manifest = Bundle.open(bundle).manifest
        assert type(manifest).from_json(manifest.to_json()) == manifest


class TestThePrefix:
    def packed(self, bundle: Path, compression: int, zeros: int) -> Bundle:
        """A prefix.npz with arrays of so many zeros."""
        import io
        import zipfile

        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|i1", "fortran_order": False, "shape": self.shape(bundle)}
        )
        with zipfile.ZipFile(bundle / "prefix.npz", "w", compression) as archive:
            for name in ("k.npy", "v.npy"):
                archive.writestr(name, header.getvalue() + bytes(zeros))
        return Bundle(bundle, self.manifest, "")

    def shape(self, bundle: Path) -> tuple[int, ...]:
        self.manifest = Manifest.from_json((bundle / "manifest.json").read_text())
        graph = self.manifest.graph
        return (graph.layers, len(self.manifest.prefix_tokens), graph.kv_heads, graph.head_dim)

    def test_one_that_is_larger_in_memory_than_on_the_disk_is_refused(self, bundle: Path) -> None:
        import zipfile

        with pytest.raises(BundleError, match="k is compressed"):
            read_prefix(self.packed(bundle, zipfile.ZIP_DEFLATED, int(np.prod(self.shape(bundle)))))

    def test_one_of_another_length_is_refused(self, bundle: Path) -> None:
        import zipfile

        size = int(np.prod(self.shape(bundle)))
        with pytest.raises(BundleError, match=rf"k has \d+ bytes, expected {size}"):
            read_prefix(self.packed(bundle, zipfile.ZIP_STORED, size - 1))
        keys, values = read_prefix(self.packed(bundle, zipfile.ZIP_STORED, size))
        assert keys.shape == values.shape == self.shape(bundle)


def test_a_file_that_has_just_changed_is_hashed_again(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two changes within one tick of a file system's clock leave the same times."""
    monkeypatch.setattr(bundle_module, "_SETTLED_NS", 3600 * 10**9)
    opened = Bundle.open(bundle)
    assert opened.cache_path is not None
    record = opened.cache_path / "verified-model.tflite"
    assert not record.exists() or str((bundle / "model.tflite").stat().st_ino) not in record.read_text().split()


def test_without_a_writable_cache_bundles_open_all_the_same(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STONECHAT_CACHE", str(tmp_path / "file" / "cache"))
    assert Bundle.open(bundle).cache_path is None


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STONECHAT_CACHE", str(tmp_path / "own"))
    assert cache_folder("x") == tmp_path / "own" / "x"
    monkeypatch.delenv("STONECHAT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("x") == tmp_path / "xdg" / "stonechat" / "x"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("x") == tmp_path / "home" / ".cache" / "stonechat" / "x"


def test_a_step_reads_the_weights_and_one_window_of_the_cache() -> None:
    shape = GraphShape(2, 2, 16, 384, (256, 1024), 64, 4, 1000, False)
    assert shape.bytes_per_token(10) == 1000 + 2 * 2 * 2 * 16 * 256 * 4
    assert shape.bytes_per_token(257) == 1000 + 2 * 2 * 2 * 16 * 1024 * 4
    int8_cache = replace(shape, kv_cache_element_bytes=1)
    assert int8_cache.bytes_per_token(10) == 1000 + 2 * 2 * 2 * 16 * 256


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
many = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def opens_or_is_refused(bundle: Path, manifest: Any) -> None:
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    try:
        Bundle.open(bundle)
    except StonechatError as error:
        assert str(bundle) in str(error) and len(str(error)) < 1000
        str(error).encode()  # can be printed


@many
@given(anything)
def test_any_json_as_manifest_opens_or_is_refused(bundle: Path, manifest: Any) -> None:
    opens_or_is_refused(bundle, manifest)


@many
@given(st.data())
def test_any_value_anywhere_in_a_manifest_opens_or_is_refused(
    bundle: Path, pi_bundle: Path, data: st.DataObject
) -> None:
    manifest = json.loads((pi_bundle / "manifest.json").read_text())
    place: Any = manifest
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(anything)
    opens_or_is_refused(bundle, manifest)
