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
from device_runtime.engine.schema.rules import closed
from device_runtime.engine.structured import Constraint, SchemaCompiler, check_schema
from device_runtime.errors import IncompleteError, SchemaError
from tests.support.random_checkpoint import random_checkpoint
from tests.support.tokenizer_files import small_sentencepiece
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


def written(constraint: Constraint, bundle: Bundle, limit: int, logits: Callable[[bytes], np.ndarray]) -> str | None:
    """The answer of a model with these logits after what it has written; None where its limit cut it."""
    sampler, eos, tokens = Sampler(Sampling()), set(bundle.manifest.tokenizer.eos_ids), []
    while len(tokens) < limit:
        token = constraint.choose(logits(constraint._tokenizer.text_of(tokens)), limit - len(tokens), sampler.choose)
        if token in eos:
            break
        tokens.append(token)
        if constraint.complete:
            break
    else:
        return None
    return constraint._tokenizer.text_of(tokens).decode()


def at_random(bundle: Bundle, seed: int) -> Callable[[bytes], np.ndarray]:
    random = np.random.default_rng(seed)
    return lambda text: (3 * random.standard_normal(bundle.manifest.graph.vocabulary)).astype(np.float32)


def wanting(compiler: SchemaCompiler, bundle: Bundle, text: str) -> Callable[[bytes], np.ndarray]:
    """A model that wants to write `text`: it goes on as the text does after what it wrote last."""
    tokenizer, vocabulary = compiler._tokenizer, bundle.manifest.graph.vocabulary
    assert tokenizer is not None
    pieces = [b"" if tokenizer.first[t] < 0 else tokenizer.text_of([t]) for t in range(vocabulary)]

    def logits(before: bytes) -> np.ndarray:
        values = np.zeros(vocabulary, np.float32)
        tail = next(before[at:] for at in range(len(before) + 1) if before[at:] in text.encode())
        rest = text.encode().partition(tail)[2] if tail else b"" if before else text.encode()
        for token, piece in enumerate(pieces):
            if rest and piece and rest.startswith(piece):
                values[token] = 10 + len(piece)
            elif not rest and piece.isalpha():
                values[token] = 1
        if not rest:
            values[list(bundle.manifest.tokenizer.eos_ids)] = 5
        return values

    return logits


class TestAnyAnswer:
    @given(schema=schemas(), seed=st.integers(0, 2**32), spare=st.integers(0, 30))
    @settings(max_examples=40)
    def test_random_tokens_become_an_answer_that_fits_or_is_known_to_be_incomplete(
        self, compiler: SchemaCompiler, bundle: Bundle, schema: dict[str, Any], seed: int, spare: int
    ) -> None:
        """Even where the limit is as tight as it may be."""
        limit = shortest(compiler, schema) + spare
        text = written(compiler.constraint(schema, limit), bundle, limit, at_random(bundle, seed))
        if text is not None:
            jsonschema.validate(json.loads(text), schema)

    @pytest.mark.parametrize("seed", range(10))
    def test_a_wide_limit_lets_the_model_say_more(self, compiler: SchemaCompiler, bundle: Bundle, seed: int) -> None:
        schema = {**ADVICE, "properties": {**ADVICE["properties"], "valve": {"type": "boolean"}}}
        text = written(compiler.constraint(schema, 200), bundle, 200, at_random(bundle, seed))
        assert text is not None
        jsonschema.validate(json.loads(text), schema)

    def test_its_spaces_are_those_of_most_texts(self, compiler: SchemaCompiler, bundle: Bundle) -> None:
        """A model of 135 M parameters wrote `1.1.1.1` after `"advice":"`; further spaces could go on for ever."""
        schema = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": [2, 3]}}, "required": ["a", "b"]}
        text = written(compiler.constraint(schema, 99), bundle, 99, at_random(bundle, 1))
        assert text == '{"a": 1, "b": [2, 3]}'

    def test_logits_are_not_changed(self, compiler: SchemaCompiler, bundle: Bundle) -> None:
        logits = np.ones(bundle.manifest.graph.vocabulary, np.float32)
        compiler.constraint(ADVICE, 100).choose(logits, 100, lambda masked: int(masked.argmax()))
        assert (logits == 1).all()


def shortest(compiler: SchemaCompiler, schema: dict[str, Any]) -> int:
    """The limit below which a schema is refused."""
    with pytest.raises(SchemaError, match="shortest answer that fits the schema has about") as caught:
        compiler.constraint(schema, 0)
    limit = int(str(caught.value).split(" has about ")[1].split()[0])
    compiler.constraint(schema, limit)
    return limit


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


TEXT = {"type": "string", "maxLength": 40}
LONG = "close the valve and call the operator"


class TestTheEnd:
    @pytest.mark.parametrize(
        "schema, answer",
        [
            (of(n={"type": "integer"}, ok={"type": "boolean"}), '{"n": 42, "ok": true}'),
            (of(n={"type": "number"}, m={"type": "number"}), '{"n": -17.25, "m": 1e3}'),
            (of(n={"enum": [1, 12, 123]}, ok={"type": "boolean"}), '{"n": 123, "ok": false}'),
            (of(s={"enum": ["ok", "okay", "alarm"]}, n={"type": "integer"}), '{"s": "okay", "n": 7}'),
            (
                of(s={"type": "string", "pattern": "^[A-Z]{2,9}-[0-9]+$"}, n={"type": "null"}),
                '{"s": "PUMP-31", "n": null}',
            ),
            (of(s={"type": "string", "format": "date"}, n={"type": "integer"}), '{"s": "2026-11-27", "n": 9}'),
            ({"type": "array", "items": {"type": "integer"}}, "[8, 12, 18, 22]"),
            ({"type": "number"}, "1234.5"),
            ({"type": "object", "additionalProperties": {"type": "null"}}, '{"hall 3": null, "hall 12": null}'),
            ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, "12345"),
        ],
    )
    def test_no_limit_bends_a_value(
        self, compiler: SchemaCompiler, bundle: Bundle, schema: dict[str, Any], answer: str
    ) -> None:
        """At every limit the answer is the one that the model wanted, or it is incomplete."""
        whole = 0
        least = shortest(compiler, schema)
        for limit in (*range(least, least + 8), *range(24, 65, 8)):
            constraint = compiler.constraint(schema, limit)
            text = written(constraint, bundle, limit, wanting(compiler, bundle, answer))
            assert text in (None, answer)
            whole += text == answer
        assert whole > 2

    @pytest.mark.parametrize(
        "schema, answer",
        [
            (of(limit_c={"type": "number"}, advice=TEXT), f'{{"limit_c": 81.5, "advice": "{LONG}"}}'),
            (of(advice=TEXT, n={"type": "integer"}), f'{{"advice": "{LONG}", "n": 1234}}'),
            (of(advice=TEXT, s={"enum": ["ok", "alarm"]}), f'{{"advice": "{LONG}", "s": "alarm"}}'),
            ({"type": "array", "items": of(a=TEXT), "maxItems": 3}, f'[{{"a": "{LONG}"}}, {{"a": "{LONG}"}}]'),
        ],
    )
    def test_a_limit_may_cut_a_text(
        self, compiler: SchemaCompiler, bundle: Bundle, schema: dict[str, Any], answer: str
    ) -> None:
        """What is left of a text is its beginning; each other value is the model's own."""
        cut = 0
        for limit in range(shortest(compiler, schema), 90, 5):
            text = written(compiler.constraint(schema, limit), bundle, limit, wanting(compiler, bundle, answer))
            if text is None:
                continue
            jsonschema.validate(json.loads(text), schema)
            cut += text != answer
            wanted, found = json.loads(answer), json.loads(text)
            for one, other in zip(*((o if isinstance(o, list) else [o]) for o in (found, wanted)), strict=False):
                for name, value in one.items():
                    same = other[name].startswith(value) if name in ("a", "advice") else value == other[name]
                    assert same, text
        assert cut > 2

    @pytest.mark.parametrize(
        "schema, answer",
        [
            (of(limit_c={"type": "number"}, advice=TEXT), '{"limit_c": 0, "advice": ""}'),
            (of(a={"type": "integer", "minimum": 1000}, b={"type": "boolean"}), '{"a": 1000, "b": true}'),
            (
                of(a={"type": "string", "pattern": "^(abcdefghijklmnop|q)$"}, b={"type": "null"}),
                '{"a": "q", "b": null}',
            ),
            (of(a={"type": "string", "format": "date-time"}, b=TEXT), None),
            (of(a={"type": "string", "format": "uuid"}, b={"type": "integer"}), None),
            (of(a={"type": "string", "format": "email"}, b={"type": "number"}), None),
            (of(a={"type": "string", "format": "uri"}, b={"type": "number"}), None),
            (of(a={"type": "string", "format": "hostname"}, b=TEXT), None),
            (of(a={"type": "string", "format": "time"}, b={"type": "array", "items": {}}), None),
            (of(a={"type": "string", "pattern": "^[^@]+@[^@]+$"}, b={"type": "number", "exclusiveMinimum": 9}), None),
            (of(a={"type": "string", "format": "ipv4"}, b={"type": "integer"}), None),
            (of(a={"type": "string", "format": "email"}, b={"type": "string", "format": "uuid"}), None),
            (of(**{f: {"type": "string", "format": f} for f in ("date", "ipv6", "hostname", "duration")}), None),
            (of(a={"type": "number", "minimum": 100.5, "maximum": 101}, b={"type": "integer"}), None),
            (of(a={"type": "string", "pattern": "^[0-9]{3}-[a-z]{4} end$"}, b={"type": "integer"}), None),
        ],
    )
    def test_only_what_cannot_fit_is_refused(
        self, compiler: SchemaCompiler, bundle: Bundle, schema: dict[str, Any], answer: str | None
    ) -> None:
        limit = shortest(compiler, schema)
        assert limit < 64
        if answer is not None:  # the fewest tokens that spell it, taken the longest first
            rest, count = answer.encode(), 0
            assert compiler._tokenizer is not None
            pieces = {compiler._tokenizer.text_of([t]) for t in np.flatnonzero(compiler._tokenizer.ordinary)}
            while rest:
                rest = rest.removeprefix(max((p for p in pieces if rest.startswith(p)), key=len))
                count += 1
            assert limit <= count

    @pytest.mark.parametrize("text", ['{"n": 1e999}', '{"n": -1e400}', '{"n": ' + "9" * 400 + "}"])
    def test_a_number_that_no_double_holds_is_an_error(self, compiler: SchemaCompiler, text: str) -> None:
        constraint = compiler.constraint(of(n={"type": "number"}), 100)
        with pytest.raises(IncompleteError, match=r"the number -?[19]\S* is too large"):
            constraint.check(text)
        constraint.check('{"n": 1e300}')

    def test_a_name_that_comes_twice_is_an_error(self, compiler: SchemaCompiler) -> None:
        with pytest.raises(IncompleteError, match="'type' is in an object twice"):
            compiler.constraint({}, 100).check('{"type": 1, "type": 2}')


class TestClosedObjects:
    def test_an_object_has_the_properties_that_its_schema_names(self, compiler: SchemaCompiler, bundle: Bundle) -> None:
        schema = {"type": "object", "properties": {"a": {"const": 1}}}
        greedy = wanting(compiler, bundle, '{"a": 1, "type": "x"}')
        assert written(compiler.constraint(schema, 50), bundle, 50, greedy) == '{"a": 1}'
        opened = schema | {"additionalProperties": True}
        assert written(compiler.constraint(opened, 50), bundle, 50, greedy) == '{"a": 1, "type": "x"}'

    @pytest.mark.parametrize(
        "schema, good, bad",
        [
            ({"properties": {"a": {}}}, '{"a": 1}', '{"b"'),
            ({"type": ["object", "null"], "properties": {"a": {}}}, "null", '{"b"'),
            ({"type": "array", "items": {"type": "object", "properties": {"a": {}}}}, '[{"a": 1}]', '[{"b"'),
            ({"$ref": "#/$defs/o", "$defs": {"o": of(a={})}}, '{"a": 1}', '{"b"'),
            ({"anyOf": [of(a={"const": 1}), of(b={"const": 2})]}, '{"b": 2}', '{"c"'),
            ({"type": "object", "required": ["a"]}, '{"a": 1}', '{"b"'),
            ({"type": "object"}, "{}", '{"b"'),
            ({"type": "object", "minProperties": 1}, '{"b": 1}', "[]"),
            ({"type": "object", "patternProperties": {"^x": {"const": 1}}}, '{"xy": 1}', '{"b"'),
            ({"allOf": [of(a={"const": 1}), of(b={"const": 2})]}, '{"a": 1, "b": 2}', '{"a": 1, "b": 2, '),
            (
                {"allOf": [{"$ref": "#/$defs/base"}, of(b={"const": 2})], "$defs": {"base": of(a={"const": 1})}},
                '{"a": 1, "b": 2}',
                '{"a": 1, "b": 2, ',
            ),
            (of(k={}) | {"anyOf": [of(a={"const": 1}), of(b={"const": 2})]}, '{"k": 0, "b": 2}', '{"k": 0, "c"'),
            (of(a={}) | {"$ref": "#/$defs/base", "$defs": {"base": of(b={})}}, '{"a": 1, "b": 2}', '{"a": 1, "c"'),
            (
                {
                    "$ref": "#/$defs/n",
                    "$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}},
                },
                '{"next": {"next": {}}}',
                '{"next": {"x"',
            ),
        ],
    )
    def test_each_way_to_describe_an_object(
        self, compiler: SchemaCompiler, schema: dict[str, Any], good: str, bad: str
    ) -> None:
        constraint = compiler.constraint(schema, 200)
        library = constraint._tokenizer.library
        for text, whole in ((good, True), (bad, False)):
            tokens = library.tokenize_str(text)
            assert (constraint._matcher.validate_tokens(tokens) == len(tokens)) is whole

    def test_constants_are_no_schemas(self) -> None:
        schema = {"enum": [{"properties": {"a": 1}}], "const": {"type": "object"}}
        assert closed(schema) == schema

    def test_references_that_multiply_are_refused(self) -> None:
        parts = {f"p{i}": {"allOf": [{"$ref": f"#/$defs/p{i + 1}"}] * 2} for i in range(30)}
        with pytest.raises(SchemaError, match="more than 20000 parts"):
            closed({"allOf": [{"$ref": "#/$defs/p0"}], "$defs": parts | {"p30": of(a={})}})


class TestTheEngine:
    @pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, seed=5), Sampling(3.0, top_k=40, seed=6)])
    @pytest.mark.parametrize("max_new", [60, 120])
    def test_an_answer_parses_and_fits(self, model: LanguageModel, max_new: int, sampling: Sampling) -> None:
        """A model of random weights has no idea of JSON."""
        schema = of(severity=ADVICE["properties"]["severity"], advice=ADVICE["properties"]["advice"])
        prompt = HELLO if model.manifest.chat_template else "The boiler is hot."
        generation = model.generate(prompt, max_new=max_new, sampling=sampling, schema=schema)
        text = "".join(generation)
        assert generation.result.finish == "stop"
        assert generation.result.completion_tokens <= max_new
        jsonschema.validate(json.loads(text), schema)

    def test_a_number_that_the_limit_cuts_is_incomplete(self, model: LanguageModel) -> None:
        generation = model.generate("x", max_new=4, schema={"type": "string", "pattern": "^([0-9]{30}|[a-z])$"})
        try:
            json.loads("".join(generation))
        except IncompleteError as error:
            assert error.code == "incomplete" and generation.result.finish == "length"

    def test_the_next_answer_is_free_again(self, model: LanguageModel) -> None:
        before = "".join(model.generate("valve", max_new=8))
        list(model.generate("valve", max_new=60, schema={"enum": ["a", "b"]}))
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
            # What the grammar library takes without a word, and ignores:
            (
                {"type": "integer", "minimum": 0, "exclusiveMinimum": True},
                "exclusiveMinimum is True; expected a number",
            ),
            ({"type": "object", "properties": []}, r"properties is \[\]; expected an object, from names to schemas"),
            ({"items": {"type": "integer", "multipleOf": -3}}, "multipleOf is -3; expected a number above 0"),
            ({"anyOf": [{"type": "object", "propertys": {}}]}, "no keyword 'propertys'; did you mean 'properties'"),
            ({"type": "number", "maximun": 4}, "no keyword 'maximun'; did you mean 'maximum'"),
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
        schema = of(severity=ADVICE["properties"]["severity"], advice=ADVICE["properties"]["advice"])
        (tmp_path / "schema.json").write_text(json.dumps(schema))
        flags = ["--schema", str(tmp_path / "schema.json"), "--max-new", "60"]
        assert main(["run", str(pi_bundle), "The boiler is hot.", *flags]) == 0
        jsonschema.validate(json.loads(capfd.readouterr().out), schema)

    @pytest.mark.parametrize("content, words", [("[]", "holds list; a JSON schema is an object"), ("{", "is not JSON")])
    def test_a_file_that_holds_none(
        self, content: str, words: str, pi_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "schema.json").write_text(content)
        assert main(["run", str(pi_bundle), "x", "--schema", str(tmp_path / "schema.json")]) == 2
        assert words in capfd.readouterr().err
