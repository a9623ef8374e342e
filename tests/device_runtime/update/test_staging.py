"""A bundle that arrives in pieces: it may be cut at any of them, and goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_runtime.errors import BundleError, UpdateError
from device_runtime.update import durable
from device_runtime.update.active import read_state, resolve
from device_runtime.update.install import install
from device_runtime.update.policy import Admitted, Policy
from device_runtime.update.slots import lock
from device_runtime.update.staging import Missing, Staging
from device_runtime.update.state import TrialLimits
from tests.support.power_cut import Killer
from tests.support.update_bundles import confirm, contents


def head(bundle: Path) -> Admitted:
    return Policy().judge((bundle / "manifest.json").read_bytes(), None, 0)


def test_only_what_the_device_does_not_have_is_missing(tiny: dict[str, Path], slot_folder: Callable[..., Path]) -> None:
    with lock(slot_folder(tiny["1"])) as slots:
        staging = Staging.begin(slots, head(tiny["2"]))
        sizes = {name: entry.size_bytes for name, entry in staging.manifest.files.items()}
        hashes = {name: entry.sha256 for name, entry in staging.manifest.files.items()}
        assert staging.missing() == [
            Missing(name, hashes[name], 0, sizes[name]) for name in ("prefix.npz", "tokenizer.json")
        ]
        assert staging.reused == {name: sizes[name] for name in ("model.tflite", "tokenizer.table")}


def test_a_file_of_a_slot_is_copied_and_not_linked(tiny: dict[str, Path], slot_folder: Callable[..., Path]) -> None:
    folder = slot_folder(tiny["1"], tiny["2"])
    assert (folder / "a" / "model.tflite").stat().st_ino != (folder / "b" / "model.tflite").stat().st_ino
    assert all(path.stat().st_nlink == 1 for path in folder.rglob("*.tflite"))


def test_damage_in_a_slot_does_not_spread(tiny: dict[str, Path], slot_folder: Callable[..., Path]) -> None:
    folder = slot_folder(tiny["1"])
    model = folder / "a" / "model.tflite"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    with lock(folder) as slots:
        staging = Staging.begin(slots, head(tiny["2"]))
        assert "model.tflite" in {file.name for file in staging.missing()}
        assert set(staging.reused) == {"tokenizer.table"}


def test_to_install_a_damaged_bundle_again_repairs_it(tiny: dict[str, Path], slot_folder: Callable[..., Path]) -> None:
    folder = slot_folder(tiny["1"])
    with lock(folder) as slots:
        assert not install(tiny["1"], slots).changed
    model = folder / "a" / "model.tflite"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    with lock(folder) as slots:
        assert install(tiny["1"], slots).copied == ("model.tflite",)
        confirm(slots)
    assert contents(resolve(folder)) == contents(tiny["1"])


def test_pieces_may_come_twice_and_must_not_leave_a_gap(
    tiny: dict[str, Path], slot_folder: Callable[..., Path]
) -> None:
    content = (tiny["2"] / "tokenizer.json").read_bytes()
    with lock(slot_folder(tiny["1"])) as slots:
        staging = Staging.begin(slots, head(tiny["2"]))
        staging.write("tokenizer.json", 0, content[:100])
        with pytest.raises(UpdateError, match="byte 150 came when byte 100 was next"):
            staging.write("tokenizer.json", 150, content[150:])
        staging.write("tokenizer.json", 50, content[50:120])
        staging.write("tokenizer.json", 0, content[:10])
        assert [f.have_bytes for f in staging.missing() if f.name == "tokenizer.json"] == [120]
        staging.write("tokenizer.json", 120, content[120:])
        assert "tokenizer.json" not in {file.name for file in staging.missing()}
        staging.write("tokenizer.json", 0, content)  # the last piece once more: nothing is wrong with that
        with pytest.raises(UpdateError, match=r"prefix.npz has 0 of [\d,]+ bytes"):
            staging.finish()


def test_what_is_too_long_unknown_or_altered_is_refused(
    tiny: dict[str, Path], slot_folder: Callable[..., Path]
) -> None:
    folder = slot_folder(tiny["1"])
    content = (tiny["2"] / "tokenizer.json").read_bytes()
    with lock(folder) as slots:
        staging = Staging.begin(slots, head(tiny["2"]))
        with pytest.raises(BundleError, match="longer than"):
            staging.write("tokenizer.json", 0, content + b"!")
        with pytest.raises(BundleError, match="not in the manifest"):
            staging.write("../../escape", 0, b"x")
        with pytest.raises(BundleError, match="not in the manifest"):
            staging.write("manifest.json", 0, b"x")
        with pytest.raises(BundleError, match="not the file that the manifest describes"):
            staging.write("tokenizer.json", 0, content[:-1] + b"?")
        assert [f.have_bytes for f in staging.missing() if f.name == "tokenizer.json"] == [0]  # it starts again
    assert resolve(folder) == folder / "a"


@pytest.mark.parametrize("damaged", [False, True])
def test_a_file_whose_last_piece_came_just_before_a_cut_is_taken_or_asked_for_again(
    damaged: bool, tiny: dict[str, Path], slot_folder: Callable[..., Path]
) -> None:
    """The power may go when all is written and nothing flushed: the file has its length, and perhaps zeros."""
    content = (tiny["2"] / "tokenizer.json").read_bytes()
    folder = slot_folder(tiny["1"])
    with lock(folder) as slots:
        Staging.begin(slots, head(tiny["2"]))
    (folder / "incoming" / ".tokenizer.json.part").write_bytes(bytes(len(content)) if damaged else content)
    with lock(folder) as slots:
        missing = {file.name: file.have_bytes for file in Staging.begin(slots, head(tiny["2"])).missing()}
        assert missing == {"prefix.npz": 0} | ({"tokenizer.json": 0} if damaged else {})


def test_a_local_install_does_not_trust_the_beginning_of_a_file_that_was_cut(
    tiny: dict[str, Path], slot_folder: Callable[..., Path]
) -> None:
    folder = slot_folder(tiny["1"])
    with lock(folder) as slots:
        Staging.begin(slots, head(tiny["2"]))
    (folder / "incoming" / ".tokenizer.json.part").write_bytes(bytes(10))
    with lock(folder) as slots:
        install(tiny["2"], slots)
        assert slots.state.trial is not None
    assert contents(folder / "b") == contents(tiny["2"])


def test_another_manifest_drops_what_came_for_the_last_one(
    tiny: dict[str, Path], slot_folder: Callable[..., Path]
) -> None:
    with lock(slot_folder(tiny["1"])) as slots:
        Staging.begin(slots, head(tiny["2"])).write("prefix.npz", 0, b"prefix")
        staging = Staging.begin(slots, head(tiny["3"]))
        assert {file.have_bytes for file in staging.missing()} == {0}


def test_a_bundle_on_trial_is_called_off_by_a_newer_one(
    tiny: dict[str, Path], slot_folder: Callable[..., Path]
) -> None:
    folder = slot_folder(tiny["1"])
    with lock(folder) as slots:
        install(tiny["2"], slots)
        Staging.begin(slots, head(tiny["3"]))
    state = read_state(folder)
    assert state.trial is None and state.last is not None and state.last.outcome == "rolled_back"
    assert "called off" in str(state.last.reason) and state.last.version == "2"


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_the_pieces_and_restarts_are_the_bundle_arrives_whole(
    data: st.DataObject,
    tiny: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path_factory.mktemp("arrival") / "model"
    source, steps = tiny["2"], 0
    limits = TrialLimits(min_tps=3.5, max_rss_mb=120.0)
    monkeypatch.setattr(durable, "os", Killer())  # no power is cut here, and without flushes it is fast
    while True:
        with lock(folder, make=True) as slots:
            staging = Staging.begin(slots, head(source))
            while missing := staging.missing():
                file = data.draw(st.sampled_from(missing))
                content = (source / file.name).read_bytes()
                start = data.draw(st.integers(0, file.have_bytes))
                end = data.draw(st.integers(file.have_bytes + 1, len(content))) if steps < 15 else len(content)
                staging.write(file.name, start, content[start:end])
                steps += 1
                if steps < 15 and data.draw(st.booleans()):
                    break  # the device restarts
            else:
                staging.finish(limits)
                break
    state = read_state(folder)
    assert state.trial is not None and state.trial.limits == limits
    assert contents(folder / state.trial.slot) == contents(source)
