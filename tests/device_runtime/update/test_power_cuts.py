"""Power goes at every step of every change to a slot folder, and with it whatever was not flushed."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_runtime.bundle.folder import Bundle
from device_runtime.errors import ConfigurationError, StonechatError
from device_runtime.update.active import STATE, resolve
from device_runtime.update.install import install
from device_runtime.update.slots import Slots, lock
from device_runtime.update.state import SLOTS, Last
from device_runtime.update.trial import roll_back
from tests.support.power_cut import Recorder, Write, recorded
from tests.support.update_bundles import confirm, contents


def give_back(slots: Slots) -> None:
    slots.attempt()
    slots.give_back(Last("rolled_back", "gqa-tied", "2", "wrong answer"))


def losses(recorder: Recorder, cut: int, limit: int) -> list[dict[int, float]]:
    """Ways in which what was not flushed before a cut may have survived: change -> share of it.

    All ways where they are at most `limit`; else nothing, everything, and a draw from the rest.
    """
    pending = recorder.pending(cut)
    shares = [(0.0, 0.5, 1.0) if isinstance(recorder.log[i], Write) else (0.0, 1.0) for i in pending]
    every = 1
    for share in shares:
        every *= len(share)
    if every <= limit:
        return [dict(zip(pending, chosen, strict=True)) for chosen in itertools.product(*shares)]
    draw = random.Random(cut)
    some = [tuple(draw.choice(share) for share in shares) for _ in range(limit - 2)]
    return [dict(zip(pending, chosen, strict=True)) for chosen in [(0.0,) * len(shares), (1.0,) * len(shares), *some]]


def resolve_or_none(folder: Path) -> Path | None:
    """The bundle that runs, if any."""
    try:
        path = resolve(folder)
    except ConfigurationError:
        return None
    return None if path == folder else path  # a folder without slots.json stands for itself


def active(folder: Path) -> str | None:
    """The version that a start finds, after a check of every byte; None where there is none."""
    path = resolve_or_none(folder)
    return None if path is None else Bundle.open(path, verify=True).manifest.version


# What is done, with which versions confirmed beforehand, what may run after a cut, and what has to run at the end.
CHANGES: dict[str, tuple[tuple[str, ...], str | None, Callable[[Slots], object], set[str | None], str | None]] = {
    "the first install": ((), "1", lambda slots: None, {None}, None),
    "an install": (("1",), "2", lambda slots: None, {"1"}, "1"),
    "an install over the previous bundle": (("1", "2"), "3", lambda slots: None, {"2"}, "2"),
    "an install and its confirmation": (("1",), "2", confirm, {"1", "2"}, "2"),
    "the first install and its confirmation": ((), "1", confirm, {None, "1"}, "1"),
    "an install that is given back": (("1",), "2", give_back, {"1"}, "1"),
    "the first install, given back": ((), "2", give_back, {None}, None),
    "an install that is called off": (("1",), "2", roll_back, {"1"}, "1"),
    "going back by hand": (("2", "3"), None, roll_back, {"3", "2"}, "2"),
}


QUICK = ("an install over the previous bundle", "an install and its confirmation", "an install that is given back",
         "the first install and its confirmation", "going back by hand")  # fmt: skip


@pytest.mark.parametrize(
    "name, ways", [*((name, 6) for name in QUICK), *(pytest.param(n, 200, marks=pytest.mark.slow) for n in CHANGES)]
)
def test_after_a_cut_the_old_or_the_new_bundle_is_there_whole(
    name: str, ways: int, tiny: dict[str, Path], slot_folder: Callable[..., Path], tmp_path: Path
) -> None:
    confirmed, new, act, allowed, end = CHANGES[name]
    folder = slot_folder(*(tiny[v] for v in confirmed))
    folder.mkdir(exist_ok=True)
    whole = {v: contents(path) for v, path in tiny.items()}

    def change(folder: Path) -> None:
        with lock(folder, make=True) as slots:
            if new is not None:
                install(tiny[new], slots)
            act(slots)

    with recorded(folder) as recorder:
        change(folder)
    assert active(folder) == end
    assert len(recorder.log) >= (4 if new is None else 30)
    seen = set()
    for cut in range(len(recorder.log) + 1):
        for number, kept in enumerate(losses(recorder, cut, ways)):
            found = recorder.after_cut(cut, kept.__getitem__, tmp_path / "found")
            label = f"{name}, cut before change {cut} of {len(recorder.log)}, kept {kept}"
            version = active(found)
            assert version in allowed, label
            before = resolve_or_none(found)
            with lock(found, make=True) as slots:  # the next start
                state = slots.state
            assert resolve_or_none(found) == before, label
            seen.add(version)
            for slot in {state.active, state.previous, state.trial and state.trial.slot} - {None}:
                assert contents(found / str(slot)) in whole.values(), f"{label}: {slot} is damaged"
            left = {path.name for path in found.iterdir()} - {STATE, ".lock", "incoming"}
            assert left == {s for s in SLOTS if s in (state.active, state.previous)} | (
                {state.trial.slot} if state.trial else set()
            ), label
            if (
                number == 0 and (cut % 3 == 0 or ways > 100) and new is not None and version != new
            ):  # nothing flushed survived: try once more
                with recorded(found), lock(found) as slots:  # `recorded`, so that the disk need not flush
                    install(tiny[new], slots)
                    trial = slots.state.trial
                    assert trial is not None and contents(slots.path(trial.slot)) == whole[new], label
                    confirm(slots)
                assert active(found) == new, label
            shutil.rmtree(found)
    assert seen == allowed


def test_the_model_of_the_disk_agrees_with_the_disk(
    tiny: dict[str, Path], slot_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = slot_folder(tiny["1"])
    with recorded(folder) as recorder, lock(folder) as slots:
        install(tiny["2"], slots)
        confirm(slots)
    everything = recorder.after_cut(len(recorder.log), lambda i: 1.0, tmp_path / "found")
    assert contents(everything).keys() | {".lock"} == contents(folder).keys() | {".lock"}
    assert {k: v for k, v in contents(everything).items() if k != ".lock"} == {
        k: v for k, v in contents(folder).items() if k != ".lock"
    }


@pytest.mark.parametrize("step", ["sync_folder", "sync_file"])
def test_this_test_finds_a_flush_that_was_left_out(
    step: str, tiny: dict[str, Path], slot_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the flushes of durable.py some cut must leave a damaged folder, or the tests above prove nothing."""
    from device_runtime.update import durable

    folder = slot_folder(tiny["1"])
    monkeypatch.setattr(durable, step, lambda path: None)
    with recorded(folder) as recorder, lock(folder) as slots:
        install(tiny["2"], slots)
        confirm(slots)
    assert any(is_damaged(recorder, cut, kept, tmp_path / "found") for cut, kept in ways_to_cut(recorder))


def ways_to_cut(recorder: Recorder) -> Iterator[tuple[int, dict[int, float]]]:
    for cut in range(len(recorder.log), -1, -1):
        for kept in losses(recorder, cut, 16):
            yield cut, kept


def is_damaged(recorder: Recorder, cut: int, kept: dict[int, float], path: Path) -> bool:
    found = recorder.after_cut(cut, kept.__getitem__, path)
    try:
        return active(found) not in ("1", "2")
    except StonechatError:
        return True
    finally:
        shutil.rmtree(found)
