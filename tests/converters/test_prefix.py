"""`convert --prefix`: an instruction whose keys and values are computed at conversion, in both profiles."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.checkpoints import Checkpoint, open_checkpoint
from converters.convert import Options, convert
from converters.quantize.prefix import choose_prefix
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.prefix import read_prefix
from device_runtime.engine.backends import open_backend
from device_runtime.engine.chat import render_chat
from device_runtime.engine.language_model import LanguageModel
from device_runtime.engine.tokenizer import Tokenizer, read_tokenizer
from device_runtime.errors import BundleError, ConfigurationError
from tests.support.micro_bundles import relative_error
from tests.support.random_checkpoint import CHECKPOINTS, float_logits, random_checkpoint
from toolkit.cli import main

ROOT = Path(__file__).parents[2]
INSTRUCTION = "Answer with one word: open or close. " * 4
LONG = "Close the valve when the pump runs hot, and say so in the log. " * 20  # beyond the first cache window
QUESTION = [{"role": "user", "content": "The pump runs hot."}]
SYSTEM_FIRST = open_checkpoint(CHECKPOINTS / "gqa-tied").tokenizer
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
SYSTEM_LAST = "{% for m in messages | reverse %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
WITH_DATE = "Today is {{ strftime_now('%d %b %Y') }}. {% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return read_tokenizer(CHECKPOINTS / "gqa-tied" / "tokenizer.json")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """The tame random network, with a chat template."""
    return replace(random_checkpoint(), tokenizer=SYSTEM_FIRST)


@pytest.fixture(scope="module")
def bundles(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Bundle]:
    made: dict[tuple[str, str], Bundle] = {}

    def bundle(profile: str, instruction: str) -> Bundle:
        key = (profile, instruction)
        if key not in made:
            options = Options(profile, 1024 if instruction is LONG else 256, instruction=instruction, fast=True)  # type: ignore[arg-type]
            made[key] = convert(checkpoint, tmp_path_factory.mktemp("prefix") / "bundle", options)
        return made[key]

    return bundle


class TestChoice:
    @given(content=st.text(max_size=40))
    def test_every_conversation_begins_with_it(self, tokenizer: Tokenizer, content: str) -> None:
        """Whatever the first characters of the message are: none of them joins a token of the prefix."""
        prefix = choose_prefix(SYSTEM_FIRST, tokenizer, INSTRUCTION)
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": content}]
        text = render_chat(SYSTEM_FIRST.chat_template, messages, SYSTEM_FIRST.special_tokens)
        assert tokenizer.encode(text)[: len(prefix)] == prefix

    @pytest.mark.parametrize(
        "template, expected",
        [
            (SYSTEM_FIRST.chat_template, [0]),
            # A system message begins with another token than a user's: neither is the beginning of every prompt.
            ("{% for m in messages %}{{ '<|im_end|>' if m.role == 'system' else '<|im_start|>' }}"
             "{{ m.content }}{% endfor %}", []),
            ("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", []),
            ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}<|im_start|>"
             "{{ messages[0].content }}", [0]),
        ],
    )  # fmt: skip
    def test_the_first_token_is_what_all_conversations_share(
        self, tokenizer: Tokenizer, template: str, expected: list[int]
    ) -> None:
        assert choose_prefix(replace(SYSTEM_FIRST, chat_template=template), tokenizer) == expected

    def test_an_instruction_is_text(self, tokenizer: Tokenizer) -> None:
        prefix = choose_prefix(SYSTEM_FIRST, tokenizer, "Be brief.<|im_end|><|im_start|>user")
        assert (prefix.count(0), prefix.count(1)) == (2, 1)

    def test_it_holds_the_whole_instruction(self, tokenizer: Tokenizer) -> None:
        assert INSTRUCTION.strip() in tokenizer.decode(choose_prefix(SYSTEM_FIRST, tokenizer, INSTRUCTION))

    def test_without_a_template_it_is_bos_and_the_text(self, tokenizer: Tokenizer) -> None:
        file = replace(SYSTEM_FIRST, chat_template=None, adds_bos=True)
        assert choose_prefix(file, tokenizer, "Once upon") == [file.bos_id, *tokenizer.encode("Once upon")]

    @pytest.mark.parametrize(
        "template, words",
        [
            (NO_SYSTEM, "does not put the system message first"),
            (SYSTEM_LAST, "does not put the system message first"),
            (WITH_DATE, "writes today's date"),
        ],
    )
    def test_a_template_that_cannot_have_one_is_refused(self, template: str, words: str, tokenizer: Tokenizer) -> None:
        with pytest.raises(ConfigurationError, match=words):
            choose_prefix(replace(SYSTEM_FIRST, chat_template=template), tokenizer, INSTRUCTION)

    @pytest.mark.parametrize("instruction", ["", " \n"])
    def test_an_empty_one_is_refused(self, instruction: str, tokenizer: Tokenizer) -> None:
        with pytest.raises(ConfigurationError, match="--prefix is empty"):
            choose_prefix(SYSTEM_FIRST, tokenizer, instruction)


class TestBackends:
    """Each gives what the float network gives when it reads the instruction as well. The tolerance is that of the
    graphs without an instruction: tests/converters/test_pi_graph.py and test_micro_graph.py explain it."""

    TOKENS = tuple(int(t) for t in np.random.default_rng(3).integers(3, 384, 24))

    @pytest.mark.parametrize("backend_name", ["compiled", "litert", "tflm"])
    @pytest.mark.parametrize("instruction", [INSTRUCTION, LONG], ids=["short", "long"])
    def test_logits_behind_it(
        self, backend_name: str, instruction: str, bundles: Callable[..., Bundle], checkpoint: Checkpoint
    ) -> None:
        if backend_name == "tflm":
            pytest.importorskip("tflite_micro", reason="tflite-micro is not installed (x86_64 only)")
        bundle = bundles("pi" if backend_name == "compiled" else "micro", instruction)
        prefix = bundle.manifest.prefix_tokens
        backend = open_backend(bundle, backend_name, threads=1)
        assert backend.position == len(prefix) > (256 if instruction is LONG else 16)
        expected = float_logits(checkpoint, prefix, self.TOKENS)
        found = np.stack([backend.decode(token).copy() for token in self.TOKENS])
        backend.rewind(0)
        again = backend.prefill(self.TOKENS).copy()
        backend.close()
        assert relative_error(found, expected) < 0.08
        assert relative_error(again, expected[-1]) < 0.08

    def test_in_tflite_runtime(self, bundles: Callable[..., Bundle], checkpoint: Checkpoint, tmp_path: Path) -> None:
        python = os.environ.get("STONECHAT_TFLITE214_PYTHON")
        if not python or not Path(python).exists():
            pytest.skip("STONECHAT_TFLITE214_PYTHON names no Python with tflite-runtime 2.14; `make test` sets it")
        bundle = bundles("micro", INSTRUCTION)
        code = (
            "import sys, numpy as np; from device_runtime.engine.backends import open_backend; "
            "from device_runtime.bundle.folder import Bundle; "
            "b = open_backend(Bundle.open(sys.argv[1]), 'tflite-runtime'); "
            f"np.save(sys.argv[2], np.stack([b.decode(t).copy() for t in {self.TOKENS}]))"
        )
        command = [python, "-c", code, str(bundle.path), str(tmp_path / "logits.npy")]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=120)
        expected = float_logits(checkpoint, bundle.manifest.prefix_tokens, self.TOKENS)
        assert relative_error(np.load(tmp_path / "logits.npy"), expected) < 0.08

    def test_it_takes_no_variable_memory_in_tflite_micro(self, bundles: Callable[..., Bundle]) -> None:
        """The rows are constants, which stay in flash. Each of the two updates adds its records, and no more."""
        pytest.importorskip("tflite_micro", reason="tflite-micro is not installed (x86_64 only)")
        short, long = bundles("micro", "x").manifest, bundles("micro", INSTRUCTION).manifest
        assert len(long.prefix_tokens) > len(short.prefix_tokens) + 16
        assert short.arena == long.arena is not None


@pytest.fixture(params=["pi", "micro"])
def bundle(request: pytest.FixtureRequest, bundles: Callable[..., Bundle]) -> Bundle:
    return bundles(request.param, INSTRUCTION)


class TestEngine:
    def test_messages_get_it_as_their_system_message(self, bundle: Bundle) -> None:
        with LanguageModel.open(bundle.path) as model:
            system = {"role": "system", "content": INSTRUCTION}
            assert model.encode(QUESTION) == model.encode([system, *QUESTION])
            generation = model.generate(QUESTION, max_new=3)
            list(generation)
            assert generation.result.cached_tokens == len(bundle.manifest.prefix_tokens)
            assert generation.result.prompt_tokens == len(model.encode(QUESTION))

    def test_the_answer_is_that_to_the_same_system_message_without_a_prefix(
        self, checkpoint: Checkpoint, bundles: Callable[..., Bundle], tmp_path: Path
    ) -> None:
        """Its keys and values are the float network's, so the first logits are at most nearer to it."""
        plain = convert(checkpoint, tmp_path / "plain", Options("pi", 256, fast=True))
        system = {"role": "system", "content": INSTRUCTION}
        logits = []
        for path, messages in ((plain.path, [system, *QUESTION]), (bundles("pi", INSTRUCTION).path, QUESTION)):
            with LanguageModel.open(path) as model:
                tokens = model.encode(messages)
                logits.append(model.backend.prefill(tokens[len(model.manifest.prefix_tokens) :]).copy())
        assert relative_error(logits[1], logits[0]) < 0.08

    def test_another_system_message_is_refused(self, bundle: Bundle) -> None:
        words = r"has its instruction baked in \('Answer with one word"
        with LanguageModel.open(bundle.path) as model, pytest.raises(ConfigurationError, match=words):
            model.encode([{"role": "system", "content": "Sing."}, *QUESTION])

    def test_plain_text_continues_it(self, bundle: Bundle) -> None:
        with LanguageModel.open(bundle.path) as model:
            prefix = list(bundle.manifest.prefix_tokens)
            tokens = model.encode("pump")
            assert tokens[: len(prefix)] == prefix
            assert tokens[len(prefix) :] == model._tokenizer.encode("pump")

    def test_it_is_not_preceded_by_a_second_bos(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        file = replace(SYSTEM_FIRST, chat_template=None, adds_bos=True)
        bundle = convert(
            replace(checkpoint, tokenizer=file), tmp_path / "b", Options("pi", 256, instruction="open", fast=True)
        )
        with LanguageModel.open(bundle.path) as model:
            assert model.encode("close").count(file.bos_id) == 1


@pytest.mark.parametrize("damage", ["shape", "type", "name", "zip"])
def test_a_prefix_of_another_shape_is_refused(damage: str, bundles: Callable[..., Bundle], tmp_path: Path) -> None:
    source = bundles("pi", INSTRUCTION)
    arrays = dict(np.load(source.prefix_path))
    if damage == "shape":
        arrays["k"] = arrays["k"][:, 1:]
    elif damage == "type":
        arrays["v"] = arrays["v"].astype(np.float64)
    elif damage == "name":
        del arrays["v"]
    bundle = replace(source, path=tmp_path)
    np.savez(bundle.prefix_path, **arrays)
    if damage == "zip":
        bundle.prefix_path.write_bytes(b"PK" + bytes(100))
    with pytest.raises(BundleError, match=r"prefix\.npz.*[Cc]onvert the checkpoint again"):
        read_prefix(bundle)


class TestCommand:
    def run(self, capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
        code = main(["convert", str(CHECKPOINTS / "gqa-tied"), "--profile", "pi", "--fast", *map(str, arguments)])
        return code, capfd.readouterr().err

    def test_from_a_file(self, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "instruction.txt").write_text("close(valve)\n")
        assert self.run(capfd, "--prefix-file", tmp_path / "instruction.txt", "-o", tmp_path / "b") == (0, "")
        assert Bundle.open(tmp_path / "b").manifest.instruction == "close(valve)"

    def test_too_long_a_one_leaves_nothing(self, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        code, message = self.run(capfd, "--prefix", LONG, "--context", 64, "-o", tmp_path / "b")
        assert code == 2
        assert "of 64 positions, and 16 must be left; shorten it, or convert with --context" in message
        assert list(tmp_path.iterdir()) == []

    def test_inspect_shows_it(self, bundles: Callable[..., Bundle], capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["inspect", str(bundles("pi", "close(valve)").path)]) == 0
        assert re.search(r"^instruction +close\(valve\)$", capfd.readouterr().out, re.MULTILINE)

    def test_both_flags_are_one_too_many(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "toolkit", "convert", "x", "--prefix", "a", "--prefix-file", "b", "-o", "c"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 2
        assert "--prefix-file: not allowed with argument --prefix" in done.stderr
