"""The C reader holds answers to a schema as the grammar on a host does, and brings them to an end."""

from __future__ import annotations

import ctypes
import json
import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from converters.emit.c.byte_level_bpe import byte_level_table
from converters.emit.c.schema import schema_section
from device_runtime.engine.schema.identity import schema_identity
from device_runtime.engine.schema.rules import closed
from device_runtime.errors import SchemaError
from tests.support.c_programs import SANITIZED, compile_program, run, sources_of

llguidance = pytest.importorskip("llguidance")

TESTS = Path(__file__).parents[2]
CORPUS = TESTS / "fuzz" / "corpus" / "schema"
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Bytes:
    """A tokenizer whose tokens are the 256 bytes."""

    eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
    tokens = (*(bytes([i]) for i in range(256)), b"<end>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@cache
def byte_tokenizer() -> Any:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()), n_vocab=257, eos_token=256)


def on_a_host(schema: Mapping[str, Any], text: bytes) -> bool | int:
    """Whether the text is a whole answer; the place of the first byte that is refused."""
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(closed(schema)), overrides=SPACING)
    matcher = llguidance.LLMatcher(byte_tokenizer(), grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    for place, byte in enumerate(text):
        if matcher.is_stopped() or not matcher.consume_token(byte):
            return place
    return bool(matcher.is_accepting())


class Reader:
    def __init__(self, library: ctypes.CDLL, schema: Mapping[str, Any]) -> None:
        self._library, self._section = library, schema_section([schema])

    def read(self, text: bytes) -> bool | int:
        end = ctypes.c_int32()
        taken = self._library.test_read(self._section, len(self._section), 0, text, len(text), ctypes.byref(end))
        assert taken > -1_000_000
        return bool(end.value) if taken >= 0 else -1 - taken

    def shortest(self, text: bytes) -> bytes | None:
        out = ctypes.create_string_buffer(5000)
        size = self._library.test_shortest(self._section, len(self._section), text, len(text), out, 5000)
        return None if size < 0 else out.raw[:size]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    out = tmp_path_factory.mktemp("c") / "schema.so"
    own = [Path(__file__).parent / name for name in ("schema_library.c", "answer_library.c")]
    files = [*own, *sources_of("schema", "tokenizer", "sampler", "runtime/utf8.c")]
    return ctypes.CDLL(str(compile_program(out, *files, engine=False, shared=True)))


numbers = st.integers(-1000, 1000)
names = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), min_size=1, max_size=6)


def bounds(draw: st.DrawFn, low: str, high: str, values: st.SearchStrategy[int]) -> dict[str, int]:
    """Bounds with something between them, either left out at times."""
    pair = sorted([draw(values), draw(values)])
    kept = draw(st.sampled_from([(low, high), (low,), (high,), ()]))
    return {word: value for word, value in zip((low, high), pair, strict=True) if word in kept}


@st.composite
def schemas(draw: st.DrawFn, depth: int = 2) -> dict[str, Any]:
    kinds = ["integer", "number", "string", "enum", "boolean", "nullable"] + ["object", "array"] * (2 if depth else 0)
    kind = draw(st.sampled_from(kinds))
    if kind in ("integer", "number"):
        return {"type": kind, **bounds(draw, "minimum", "maximum", numbers)}
    if kind == "string":
        return {"type": "string", **bounds(draw, "minLength", "maxLength", st.integers(0, 8))}
    if kind == "enum":
        value = names | numbers | st.booleans() | st.none()
        return {"enum": draw(st.lists(value, min_size=1, max_size=5, unique_by=json.dumps))}
    if kind == "boolean":
        return {"type": "boolean"}
    if kind == "nullable":
        return {"type": ["integer", "null"], **bounds(draw, "minimum", "maximum", numbers)}
    if kind == "array":
        return {"type": "array", "items": draw(schemas(depth - 1)),
                **bounds(draw, "minItems", "maxItems", st.integers(0, 4))}  # fmt: skip
    properties = draw(st.dictionaries(names, schemas(depth - 1), max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    return {"type": "object", "properties": properties, "required": required}


def whole_answer(schema: Mapping[str, Any], dice: random.Random) -> str:
    """Some answer that fits a schema of `schemas`, in the form that the grammar has."""
    if "enum" in schema:
        return json.dumps(dice.choice(schema["enum"]), ensure_ascii=False)
    kind = schema["type"]
    if isinstance(kind, list):
        return "null" if dice.random() < 0.5 else whole_answer({**schema, "type": "integer"}, dice)
    if kind == "boolean":
        return dice.choice(["true", "false"])
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("maximum", 0) - 50)
        value = dice.randint(low, schema.get("maximum", low + 100))
        return str(value)
    if kind == "string":
        size = dice.randint(schema.get("minLength", 0), schema.get("maxLength", 12) or 0) if schema.get(
            "minLength", 0) <= schema.get("maxLength", 12) else schema["minLength"]  # fmt: skip
        letters = ["a", " ", "\\n", '\\"', "\u00e9", "\U0001f642", "\\u001f", "}", ","]
        return '"' + "".join(dice.choice(letters) for _ in range(size)) + '"'
    if kind == "array":
        least = schema.get("minItems", 0)
        count = dice.randint(least, max(least, min(schema.get("maxItems", least + 3), least + 3)))
        return "[" + ", ".join(whole_answer(schema["items"], dice) for _ in range(count)) + "]"
    chosen = [n for n in schema["properties"] if n in schema["required"] or dice.random() < 0.5]
    parts = [f"{json.dumps(n, ensure_ascii=False)}: {whole_answer(schema['properties'][n], dice)}" for n in chosen]
    return "{" + ", ".join(parts) + "}"


def test_the_same_answers_are_taken_and_refused_as_on_a_host(library: ctypes.CDLL) -> None:
    @given(schemas(), st.integers(0, 2**32), st.data())
    def check(schema: dict[str, Any], seed: int, data: st.DataObject) -> None:
        dice = random.Random(seed)
        text = whole_answer(schema, dice).encode()
        reader = Reader(library, schema)
        assert reader.read(text) is True, (schema, text)
        assert on_a_host(schema, text) is True
        place = data.draw(st.integers(0, len(text)))
        byte = data.draw(st.sampled_from([*b'",: {}[]0129-.eEtn\\ua\xc3\xa9\x7f\x00', None]))
        other = text[:place] + (b"" if byte is None else bytes([byte])) + text[place + data.draw(st.integers(0, 1)) :]
        assume(b"\\u" not in other)  # where inside of an escape the library refuses is its own affair
        mine, theirs = reader.read(other), on_a_host(schema, other)
        assert (mine is True) == (theirs is True), (schema, other, mine, theirs)

    check()


def test_from_everywhere_in_an_answer_there_is_a_way_to_its_end(library: ctypes.CDLL) -> None:
    @given(schemas(), st.integers(0, 2**32))
    def check(schema: dict[str, Any], seed: int) -> None:
        dice = random.Random(seed)
        text = whole_answer(schema, dice).encode()
        reader = Reader(library, schema)
        start = text[: dice.randint(0, len(text))]
        end = reader.shortest(start)
        assert end is not None, (schema, start)
        assert reader.read(start + end) is True
        jsonschema.validate(json.loads(start + end), closed(schema))

    check()


@pytest.mark.parametrize(
    ("schema", "taken", "refused"),
    [
        ({"type": "number", "minimum": 0.5, "maximum": 0.75}, ["0.5", "0.7", "0.75", "0.6999999999999999999"],
         ["0", "0.", "0.4", "0.76", "1", "-", "0.7500001"]),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 10}, ["0.1", "9.999", "0.00000000001"],
         ["0", "0.0", "10", "-0"]),
        ({"type": "number"}, ["-0.0", "1e5", "1E+5", "2.5e-3"], ["01", "1.", ".5", "+1", "1e"]),
        ({"type": "integer", "exclusiveMinimum": 1.5, "exclusiveMaximum": 4}, ["2", "3"], ["1", "4", "2.0"]),
        ({"type": "integer", "minimum": -50, "maximum": -20}, ["-20", "-50", "-33"], ["-2", "-19", "-51", "0", "-020"]),
        ({"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 2}]}, ["null", '"ab"'], ['"abc"', "nul"]),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"enum": [1, 12]}}}, ["1", "12"], ["2", "121"]),
        ({"enum": [1.0, 0.5, {"a": [1, 2]}]}, ["1", "0.5", '{"a": [1, 2]}'], ["1.0", "0"]),
    ],
)  # fmt: skip
def test_values_within_and_without(
    library: ctypes.CDLL, schema: dict[str, Any], taken: list[str], refused: list[str]
) -> None:
    reader = Reader(library, schema)
    assert [text for text in taken if reader.read(text.encode()) is not True] == []
    assert [text for text in refused if reader.read(text.encode()) is True] == []


ANSWER = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "ok": {"type": "boolean"},
        "advice": {"type": "string", "maxLength": 60},
        "level": {"enum": ["low", "high"]},
    },
    "required": ["n", "ok", "advice", "level"],
}
TARGET = '{"n": 42, "ok": true, "advice": "close the valve and call the plumber now", "level": "high"}'
ANSWER_TOO_LONG, ANSWER_INCOMPLETE = 14, 15  # sc_status.h


def answer(library: ctypes.CDLL, most: int, temperature: float = 0.0) -> tuple[str, int, int]:
    """What a board says whose model wants to say TARGET; the status; how many tokens."""
    file = TESTS / "data/checkpoints/gqa-tied/tokenizer.json"
    table, oracle = byte_level_table(file.read_bytes()).pack(), Tokenizer.from_file(str(file))
    wanted = [*oracle.encode(TARGET).ids, 0]
    section = schema_section([ANSWER])
    tokens = (ctypes.c_uint32 * (most + 1))()

    @ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.POINTER(ctypes.c_float))
    def fill(step: int, logits: Any) -> None:
        before = list(tokens[:step])
        if before == wanted[:step]:
            following = wanted[step]
        else:  # the text was cut: the model goes on with what comes after it
            said, rest = oracle.decode(before), TARGET[TARGET.index('", "level') :]
            place = next((i for i in range(len(rest), 0, -1) if said.endswith(rest[:i])), 0)
            following = oracle.encode(rest[place:]).ids[0] if rest[place:] else 0
        for i in range(oracle.get_vocab_size()):
            logits[i] = -1.0
        logits[following] = 9.0

    status = ctypes.c_int32()
    end, warmth = ctypes.c_uint32(0), ctypes.c_float(temperature)
    count = library.test_answer(
        section, len(section), table, len(table), end, most, warmth, fill, tokens, ctypes.byref(status)
    )
    return oracle.decode(list(tokens[:count])), status.value, count


def test_an_answer_is_the_models_own_where_there_is_time(library: ctypes.CDLL) -> None:
    assert answer(library, 120)[:2] == (TARGET, 0)


def test_a_limit_cuts_a_text_and_never_a_value(library: ctypes.CDLL) -> None:
    cut = 0
    for most in range(4, 80, 3):
        said, status, count = answer(library, most)
        assert count <= most
        if status == ANSWER_TOO_LONG:
            assert count == 0
        elif status == ANSWER_INCOMPLETE:
            assert TARGET.startswith(said) or '", "level": ' in said
        else:
            found = json.loads(said)
            jsonschema.validate(found, ANSWER)
            assert (found["n"], found["ok"], found["level"]) == (42, True, "high")
            assert json.loads(TARGET)["advice"].startswith(found["advice"])
            cut += found["advice"] != json.loads(TARGET)["advice"]
    assert cut > 2


def test_what_is_drawn_fits_the_schema_too(library: ctypes.CDLL) -> None:
    said, status, _ = answer(library, 200, temperature=2.0)
    if status != ANSWER_INCOMPLETE:
        jsonschema.validate(json.loads(said), ANSWER)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string", "pattern": "a+"}, "found pattern at #"),
        ({"type": "object", "properties": {"x": {"type": "integer", "multipleOf": 5}}}, "multipleOf at #/properties/x"),
        ({"type": "object", "properties": {}, "additionalProperties": True}, "an open object"),
        ({"anyOf": [{"type": "integer"}, {"type": "number"}]}, "two alternatives that begin alike"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}, "more than 12 obj"),
        ({}, "no type"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no integer between 3 and 2"),
        ({"type": "object", "properties": {}, "required": ["x"]}, "no type at #/properties/x"),
    ],
)
def test_what_a_board_cannot_hold_is_refused_by_name(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        schema_section([schema])


def test_a_schema_is_known_by_its_content() -> None:
    one = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert schema_identity(one) == schema_identity({**one, "additionalProperties": False})
    assert schema_identity(one) == schema_identity(dict(reversed(one.items())))
    two = {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}}
    assert schema_identity(two) != schema_identity({**two, "properties": dict(reversed(two["properties"].items()))})
    assert schema_identity(one) != schema_identity({"type": "object", "properties": {"b": {"type": "integer"}}})


def test_damaged_tables_stay_inside_of_their_memory(tmp_path: Path) -> None:
    folder = TESTS / "fuzz"
    reader = sources_of("schema/schema.c", "schema/nodes.c", "schema/numbers.c", "runtime/utf8.c")
    files = [folder / "schema.c", folder / "replay.c", *reader]
    target = compile_program(tmp_path / "schema", *files, flags=SANITIZED["native"], engine=False)
    dice = random.Random(7)
    inputs = sorted(CORPUS.iterdir())
    for seed in list(inputs):
        for number in range(60):
            data = bytearray(seed.read_bytes())
            for _ in range(dice.choice([1, 1, 2, 5])):
                data[dice.randrange(4, len(data))] = dice.choice([0, 1, 2, 255, dice.randrange(256)])
            file = tmp_path / f"{seed.name}-{number}"
            file.write_bytes(data)
            inputs.append(file)
    status, out = run(target, *inputs)
    assert (status, int(out)) == (0, len(inputs))
