"""Answers held to a JSON schema parse and fit it, whatever the model would rather say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.checkpoints import TokenizerFile
from converters.convert import Options, convert
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.language_model import LanguageModel
from device_runtime.engine.sampler import Sampler, Sampling
from device_runtime.engine.structured import SchemaCompiler, check_schema
from device_runtime.errors import SchemaError
from tests.random_checkpoint import random_checkpoint
from tests.tokenizer_files import small_sentencepiece
from toolkit.cli import main

pytest.importorskip("llguidance", reason="llguidance has packages for 64-bit machines only")

ADVICE = {
    "type": "object",
    "properties": {
        "severity": {"enum": ["ok", "warn", "alarm"]},
        "advice": {"type": "string", "maxLength": 20},
        "valve": {"type": "integer"},
    },
    "required": ["severity", "advice"],
    "additionalProperties": False,
}
HELLO = [{"role": "user", "content": "The boiler is hot."}]


def scalars() -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.just({"type": "integer"}),
        st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 8)),
        st.builds(lambda n: {"type": "string", "minLength": n, "maxLength": n + 3}, st.integers(1, 6)),
        st.builds(lambda words: {"enum": words}, st.lists(st.text(max_size=5), min_size=1, max_size=4, unique=True)),
        st.builds(lambda value: {"const": value}, st.integers(-99, 99) | st.booleans() | st.text(max_size=6)),
    )


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    def deeper(children: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        names = st.sampled_from(["a", "on", "temp_c", "é", 'x"y', "value"])
        objects = st.dictionaries(names, children, max_size=3).flatmap(
            lambda properties: st.builds(
                lambda required: {
                    "type": "object", "properties": properties, "required": required, "additionalProperties": False,
                },
                st.lists(st.sampled_from(sorted(properties)), unique=True) if properties else st.just([]),
            )
        )  # fmt: skip
        arrays = st.builds(lambda item, n: {"type": "array", "items": item, "maxItems": n}, children, st.integers(0, 3))
        return objects | arrays | st.builds(lambda *kinds: {"anyOf": list(kinds)}, children, children)

    return st.recursive(scalars(), deeper, max_leaves=5)


@pytest.fixture(scope="module", params=["byte-level BPE", "SentencePiece"])
def bundle(
    request: pytest.FixtureRequest, converted: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    if request.param == "byte-level BPE":
        return Bundle.open(converted("gqa-tied"))
    folder = tmp_path_factory.mktemp("sentencepiece")
    content = small_sentencepiece(folder / "small.model")
    # The model's 420 pieces, and four rows without a token, as many checkpoints have them.
    tokenizer = TokenizerFile("tokenizer.model", content, 1, (2,), True, None)
    checkpoint = replace(random_checkpoint(vocabulary=424), tokenizer=tokenizer)
    return convert(checkpoint, folder / "bundle", Options("pi", 256, fast=True))


@pytest.fixture(scope="module")
def compiler(bundle: Bundle) -> SchemaCompiler:
    return SchemaCompiler(bundle)


@pytest.fixture(scope="module")
def model(bundle: Bundle):
    with LanguageModel.open(bundle.path, threads=1) as model:
        yield model


def drawn(compiler: SchemaCompiler, bundle: Bundle, schema: dict[str, Any], limit: int, seed: int) -> tuple[str, int]:
    """An answer of random tokens, and how many there were."""
    constraint = compiler.constraint(schema, limit)
    random, sampler = np.random.default_rng(seed), Sampler(Sampling(temperature=1.0, seed=seed))
    eos, tokens = set(bundle.manifest.tokenizer.eos_ids), []
    while len(tokens) < limit and not constraint.complete:
        logits = (3 * random.standard_normal(bundle.manifest.graph.vocabulary)).astype(np.float32)
        token = constraint.choose(logits, limit - len(tokens), sampler.choose)
        if token in eos:
            break
        tokens.append(token)
    assert constraint.satisfied
    return compiler._tokenizer.decode_bytes(tokens).decode(), len(tokens)


class TestAnyAnswer:
    @given(schema=schemas(), seed=st.integers(0, 2**32), spare=st.integers(0, 30))
    @settings(max_examples=120)
    def test_random_tokens_become_an_answer_that_fits_in_time(
        self, compiler: SchemaCompiler, bundle: Bundle, schema: dict[str, Any], seed: int, spare: int
    ) -> None:
        """Even where the limit is as tight as it may be."""
        try:
            compiler.constraint(schema, 0)
        except SchemaError as error:
            shortest = int(str(error).split(" has about ")[1].split()[0])
        else:
            raise AssertionError("no answer has no token")
        text, count = drawn(compiler, bundle, schema, shortest + spare, seed)
        assert count <= shortest + spare
        jsonschema.validate(json.loads(text), schema)

    @pytest.mark.parametrize("seed", range(20))
    def test_a_wide_limit_lets_the_model_say_more(self, compiler: SchemaCompiler, bundle: Bundle, seed: int) -> None:
        text, _ = drawn(compiler, bundle, ADVICE, 200, seed)
        jsonschema.validate(json.loads(text), ADVICE)

    def test_its_spaces_are_those_of_ordinary_json(self, compiler: SchemaCompiler, bundle: Bundle) -> None:
        """Free ones would let a model go on for ever; with none a small model is lost: its texts had these."""
        text, _ = drawn(compiler, bundle, ADVICE, 200, 1)
        assert text == json.dumps(json.loads(text), ensure_ascii=False)

    def test_logits_are_not_changed(self, compiler: SchemaCompiler, bundle: Bundle) -> None:
        logits = np.ones(bundle.manifest.graph.vocabulary, np.float32)
        compiler.constraint(ADVICE, 100).choose(logits, 100, lambda masked: int(masked.argmax()))
        assert (logits == 1).all()


class TestTheEngine:
    @pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, seed=5), Sampling(3.0, top_k=40, seed=6)])
    @pytest.mark.parametrize("max_new", [50, 60, 120])
    def test_an_answer_parses_and_fits(self, model: LanguageModel, max_new: int, sampling: Sampling) -> None:
        """A model of random weights has no idea of JSON."""
        prompt = HELLO if model.manifest.chat_template else "The boiler is hot."
        generation = model.generate(prompt, max_new=max_new, sampling=sampling, schema=ADVICE)
        text = "".join(generation)
        assert generation.result.finish == "stop"
        assert generation.result.completion_tokens <= max_new
        jsonschema.validate(json.loads(text), ADVICE)

    def test_a_number_may_end_with_the_limit(self, model: LanguageModel) -> None:
        generation = model.generate("x", max_new=4, schema={"type": "integer"})
        value = json.loads("".join(generation))
        assert isinstance(value, int) and generation.result.finish == "stop"

    def test_the_next_answer_is_free_again(self, model: LanguageModel) -> None:
        before = "".join(model.generate("valve", max_new=8))
        list(model.generate("valve", max_new=60, schema=ADVICE))
        assert "".join(model.generate("valve", max_new=8)) == before


class TestRefusals:
    @pytest.mark.parametrize(
        "schema, words",
        [
            ({"type": "banana"}, "Invalid type: banana"),
            ({"$ref": "http://example.org/schema"}, "does not fetch resources"),
            ({"type": "string", "pattern": "("}, "regex parse error"),
            ({"type": "object", "not": {}}, "not"),
            ({"type": "string", "minLength": 4000}, "shortest answer that fits the schema has"),
        ],
    )
    def test_a_schema_that_no_answer_can_be_held_to(
        self, schema: dict[str, Any], words: str, compiler: SchemaCompiler
    ) -> None:
        with pytest.raises(SchemaError, match=words) as caught:
            compiler.constraint(schema, 100)
        assert "\n" not in str(caught.value)

    def test_one_that_needs_more_tokens_than_there_are(self, model: LanguageModel) -> None:
        with pytest.raises(SchemaError, match=r"has about \d+ tokens, and the answer may have 3; raise max_new"):
            model.generate("x", max_new=3, schema=ADVICE)

    def test_the_check_needs_no_tokenizer(self) -> None:
        check_schema(ADVICE)
        with pytest.raises(SchemaError, match="Invalid type"):
            check_schema({"type": "objet"})

    def test_a_machine_without_the_library_is_told(
        self, compiler: SchemaCompiler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "llguidance", None)
        with pytest.raises(SchemaError, match="packages for 64-bit machines only"):
            compiler.constraint(ADVICE, 100)


class TestTheCommand:
    def test_run_prints_json(self, pi_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "schema.json").write_text(json.dumps(ADVICE))
        flags = ["--schema", str(tmp_path / "schema.json"), "--max-new", "60"]
        assert main(["run", str(pi_bundle), "The boiler is hot.", *flags]) == 0
        jsonschema.validate(json.loads(capfd.readouterr().out), ADVICE)

    @pytest.mark.parametrize("content, words", [("[]", "holds list; a JSON schema is an object"), ("{", "is not JSON")])
    def test_a_file_that_holds_none(
        self, content: str, words: str, pi_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "schema.json").write_text(content)
        assert main(["run", str(pi_bundle), "x", "--schema", str(tmp_path / "schema.json")]) == 2
        assert words in capfd.readouterr().err
