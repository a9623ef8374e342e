"""Answers with fields: labels scored over their tokens, and how sure each field is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_runtime.engine.kv_cache import KvCache
from device_runtime.engine.language_model import LanguageModel
from device_runtime.engine.sampler import Sampling
from device_runtime.engine.typed.choice import Choice, Decision, by_field
from device_runtime.engine.typed.form import field_forms, free_texts
from device_runtime.engine.typed.labels import LabelPaths
from device_runtime.engine.typed.scoring import normalized, score_labels
from device_runtime.errors import IncompleteError, SchemaError

ASKED = [{"role": "user", "content": "The pump in hall 3 runs."}]
WORDS = {"enum": ["ok", "okay", "warn", "alarm", "wa"]}


@pytest.fixture(scope="module")
def model(pi_bundle: Path) -> Iterator[LanguageModel]:
    with LanguageModel.open(pi_bundle, threads=1) as model:
        yield model


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def ask(model: LanguageModel, form: dict[str, Any], **options: Any) -> tuple[dict[str, Any], Any]:
    generation = model.generate(ASKED, schema=form, max_new=120, **options)
    pieces = list(generation)
    assert "".join(pieces) == generation.result.text
    return json.loads(generation.result.text), generation.result


def by_hand(model: LanguageModel, prompt: Sequence[int], path: Sequence[int]) -> float:
    """The log-probability of tokens after a prompt, one token after the other."""
    cache = KvCache(model.backend, model.manifest.prefix_tokens)
    model.backend.rewind(0)
    *_, logits = cache.prefill(prompt[len(model.manifest.prefix_tokens) :])
    total = 0.0
    for token in path:
        shifted = logits.astype(np.float64) - float(logits.max())
        total += float(shifted[token] - np.log(np.exp(shifted).sum()))
        logits = cache.decode(token)
    return total


def distinct(path: list[int], others: Sequence[list[int]]) -> list[int]:
    """Its tokens up to the first that no other path has in that place after the same beginning."""
    return next(path[:n] for n in range(1, len(path) + 1) if all(path[:n] != other[:n] for other in others))


class TestScores:
    def test_a_label_s_score_is_the_joint_probability_of_the_tokens_that_distinguish_it(
        self, model: LanguageModel
    ) -> None:
        prompt = model.encode(ASKED)
        paths = LabelPaths(model._tokenizer).after((), "", '{"a": ', ['"ok"', '"okay"', '"alarm"', "10", "1"], "}")
        cache = KvCache(model.backend, model.manifest.prefix_tokens)
        model.backend.rewind(0)
        *_, logits = cache.prefill(prompt[len(model.manifest.prefix_tokens) :])
        scores = score_labels(cache, logits.copy(), paths)
        assert cache.tokens[: len(prompt)] == tuple(prompt)
        paths = [distinct(path, [other for other in paths if other is not path]) for path in paths]
        # single steps and passes of several rows round alike to about 1e-3
        assert np.allclose(scores, [by_hand(model, prompt, path) for path in paths], atol=5e-3)
        prior = np.array([-3.0, -1.0, -9.0, -2.0, -2.0])
        model.backend.rewind(0)
        cache = KvCache(model.backend, model.manifest.prefix_tokens)
        *_, logits = cache.prefill(prompt[len(model.manifest.prefix_tokens) :])
        quick = score_labels(cache, logits.copy(), paths, prior)
        assert int(quick.argmax()) == int((scores - prior).argmax())
        assert (quick >= scores - prior - 5e-3).all()  # what is hopeless is bounded from above

    def test_no_label_s_tokens_are_the_beginning_of_another_s(self, model: LanguageModel) -> None:
        labels = ["1", "10", "100", '"a"', '"a b"', "true", "null"]
        paths = LabelPaths(model._tokenizer).after((), "", '{"a": ', labels, ', "b":')
        for i, one in enumerate(paths):
            assert not any(other[: len(one)] == one for j, other in enumerate(paths) if i != j)

    @given(st.lists(st.floats(-50, 0), min_size=1, max_size=9))
    def test_probabilities_sum_to_one(self, scores: list[float]) -> None:
        assert normalized(np.array(scores)).sum() == pytest.approx(1.0)


class TestAnswers:
    def test_every_field_is_there_and_fits(self, model: LanguageModel) -> None:
        form = schema(
            severity=WORDS, loud={"type": "boolean"}, count={"type": "integer", "minimum": 0, "maximum": 99},
            advice={"type": "string", "maxLength": 20}, level={"enum": [1, 10, None, "x"]}, fixed={"const": "é"},
        )  # fmt: skip
        answer, result = ask(model, form)
        assert list(answer) == list(form["properties"])
        assert answer["severity"] in WORDS["enum"] and answer["level"] in [1, 10, None, "x"] and answer["fixed"] == "é"
        assert isinstance(answer["loud"], bool) and 0 <= answer["count"] <= 99 and len(answer["advice"]) <= 20
        assert result.finish == "stop" and result.text == json.dumps(answer, ensure_ascii=False)
        assert set(result.confidence) == {"severity", "loud", "count", "level"}
        assert all(0 < share <= 1 for share in result.confidence.values())

    def test_calibration_takes_off_what_is_answered_to_nothing(self, model: LanguageModel) -> None:
        form = schema(severity=WORDS)
        _, result = ask(model, form, nothing=ASKED[0]["content"])  # as if this said nothing
        assert result.confidence["severity"] == pytest.approx(1 / len(WORDS["enum"]), abs=0.02)

    def test_what_was_asked_before_changes_no_answer(self, model: LanguageModel, pi_bundle: Path) -> None:
        form = schema(severity=WORDS, loud={"type": "boolean"})
        first = ask(model, form)
        list(model.generate([{"role": "user", "content": "Something else."}], max_new=5))
        again = ask(model, form)
        assert again[0] == first[0]
        assert again[1].confidence == pytest.approx(first[1].confidence, abs=0.02)  # other sums, rounded elsewhere

    def test_guesses_from_earlier_answers_save_passes_and_change_no_answer(self, pi_bundle: Path) -> None:
        form = schema(severity=WORDS, loud={"type": "boolean"}, cause={"enum": ["none", "no flow", "overheat"]})
        with LanguageModel.open(pi_bundle, threads=1) as model:
            answer, first = ask(model, form)
            again, second = ask(model, form)
            assert again == answer and 0 < second.passes < first.passes
            history = model._answers.histories.after(())
            for seed in range(4):  # wrong guesses: other labels, other tokens
                random = np.random.default_rng(seed)
                taken = list(history.likely([], 99))
                for place in random.integers(0, len(taken), 1 + seed):
                    taken[place] = int(random.integers(3, 300))
                history.add(taken)
                again, third = ask(model, form)
                assert again == answer
                for name, share in first.confidence.items():
                    assert third.confidence[name] == pytest.approx(share, abs=0.02)

    def test_a_limit_that_is_too_small_leaves_the_answer_incomplete(self, model: LanguageModel) -> None:
        """20 tokens are enough for "ok", and not for the label that the model takes."""
        words = {"enum": ["ok", "another one that is long", "warn me at once please"]}
        generation = model.generate(ASKED, schema=schema(severity=words), max_new=20)
        with pytest.raises(IncompleteError, match="limit of 20 tokens"):
            list(generation)
        assert generation.result.finish == "length"

    def test_a_limit_below_the_shortest_answer_is_refused_beforehand(self, model: LanguageModel) -> None:
        with pytest.raises(SchemaError, match="about 13 tokens, and the answer may have 4; raise max_new"):
            model.generate(ASKED, schema=schema(severity=WORDS), max_new=4)

    def test_it_can_be_cancelled(self, model: LanguageModel) -> None:
        generation = model.generate(ASKED, schema=schema(severity=WORDS, advice={"type": "string"}), max_new=120)
        next(generation)
        generation.cancel()
        list(generation)
        assert generation.result.finish == "cancelled" and generation.result.confidence is None

    def test_where_tokens_are_drawn_labels_are_written_and_sure_all_the_same(self, model: LanguageModel) -> None:
        answer, result = ask(model, schema(severity=WORDS), sampling=Sampling(1.0, seed=3))
        assert answer["severity"] in WORDS["enum"] and 0 < result.confidence["severity"] <= 1

    @settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(st.lists(st.text(max_size=6), min_size=1, max_size=5, unique=True), st.text(max_size=5))
    def test_any_labels_and_names(self, model: LanguageModel, labels: list[str], name: str) -> None:
        answer, _ = ask(model, schema(**{name or "a": {"enum": labels}}))
        assert answer[name or "a"] in labels


class TestForms:
    def test_objects_whose_fields_depend_on_the_answer_are_left_to_the_grammar(self) -> None:
        assert not field_forms({"type": "array"})
        assert not field_forms({"type": "object", "properties": {"a": WORDS}, "anyOf": [{}]})
        assert not field_forms({"type": "object", "properties": {"a": WORDS}, "required": ["b"]})
        assert field_forms(schema(a={"enum": ["x", 1], "type": "string"}))[0].values == ("x",)
        assert field_forms(schema(a={"enum": ["x"], "pattern": "y"}))[0].labels is None

    def test_decisions_belong_to_the_field_whose_value_they_made(self) -> None:
        choice = Choice(np.zeros(2, np.float32), 0)
        text = '{"ü": "warn", "n": 12}'
        answer = json.loads(text)
        inside = text.encode().index(b"12")
        found = by_field(answer, text, [Decision(6, 9, choice), Decision(inside, inside + 1, choice)], {"ü"})
        assert found == {"n": [choice]}
        assert free_texts(schema(a={"type": "string"}, b={"type": ["string", "null"]}, c=WORDS)) == {"a", "b"}
