"""Answers that a bundle's vocabulary cannot spell: the small one of a trained task, and one that composes accents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.prompts import tokenizer_file
from device_runtime.engine.schema.grammar_tokenizer import GrammarTokenizer
from device_runtime.engine.schema.spelling import spelling_fault
from device_runtime.engine.structured import SchemaCompiler
from device_runtime.errors import SchemaError
from device_runtime.tasks.purpose import Purpose

pytest.importorskip("llguidance", reason="llguidance has packages for 64-bit machines only")

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def tokenizer(name: str) -> GrammarTokenizer:
    bundle = Bundle.open(EXAMPLES / name / "bundle")
    manifest = bundle.manifest
    return GrammarTokenizer(tokenizer_file(bundle), manifest.graph.vocabulary, list(manifest.tokenizer.eos_ids))


@pytest.mark.parametrize("name", ["boiler-advisor", "fall-alert", "home-commands", "log-triage"])
def test_a_task_can_spell_its_own_answers(name: str) -> None:
    bundle = Bundle.open(EXAMPLES / name / "bundle")
    purpose = Purpose.of_manifest(bundle.manifest)
    assert purpose is not None
    SchemaCompiler(bundle).check(purpose.answer)


def test_a_part_of_the_own_answer_is_spelt_too() -> None:
    SchemaCompiler(Bundle.open(EXAMPLES / "boiler-advisor" / "bundle")).check(of(severity={"enum": ["ok", "alarm"]}))


def test_what_has_no_space_besides_its_own_answer_says_so() -> None:
    """Of 298 tokens none is a space. The search for an end found none, and said "more than 512 tokens"."""
    schema = of(severity={"enum": ["ok", "warn"]}, too_hot={"type": "boolean"})
    with pytest.raises(SchemaError) as caught:
        SchemaCompiler(Bundle.open(EXAMPLES / "boiler-advisor" / "bundle")).check(schema)
    assert str(caught.value) == (
        "The vocabulary of this bundle, of 298 tokens, cannot spell the answer: the property 'too_hot' (no token for "
        "the space after its colon). Leave the schema (a link's `answer`) out for the answer of its task, or take a "
        "model of no task."
    )


def test_a_value_is_named_with_its_property_and_what_it_lacks() -> None:
    fault = spelling_fault(tokenizer("boiler-advisor"), of(severity={"enum": ["ok", "very hot"]}))
    assert fault == "\"very hot\" in 'severity' (no token for a space)"


def test_a_space_of_the_name_itself_is_told_from_the_one_after_its_colon() -> None:
    fault = spelling_fault(tokenizer("boiler-advisor"), {"properties": {"too hot": {"enum": ["ok"]}}})
    assert fault == "the property 'too hot' (no token for a space)"


def test_properties_deep_in_an_answer_are_looked_at() -> None:
    inner = of(state={"enum": ["on"]})
    for schema in (of(severity=inner), {"type": "array", "items": inner}, {"anyOf": [inner]}, {"$defs": {"a": inner}}):
        assert "state' (no token for the space after its colon)" in (
            spelling_fault(tokenizer("fall-alert"), schema) or ""
        )


def test_many_faults_are_counted() -> None:
    fault = spelling_fault(tokenizer("fall-alert"), of(**{f"p{number}": {"type": "boolean"} for number in range(5)}))
    assert fault is not None and fault.count("no token for") == 3 and fault.endswith("; and 2 more")


def test_bytes_spell_what_the_vocabulary_has_no_piece_for() -> None:
    assert spelling_fault(tokenizer("log-triage"), of(Überlast={"enum": ["日本", "ÄX~^", "two words"]})) is None


def test_an_accent_that_its_tokenizer_composes_is_refused_for_what_it_is() -> None:
    path = ROOT / "tests" / "data" / "checkpoints" / "yarn-biases" / "tokenizer.json"
    composing = GrammarTokenizer(path, 4000, [0])
    assert spelling_fault(composing, of(x={"enum": ["caf\u00e9"]})) is None
    fault = spelling_fault(composing, of(x={"enum": ["cafe\u0301"]}))
    assert fault == "\"cafe\u0301\" in 'x' (its tokens are read back as another text)"
