"""Long lives of a slot folder: installs, trials and ways back in any order, each of them cut by a loss of power."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from device_runtime.errors import ConfigurationError, SignatureError
from device_runtime.update.active import read_state, resolve
from device_runtime.update.install import install
from device_runtime.update.slots import Slots, lock
from device_runtime.update.state import Last
from device_runtime.update.trial import roll_back
from tests.support.power_cut import Write, recorded
from tests.support.update_bundles import confirm, contents, variant

COUNTERS = {"1": 1, "2": 2, "3": 2}
CUT = st.none() | st.tuples(st.floats(0, 1), st.randoms(use_true_random=False))


class SlotLife(RuleBasedStateMachine):
    """A folder, and what is known of it: which version runs, and which counter was confirmed."""

    sources: dict[str, Path]

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="slots-"))
        self.number = 0
        self.folder = self.root / "0"
        self.folder.mkdir()
        self.whole = {version: contents(path) for version, path in self.sources.items()}

    def active(self) -> str | None:
        try:
            path = resolve(self.folder)
        except ConfigurationError:
            return None
        if path == self.folder:
            return None
        return next(version for version, whole in self.whole.items() if whole == contents(path))

    @contextmanager
    def maybe_cut(self, cut: tuple | None) -> Iterator[None]:
        """Whatever is done in here, the power may go on the way: then the old or the new state is there."""
        before, counter = self.active(), read_state(self.folder).security_counter
        with recorded(self.folder) as recorder:
            yield
        after = self.active()
        if cut is not None:
            at, draw = round(cut[0] * len(recorder.log)), cut[1]
            self.number += 1
            survives = {
                i: draw.choice((0.0, 0.5, 1.0) if isinstance(recorder.log[i], Write) else (0.0, 1.0))
                for i in recorder.pending(at)
            }
            old, self.folder = self.folder, self.root / str(self.number)
            recorder.after_cut(at, survives.__getitem__, self.folder)
            shutil.rmtree(old)
        assert self.active() in (before, after)
        assert read_state(self.folder).security_counter >= counter

    def do(self, cut: tuple | None, act: Callable[[Slots], object]) -> None:
        with self.maybe_cut(cut), lock(self.folder, make=True) as slots:
            act(slots)

    @rule(version=st.sampled_from(sorted(COUNTERS)), cut=CUT)
    def install(self, version: str, cut: tuple | None) -> None:
        def act(slots: Slots) -> None:
            known = slots.state.security_counter
            try:
                install(self.sources[version], slots)
            except SignatureError:
                assert COUNTERS[version] < known
            else:
                assert COUNTERS[version] >= known

        self.do(cut, act)

    @precondition(lambda self: read_state(self.folder).trial is not None)
    @rule(passed=st.booleans(), cut=CUT)
    def trial(self, passed: bool, cut: tuple | None) -> None:
        def act(slots: Slots) -> None:
            assert slots.state.trial is not None
            if slots.state.trial.attempts_left == 0 or not passed:
                slots.give_back(Last("rolled_back", "gqa-tied", "?", "no"))
            else:
                confirm(slots)

        self.do(cut, act)

    @rule(cut=CUT)
    def roll_back(self, cut: tuple | None) -> None:
        def act(slots: Slots) -> None:
            before = slots.state
            try:
                roll_back(slots)
            except (ConfigurationError, SignatureError):
                assert before.trial is None and slots.state == before

        self.do(cut, act)

    @rule()
    def boot(self) -> None:
        self.do(None, lambda slots: None)
        state = read_state(self.folder)
        named = {slot for slot in (state.active, state.previous, state.trial and state.trial.slot) if slot}
        found = {path.name for path in self.folder.iterdir()} - {"slots.json", ".lock", "incoming"}
        assert found == named

    @invariant()
    def every_bundle_that_is_named_is_whole(self) -> None:
        state = read_state(self.folder)
        for slot in (state.active, state.previous, state.trial and state.trial.slot):
            assert slot is None or contents(self.folder / slot) in self.whole.values()

    def teardown(self) -> None:
        if hasattr(self, "root"):
            shutil.rmtree(self.root)


@pytest.mark.parametrize("lives", [25, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_life_of_a_slot_folder_ends_without_a_whole_bundle(lives: int, tiny: dict[str, Path]) -> None:
    class OfTheseBundles(SlotLife):
        sources = tiny

    run_state_machine_as_test(
        OfTheseBundles,
        settings=settings(
            max_examples=lives,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.reuse, Phase.generate),  # to shrink a life takes minutes
        ),
    )


@pytest.mark.parametrize("passes", [False, True])
def test_an_update_that_fails_does_not_cost_the_bundle_to_go_back_to(
    passes: bool, tiny: dict[str, Path], slot_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Versions 1 and 2 were confirmed, 3 is on trial: until it has passed, `rollback` leads to 1."""
    first = variant(tiny["1"], tmp_path / "1", "1", security_counter=2)
    folder = slot_folder(first, tiny["2"])
    whole = {version: contents(path) for version, path in (tiny | {"1": first}).items()}
    with lock(folder) as slots:
        install(tiny["3"], slots)
        assert slots.state.previous is not None and contents(slots.path(slots.state.previous)) == whole["1"]
        if passes:
            confirm(slots)
        else:
            slots.give_back(Last("rolled_back", "gqa-tied", "3", "it crashed"))
        found = {path.name for path in folder.iterdir()} - {"slots.json", ".lock", "incoming"}
        assert found == {slots.state.active, slots.state.previous}
        roll_back(slots)
        assert contents(resolve(folder)) == whole["2" if passes else "1"]
