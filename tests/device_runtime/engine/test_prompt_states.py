"""What was computed once of a prompt is not computed again, and changes no answer."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends import Backend, open_backend
from device_runtime.engine.language_model import LanguageModel
from device_runtime.engine.states import store
from device_runtime.engine.states.snapshot import Snapshot, shared
from device_runtime.engine.states.store import PromptStates
from device_runtime.errors import BackendError, ConfigurationError

GARDEN = {"role": "system", "content": "You look after a garden: name the plant that needs water most, and say why."}
BOILER = {"role": "system", "content": "You look after a boiler: name the part that is about to fail, and say why."}


def asked(system: dict[str, str], text: str) -> list[dict[str, str]]:
    return [system, {"role": "user", "content": text}]


def cached(model: LanguageModel, system: dict[str, str], text: str, head: str | None = "") -> tuple[str, int]:
    generation = model.generate(asked(system, text), max_new=8, head=head)
    return "".join(generation), generation.result.cached_tokens


@pytest.fixture
def model(pi_bundle: Path) -> Iterator[LanguageModel]:
    with LanguageModel.open(pi_bundle, threads=1) as model:
        yield model


class TestTwoLinksInTurn:
    def test_the_second_round_reuses_the_fixed_beginnings(self, model: LanguageModel) -> None:
        first = [cached(model, system, "It has 31 °C.") for system in (GARDEN, BOILER)]
        second = [cached(model, system, "Now it has 7 °C.") for system in (GARDEN, BOILER)]
        fixed = len(model.encode([GARDEN])) - 10  # but for the template's opening of the answer
        assert all(count < 25 for _, count in first)  # BOS, and what the two begin with in common
        assert all(count >= fixed for _, count in second)

    def test_answers_are_those_of_a_model_that_keeps_nothing(self, model: LanguageModel, pi_bundle: Path) -> None:
        texts = ["It has 31 °C.", "Now it has 7 °C.", "It has 31 °C.", "The line is dead."]
        with LanguageModel.open(pi_bundle, threads=1, keep_bytes=0) as forgetful:
            for text in texts:
                for system in (GARDEN, BOILER):
                    kept, plain = cached(model, system, text), cached(forgetful, system, text)
                    assert kept[0] == plain[0]
        assert forgetful.states.count == 0

    def test_a_link_keeps_its_beginning_alone(self, model: LanguageModel) -> None:
        for system in (GARDEN, BOILER, GARDEN):
            cached(model, system, "A long reading that will never come again, with many words in it.")
        position = model.backend.position_bytes
        assert model.states.count == 2
        assert model.states.used_bytes <= (len(model.encode([GARDEN])) + len(model.encode([BOILER]))) * position

    def test_the_text_that_every_prompt_begins_with_is_kept_too(self, model: LanguageModel) -> None:
        head = "The greenhouse on the north side, which has two doors and a fan, reports "
        cached(model, GARDEN, f"{head}31 °C.", head)
        cached(model, BOILER, "4 bar")
        _, count = cached(model, GARDEN, f"{head}7 °C.", head)
        assert count == shared(*(model.encode(asked(GARDEN, head + end)) for end in ("31 °C.", "7 °C.")))


class TestConversations:
    def test_a_conversation_comes_back_whole_after_another(self, model: LanguageModel) -> None:
        answer, _ = cached(model, GARDEN, "Hello.", None)
        cached(model, BOILER, "Is it on?", None)
        turns = [*asked(GARDEN, "Hello."), {"role": "assistant", "content": answer}, {"role": "user", "content": "So?"}]
        generation = model.generate(turns, max_new=4)
        list(generation)
        assert generation.result.cached_tokens >= len(model.encode(asked(GARDEN, "Hello.")))

    def test_one_is_kept_on_the_disk_by_name(self, model: LanguageModel, pi_bundle: Path) -> None:
        answer, _ = cached(model, GARDEN, "Hello.", None)
        said = [*asked(GARDEN, "Hello."), {"role": "assistant", "content": answer}]
        path = model.save_conversation("garden", said)
        assert path.stat().st_mode & 0o777 == 0o600
        with LanguageModel.open(pi_bundle, threads=1) as later:
            assert later.load_conversation("garden") == said
            generation = later.generate([*said, {"role": "user", "content": "So?"}], max_new=4)
            text = "".join(generation)
            assert generation.result.cached_tokens >= len(model.encode(said[:2]))
        fresh = model.generate([*said, {"role": "user", "content": "So?"}], max_new=4)
        assert text == "".join(fresh)

    def test_a_name_that_is_unknown_or_none_is_refused(self, model: LanguageModel) -> None:
        with pytest.raises(ConfigurationError, match="no conversation 'nobody'"):
            model.load_conversation("nobody")
        with pytest.raises(ConfigurationError, match="garden-2"):
            model.save_conversation("../x", [])

    def test_what_no_file_could_hold_is_refused_and_leaves_none(self, model: LanguageModel) -> None:
        with pytest.raises(ConfigurationError, match="half of a surrogate pair"):
            model.save_conversation("half", asked(GARDEN, "Hello \ud800."))
        assert not model.has_conversation("half")

    def test_one_of_another_graph_is_refused(self, model: LanguageModel) -> None:
        """Its file lies elsewhere, so somebody has copied it."""
        path = model.save_conversation("copied", asked(GARDEN, "Hello."))
        content = dict(np.load(path))
        for name in content:
            if name.startswith("state_"):
                content[name] = content[name].astype(np.float32)
        np.savez(path, **content)
        with pytest.raises(BackendError, match=r"copied\.npz: .* has float32 \(.*, and this bundle int8 \("):
            model.load_conversation("copied")
        last = max((name for name in content if name.startswith("state_")), key=lambda name: int(name[6:]))
        del content[last]
        np.savez(path, **content)
        with pytest.raises(BackendError, match=r"copied\.npz: .* has \d+ arrays, and this bundle \d+\. Delete"):
            model.load_conversation("copied")

    def test_a_damaged_file_is_reported(self, model: LanguageModel) -> None:
        path = model.save_conversation("damaged", asked(GARDEN, "Hello."))
        path.write_bytes(path.read_bytes()[:-40])
        one_number = io.BytesIO()
        np.savez(one_number, tokens=np.array(5), messages=np.frombuffer(b"[]", np.uint8), backend="CompiledBackend")
        for damage in (path.read_bytes()[:-40], b"broken", b"", one_number.getvalue()):
            path.write_bytes(damage)
            with pytest.raises(ConfigurationError, match=r"is damaged; delete it and begin again\.$"):
                model.load_conversation("damaged")


class TestBackends:
    @pytest.mark.parametrize(("profile", "name"), [("pi", "compiled"), ("micro", "litert"), ("micro", "native")])
    def test_a_state_of_another_graph_is_refused_and_changes_nothing(
        self, converted: Callable[..., Path], profile: str, name: str
    ) -> None:
        micro = Path(__file__).parents[3] / "examples/fall-alert/bundle"
        backend = open_backend(Bundle.open(converted("gqa-tied") if profile == "pi" else micro), name, threads=1)
        backend.prefill([5, 6, 7])
        state = backend.snapshot(backend.position)
        first = state.arrays[0]
        others = {
            "positions, and this bundle holds": Snapshot(backend.context + 1, state.arrays),
            "arrays, and this bundle": Snapshot(state.positions, (*state.arrays, first)),
            r"\(0,\), and this bundle": Snapshot(state.positions, (first[:0].reshape(-1), *state.arrays[1:])),
            "float16 .*, and this bundle": Snapshot(state.positions, (first.astype(np.float16), *state.arrays[1:])),
        }
        expected = backend.decode(8).copy()
        for difference, other in others.items():
            with pytest.raises(BackendError, match=f"of another graph: it has .*{difference}.* Delete it and begin"):
                backend.restore(other, other.positions)
        backend.restore(state, state.positions)
        np.testing.assert_array_equal(backend.decode(8), expected)
        backend.close()

    @pytest.mark.parametrize(("profile", "name"), [("pi", "compiled"), ("micro", "litert"), ("micro", "native")])
    def test_what_was_restored_computes_as_what_was_there(
        self, converted: Callable[..., Path], profile: str, name: str
    ) -> None:
        micro = Path(__file__).parents[3] / "examples/fall-alert/bundle"  # the tests of other files convert theirs
        folder = converted("gqa-tied") if profile == "pi" else micro
        backend: Backend = open_backend(Bundle.open(folder), name, 1)
        one, other = list(range(5, 25)), list(range(40, 70))
        after = backend.prefill(one).copy()
        state = backend.snapshot(backend.position - 1)
        if name != "native":  # which copies the whole kv_cache
            assert state.nbytes == state.positions * backend.position_bytes
        backend.rewind(0)
        backend.prefill(other)
        backend.restore(state, state.positions)
        # The token was taken in with others in one run before: the same numbers, whose sums are in another order.
        np.testing.assert_allclose(backend.decode(one[-1]), after, rtol=1e-4, atol=1e-5)
        backend.rewind(0)
        backend.restore(state, state.positions - 5)  # a part of it serves a prompt that agrees so far
        # 64 rows at once are summed in another order than single steps
        assert np.allclose(backend.prefill(one[-6:]), after, atol=2e-3)
        backend.close()


def state(positions: int) -> Snapshot:
    return Snapshot(positions, (np.zeros(positions, np.uint8),))


class TestTheStore:
    @given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=30), st.integers(0, 40))
    def test_it_never_holds_more_than_it_may(self, prompts: list[list[int]], limit: int) -> None:
        states = PromptStates(limit)
        for tokens in prompts:
            states.keep(tokens, state(len(tokens)))
            assert states.used_bytes == sum(len(known) for known in states._states) <= limit
            assert states._sorted == sorted(states._states)
            assert states._lengths == Counter(map(len, states._states))
            longer = [known for known in states._states if known == tuple(tokens[: len(known)])]
            assert longer in ([], [tuple(tokens)])  # what it replaces is gone

    @given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), max_size=9), st.lists(st.integers(0, 2)))
    def test_it_finds_the_longest_beginning(self, prompts: list[list[int]], tokens: list[int]) -> None:
        states = PromptStates(10_000)
        for prompt in prompts:
            states.keep(prompt, state(len(prompt)))
        assert states.find(tokens)[1] == max((shared(prompt, tokens) for prompt in prompts), default=0)

    def test_of_thousands_it_looks_at_two(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A device with a small model keeps one for each of its last thousands of readings, and is to stay as quick."""
        states, looked = PromptStates(1_000_000), []
        for number in range(5000):
            states.keep([1, 2, number % 70, number], state(4))
        monkeypatch.setattr(store, "shared", lambda known, tokens: looked.append(known) or shared(known, tokens))
        assert states.find([1, 2, 35, 4200 + 35, 8])[1] == 4 and len(looked) <= 3

    def test_the_least_recently_used_goes_first(self) -> None:
        states = PromptStates(10)
        states.keep([1, 1, 1, 1], state(4))
        states.keep([2, 2, 2, 2], state(4))
        states.find([1, 1])
        states.keep([3, 3, 3, 3], state(4))
        assert states.find([2, 2])[1] == 0 and states.find([1, 1])[1] == 2
