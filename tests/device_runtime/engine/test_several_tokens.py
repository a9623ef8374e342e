"""Several tokens in one run of the graph: the answer stays the one of single steps."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from converters.convert import Options, convert
from device_runtime.bundle.folder import Bundle
from device_runtime.engine import drafts
from device_runtime.engine.backends import Backend, open_backend
from device_runtime.engine.drafts import Draft, EarlierAnswers, Repetition
from device_runtime.engine.kv_cache import KvCache
from device_runtime.engine.language_model import LanguageModel
from tests.support.random_checkpoint import random_checkpoint

TOKENS = [int(token) for token in np.random.default_rng(4).integers(3, 384, 300)]
# The kernels quantize each row by itself, and float sums are in another order. That is below a millionth of the logits'
# size, until a value on the border between two of its int8 steps is rounded the other way: 8 of 1,029 rows were off by
# up to 0.017, where the int8 network is off the float one by up to 0.084. A draft row in the wrong place is off by the
# logits' whole size.
TOLERANCE = 0.03


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return convert(random_checkpoint(), tmp_path_factory.mktemp("b") / "b", Options("pi", context=512, fast=True))


@pytest.fixture
def backend(bundle: Bundle) -> Iterator[Backend]:
    backend = open_backend(bundle)
    yield backend
    backend.close()


def steps(backend: Backend, tokens: list[int]) -> np.ndarray:
    return np.stack([backend.decode(token).copy() for token in tokens])


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("count", [2, 3, 4, 5, 9])
def test_a_run_for_a_few_tokens_gives_the_logits_of_single_steps(backend: Backend, count: int) -> None:
    expected = steps(backend, TOKENS[: 4 + count])
    backend.rewind(0)
    steps(backend, TOKENS[:4])
    assert_close(backend.decode_several(TOKENS[4 : 4 + count]), expected[4:])
    assert_close(backend.decode(TOKENS[4 + count]), _after(backend, TOKENS[: 5 + count]))


def _after(backend: Backend, tokens: list[int]) -> np.ndarray:
    backend.rewind(0)
    return steps(backend, tokens)[-1]


def test_short_rests_of_a_prompt_and_the_edges_of_windows(backend: Backend) -> None:
    """Rests of 1 to 3 tokens after runs of four, across the window of 256."""
    expected = steps(backend, TOKENS)
    for length in (5, 6, 7, 250, 257, 300):
        backend.rewind(0)
        for start in range(0, length, 7):
            found = backend.prefill(TOKENS[start : min(start + 7, length)])
        assert_close(found, expected[length - 1])
        assert backend.position == length + 1


def test_drafts_that_come_cost_no_run_and_those_that_do_not_change_nothing(bundle: Bundle, backend: Backend) -> None:
    expected = steps(backend, TOKENS[:20])
    backend.rewind(0)
    cache = KvCache(backend, bundle.manifest.prefix_tokens)
    for i, token in enumerate(TOKENS[:20]):

        def guess(free: int, most: int, following: list[int] = TOKENS[i + 1 : i + 4], right: int = i % 3) -> Draft:
            tokens = [*following[:right], 3, 3, 3][:free]
            return Draft(tokens, range(1, len(tokens) + 1))

        assert_close(cache.decode(token, guess), expected[i])
    assert 8 < cache.runs < 20
    for _ in cache.prefill(TOKENS[20:22]):
        pass
    assert cache.tokens == (*bundle.manifest.prefix_tokens, *TOKENS[:22])
    assert backend.position == len(cache.tokens)


def test_a_draft_longer_than_a_run_for_a_few_tokens_gives_the_logits_that_are_asked_for(
    bundle: Bundle, backend: Backend
) -> None:
    """A prompt of 30 tokens, 26 drafted ones, of which ten come; then they are taken in as they come, in any parts."""
    expected = steps(backend, TOKENS[:60])
    backend.rewind(0)
    cache = KvCache(backend, bundle.manifest.prefix_tokens)
    draft = Draft([*TOKENS[30:40], *TOKENS[:16]], [2, 5, 9, 14])
    (logits,) = cache.prefill(TOKENS[:30], guess=lambda free, most: draft)
    assert_close(logits, expected[29])
    assert set(cache.known_ahead()) == {tuple(draft.tokens[:count]) for count in draft.asked}
    for start, end in ((30, 32), (32, 35)):
        (logits,) = cache.take_in(TOKENS[start:end])
        assert_close(logits, expected[end - 1])
    assert cache.runs == 1
    (logits,) = cache.take_in(TOKENS[35:37])  # whose logits nobody asked for
    assert_close(logits, expected[36])
    (logits,) = cache.take_in(TOKENS[37:60])
    assert_close(logits, expected[59])
    assert cache.runs == 3
    assert cache.tokens == (*bundle.manifest.prefix_tokens, *TOKENS[:60])
    assert backend.position == len(cache.tokens)


def test_what_is_only_looked_at_changes_neither_the_cache_nor_its_drafts(bundle: Bundle, backend: Backend) -> None:
    """Another label than the drafted one is looked at, also over the end of the drafts, and of the window of 256."""
    expected = steps(backend, TOKENS)
    for start in (20, 248):
        backend.rewind(0)
        cache = KvCache(backend, bundle.manifest.prefix_tokens)
        draft = Draft(TOKENS[start : start + 5], [5])
        *_, logits = cache.prefill(TOKENS[:start], guess=lambda free, most, draft=draft: draft)
        for others in ([7], [8, 9], TOKENS[:10], TOKENS[start : start + 2]):
            assert_close(cache.look(others), _elsewhere(bundle, [*TOKENS[:start], *others]))
            assert len(cache.tokens) == start + 1
        with cache.aside():
            for _ in cache.prefill(TOKENS[100:103]):
                pass
        runs = cache.runs
        (logits,) = cache.take_in(TOKENS[start : start + 5])
        assert cache.runs == runs
        assert_close(logits, expected[start + 4])
        assert_close(cache.decode(TOKENS[start + 5]), expected[start + 5])


def test_what_is_looked_at_first_is_a_draft_from_then_on(bundle: Bundle, backend: Backend) -> None:
    backend.rewind(0)
    cache = KvCache(backend, bundle.manifest.prefix_tokens)
    for _ in cache.prefill(TOKENS[:6]):
        pass
    seen = cache.look(TOKENS[6:8]).copy()
    assert cache.tokens == (*bundle.manifest.prefix_tokens, *TOKENS[:6])
    (logits,) = cache.take_in(TOKENS[6:8])
    assert cache.runs == 2 and np.array_equal(logits, seen)
    assert_close(logits, _elsewhere(bundle, TOKENS[:8]))
    cache.look(TOKENS[8:9])
    assert_close(cache.look(TOKENS[8:11]), _elsewhere(bundle, TOKENS[:11]))
    assert backend.position == 1 + 11
    cache.forget_drafts()
    assert backend.position == len(cache.tokens)


def _elsewhere(bundle: Bundle, tokens: list[int]) -> np.ndarray:
    other = open_backend(bundle)
    try:
        return steps(other, tokens)[-1]
    finally:
        other.close()


def test_greedy_answers_are_those_without_drafts(bundle: Bundle) -> None:
    """A random network repeats itself soon, so there is much to look up."""
    with LanguageModel.open(bundle.path) as model:
        plain = model.measure(TOKENS[:8], 60)
        answers = [model.generate("abc abc abc abc", max_new=60) for _ in range(2)]
        texts = ["".join(answer) for answer in answers[:1]]
        texts.append("".join(model.generate("abc abc abc abc", max_new=60)))
        assert texts[0] == texts[1]
        assert plain.tokens_per_pass == 1
        assert answers[0].result.completion_tokens == 60
        assert model.tokens_per_pass is not None and model.tokens_per_pass > 1


def test_a_schema_forces_most_of_an_answer(bundle: Bundle) -> None:
    schema = {
        "type": "object",
        "properties": {
            "severity": {"type": "string", "maxLength": 4},
            "temperature": {"type": "integer", "maximum": 9},
        },
        "required": ["severity", "temperature"],
    }
    with LanguageModel.open(bundle.path) as model:
        answer = model.generate("How is it?", max_new=80, schema=schema)
        assert "".join(answer).startswith('{"severity": "')
        assert answer.result.passes < 0.7 * answer.result.completion_tokens


def test_what_followed_the_last_tokens_before_is_guessed() -> None:
    earlier = EarlierAnswers()
    seen = Repetition([1, 2, 3, 4, 5, 2, 3], earlier)
    assert seen.after([], 3) == [4, 5, 2]
    assert seen.after([4], 2) == [5, 2]
    seen.add(9)
    assert seen.after([], 3) == []
    earlier.add([7, 2, 3, 9], [6, 6, 8])
    assert seen.after([], 3) == [6, 6, 8]


def test_int4_weights_take_in_several_tokens_too(tmp_path: Path) -> None:
    bundle = convert(random_checkpoint(), tmp_path / "b", Options("pi", context=64, weights="int4", fast=True))
    backend = open_backend(bundle)
    assert backend.several >= 4
    expected = steps(backend, TOKENS[:8])
    backend.rewind(0)
    steps(backend, TOKENS[:4])
    assert_close(backend.decode_several(TOKENS[4:8]), expected[4:])
    backend.close()


@pytest.mark.parametrize(("features", "pay"), [(("avx2", "fma"), False), (("avx512_vnni",), True)])
def test_guesses_are_made_with_int4_weights_only_where_they_pay(
    monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...], pay: bool
) -> None:
    """A run for four tokens takes 3.2 times as long as one for one with AVX2, and 1.9 times with AVX-512 VNNI."""
    avx512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl") if pay else ()
    monkeypatch.setattr(drafts, "program_arch", lambda: "x86_64")
    monkeypatch.setattr(drafts, "cpu_features", lambda: {*avx512, *features})
    assert drafts.guesses_pay(4) is pay
    assert drafts.guesses_pay(8)


GROWTH = """
import sys
from pathlib import Path
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends import open_backend

def anonymous_bytes():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10

backend = open_backend(Bundle.open(Path(sys.argv[1])))
tokens = list(map(int, sys.argv[2].split(",")))
backend.prefill(tokens)  # the largest activations
before = anonymous_bytes()
for length in range(1, len(tokens)):
    backend.rewind(0)
    backend.prefill(tokens[:length])
print(anonymous_bytes() - before)
"""


def test_runs_of_every_length_share_their_large_buffers(tmp_path: Path) -> None:
    """A buffer of logits for each length would add up to as much memory as the rest of the heap. In a process of its
    own: what other tests have left to the heap of this one moves as well."""
    vocabulary = 32_768  # 128 KiB of logits
    shape = dict(vocabulary=vocabulary, width=16, layers=1, heads=2, kv_heads=1, ffn_width=32)
    convert(random_checkpoint(**shape), tmp_path / "b", Options("pi", context=128, fast=True))
    words = [sys.executable, "-c", GROWTH, str(tmp_path / "b"), ",".join(map(str, TOKENS[:64]))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16 * 4 * vocabulary  # of the 63 that there would be


@pytest.mark.parametrize("context", [64, 300])
def test_a_run_of_any_length_up_to_the_last_position(tmp_path: Path, context: int) -> None:
    """The cache grows from 256 to 300 positions in the middle, and its last one is used."""
    bundle = convert(random_checkpoint(), tmp_path / "b", Options("pi", context=context, fast=True))
    backend = open_backend(bundle)
    free = context - backend.position
    expected = steps(backend, TOKENS[:free])
    for lengths in ([free], [1, free - 1], [free - 3, 2, 1]):
        backend.rewind(0)
        start = 0
        for length in lengths:
            found = backend.prefill(TOKENS[start : start + length])
            start += length
        assert_close(found, expected[-1])
        assert backend.position == context
    backend.close()
