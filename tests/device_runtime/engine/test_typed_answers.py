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

from device_runtime.engine.drafts import NO_DRAFT, AnswerHistory, Draft
from device_runtime.engine.kv_cache import KvCache
from device_runtime.engine.language_model import LanguageModel
from device_runtime.engine.opening import schema_check
from device_runtime.engine.sampler import Sampling
from device_runtime.engine.typed.choice import Choice, Decision, by_field
from device_runtime.engine.typed.form import field_forms, free_texts
from device_runtime.engine.typed.labels import LabelPaths
from device_runtime.engine.typed.scoring import normalized, score_labels
from device_runtime.errors import ContextOverflowError, IncompleteError, SchemaError
from device_runtime.update.active import open_bundle

EXAMPLES = Path(__file__).parents[3] / "examples"
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
        assert {name: list(shares) for name, shares in result.probabilities.items()} == {
            "severity": WORDS["enum"], "loud": ["true", "false"], "level": ["1", "10", "null", "x"],
        }  # fmt: skip
        for name, shares in result.probabilities.items():
            said = answer[name] if isinstance(answer[name], str) else json.dumps(answer[name])
            assert sum(shares.values()) == pytest.approx(1) and shares[said] == pytest.approx(result.confidence[name])

    @pytest.mark.parametrize(
        ("name", "asked", "fields"),
        [
            ("log-triage", "eth0: no carrier", {"category", "priority"}),  # heads, which decide at once
            ("home-commands", "kitchen light on", {"action", "device", "room"}),  # tokens, one field after the other
        ],
    )
    def test_a_bundle_of_a_task_says_how_likely_each_value_is(self, name: str, asked: str, fields: set[str]) -> None:
        with LanguageModel.open(EXAMPLES / name / "bundle", threads=1) as small:
            answer = json.loads("".join(generation := small.generate([{"role": "user", "content": asked}])))
            result, schema = generation.result, small.manifest.purpose["answer"]  # type: ignore[index]
        assert result.probabilities is not None and result.confidence is not None
        assert result.probabilities.keys() == fields
        for field, shares in result.probabilities.items():
            assert list(shares) == schema["properties"][field]["enum"] and sum(shares.values()) == pytest.approx(1)
            # A confidence is among all tokens that a value may begin with, letters too: a little less.
            assert shares[answer[field]] == pytest.approx(result.confidence[field], abs=1e-3)

    @pytest.mark.parametrize(
        ("form", "told"),
        [
            ({"properties": {"category": {"enum": ["network", "storage"]}}}, "may answer category 'none'"),
            ({"properties": {"priority": {"type": "integer"}}}, "may answer priority 'low'"),
            ({"properties": {"cause": {"type": "string"}}}, "'cause' is none of its fields"),
            ({"required": ["cause"]}, "'cause' is none of its fields"),
            ({"properties": {"category": {}}, "additionalProperties": False}, "the schema does not allow 'priority'"),
        ],
    )
    def test_heads_are_asked_with_no_schema_that_their_answers_may_not_fit(
        self, form: dict[str, Any], told: str
    ) -> None:
        """They choose among the values of their training; the schema was left out of account, without a word."""
        with LanguageModel.open(EXAMPLES / "log-triage" / "bundle", threads=1) as small:
            with pytest.raises(SchemaError, match=told):
                small.generate("eth0: no carrier", schema=form)
            with pytest.raises(SchemaError, match=told):
                small.check_schema(form)
            with pytest.raises(SchemaError, match=told):
                schema_check(open_bundle(EXAMPLES / "log-triage" / "bundle"))(form, None)
            wide = {"properties": {"category": {"type": "string", "maxLength": 11}}, "required": ["priority"]}
            answer = json.loads("".join(small.generate("eth0: no carrier", schema=wide)))
        assert answer == {"category": "network", "priority": "high"}

    def test_what_a_link_decides_no_head_chooses(self) -> None:
        """A schema has it as a constant; the heads' own choice stood in the answer."""
        form = {"properties": {"priority": {"const": "low"}, "category": {"type": "string"}}}
        with LanguageModel.open(EXAMPLES / "log-triage" / "bundle", threads=1) as small:
            answer = json.loads("".join(generation := small.generate("eth0: no carrier", schema=form)))
            with pytest.raises(SchemaError, match="never answers priority 'urgent'"):
                small.generate("eth0: no carrier", schema={"properties": {"priority": {"const": "urgent"}}})
        assert answer == {"category": "network", "priority": "low"}
        assert set(generation.result.confidence or {}) == set(generation.result.probabilities or {}) == {"category"}

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

    def test_a_schema_that_was_asked_before_changes_no_confidence_of_another(self, pi_bundle: Path) -> None:
        """What distinguishes 1 from 10 is what follows them: another field, or the answer's end."""
        one = schema(n={"enum": [1, 10]})
        other = schema(n={"enum": [1, 10]}, state=WORDS)
        found = []
        for order in ((one, other), (other, one)):
            with LanguageModel.open(pi_bundle, threads=1) as fresh:
                sure = [ask(fresh, form)[1].confidence["n"] for form in order]
            found.append(sure if order[0] is one else sure[::-1])
        assert np.allclose(*found, atol=5e-3)

    def test_guesses_from_earlier_answers_save_passes_and_change_no_answer(self, pi_bundle: Path) -> None:
        form = schema(severity=WORDS, loud={"type": "boolean"}, cause={"enum": ["none", "no flow", "overheat"]})
        with LanguageModel.open(pi_bundle, threads=1) as model:
            answer, first = ask(model, form)
            again, second = ask(model, form)
            assert again == answer and second.passes < first.passes
            history = model._answers.histories.after(())
            for seed in range(4):  # wrong guesses: other labels, other tokens, and other places
                random = np.random.default_rng(seed)
                before = history.draft([], 0, 99)
                taken = list(before.tokens)
                for place in random.integers(0, len(taken), 1 + seed):
                    taken[place] = int(random.integers(3, 300))
                for _ in range(5):  # more often than what is right
                    history.add(taken, before.asked[seed % 2 :])
                again, third = ask(model, form)
                assert again == answer
                for name, share in first.confidence.items():
                    assert third.confidence[name] == pytest.approx(share, abs=0.02)

    def test_a_whole_answer_comes_with_the_run_that_reads_the_prompt(self, pi_bundle: Path) -> None:
        """And its fields are as sure as they are where each token takes a run of its own."""
        words, levels = ["ok", "warn", "alarm"], [1, 20, None, "x"]
        form = schema(severity={"enum": words}, loud={"type": "boolean"}, fixed={"const": 7}, level={"enum": levels})
        prompts = [[{"role": "user", "content": f"The pump in hall {i} reads {37 * i % 90}."}] for i in range(24)]
        with LanguageModel.open(pi_bundle, threads=1) as model, LanguageModel.open(pi_bundle, threads=1) as slow:
            slow.backend.chunk = slow.backend.several = 1
            passes = []
            for messages in prompts:
                quick, plain = (m.generate(messages, schema=form, max_new=60, head="") for m in (model, slow))
                for answer in (quick, plain):
                    assert list(json.loads("".join(answer))) == list(form["properties"])
                passes.append(quick.result.passes)
                for name, (expected,) in plain.choices.items():
                    (found,) = quick.choices[name]
                    assert found.shares() == pytest.approx(expected.shares(), abs=0.05)
                    if found.chosen != expected.chosen:  # within the rounding of runs of another length
                        assert expected.shares()[expected.chosen] - expected.shares()[found.chosen] < 0.05
                        break  # after another label the next fields are asked otherwise
                else:
                    assert quick.result.text == plain.result.text
            assert slow.tokens_per_pass == pytest.approx(1, abs=0.2) and model.tokens_per_pass > 5
            assert passes[0] >= 3 and passes.count(0) >= 3
            assert quick.result.tokens_per_pass == quick.result.completion_tokens / (1 + quick.result.passes)

    def test_a_limit_that_is_too_small_leaves_the_answer_incomplete(self, model: LanguageModel) -> None:
        """20 tokens are enough for "ok", and not for the label that the model takes."""
        words = {"enum": ["ok", "another one that is long", "warn me at once please"]}
        generation = model.generate(ASKED, schema=schema(severity=words), max_new=20)
        with pytest.raises(IncompleteError, match="limit of 20 tokens"):
            list(generation)
        assert generation.result.finish == "length"

    def test_near_the_end_of_the_context_an_answer_is_whole_or_said_to_be_incomplete(
        self, model: LanguageModel
    ) -> None:
        """Labels that begin alike, so that some are looked into where no position is left for their next token."""
        labels = ["ok", "okay then", "okay then be it so", "warn me", "warn me at once please"]
        form = schema(a={"enum": labels}, b={"enum": labels})
        found = []
        for words in range(85, 125):
            messages = [{"role": "user", "content": "x " * words}]
            for nothing in ("N/A", "y " * (words + 6)):  # which says more than the reading, and does not fit
                try:
                    found.append(json.loads("".join(model.generate(messages, schema=form, nothing=nothing))).keys())
                except (IncompleteError, SchemaError, ContextOverflowError) as error:
                    found.append(type(error))
        assert form["properties"].keys() in found and all(kind in found for kind in (IncompleteError, SchemaError))

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

    def test_a_field_says_whether_it_is_a_text_of_the_models_own(self) -> None:
        odd = {"type": ["string", "integer"]}
        asked = schema(a={"type": "string"}, b=odd, c=WORDS, d={"type": "integer"}, e={"enum": [{}]}, f=True)
        assert [field.name for field in field_forms(asked) if field.free_text] == ["a", "b"]
        assert free_texts(asked) == free_texts({**asked, "anyOf": [{}]}) == {"a", "b"}

    def test_decisions_belong_to_the_field_whose_value_they_made(self) -> None:
        choice = Choice(np.zeros(2, np.float32), 0)
        text = '{"ü": "warn", "n": 12}'
        answer = json.loads(text)
        inside = text.encode().index(b"12")
        found = by_field(answer, text, [Decision(6, 9, choice), Decision(inside, inside + 1, choice)], {"ü"})
        assert found == {"n": [choice]}
        assert free_texts(schema(a={"type": "string"}, b={"type": ["string", "null"]}, c=WORDS)) == {"a", "b"}


class TestDrafts:
    """Answers are a b c d e; something is decided after the first, the third and the fourth token."""

    ASKED = (1, 3, 4)

    def test_a_new_answer_is_drafted_up_to_its_last_decision(self) -> None:
        history = AnswerHistory()
        assert history.draft([], 4, 60) == NO_DRAFT
        history.add([1, 2, 3, 4, 5, 6], self.ASKED)
        assert history.draft([], 4, 60) == Draft((1, 2, 3, 4), [1, 3, 4])
        assert history.draft([1], 0, 60) == Draft((2, 3, 4), [2, 3])
        assert history.draft([1], 0, 2) == Draft((2, 3), [2])
        assert history.draft([9], 4, 60) == NO_DRAFT

    def test_the_most_frequent_answer_is_drafted_until_another_one_is(self) -> None:
        history = AnswerHistory()
        for _ in range(3):
            history.add([1, 2, 3, 4, 5], self.ASKED)
        history.add([1, 7, 3, 4, 5], self.ASKED)
        assert history.draft([1], 9, 60).tokens[0] == 2
        assert history.draft([1, 7], 9, 60).tokens[0] == 3
        for _ in range(2):
            history.add([1, 7, 3, 4, 5], self.ASKED)
        assert history.draft([1], 9, 60).tokens[0] == 7

    def test_after_another_label_an_answer_goes_on_as_one_that_was_the_same_a_few_tokens_ago(self) -> None:
        history = AnswerHistory()
        history.add([1, 2, 3, 4, 5, 6, 7], (1, 5))
        assert history.draft([1, 9, 3, 4, 5], 9, 60) == Draft((6, 7), [])
        assert history.draft([1, 9, 2, 3, 4], 0, 60) == Draft((5,), [1])

    def test_a_draft_stops_where_decisions_do_not_come_as_they_were_foretold(self) -> None:
        """The second decision is a new one each time; what adds nothing to a run's time is drafted all the same."""
        history = AnswerHistory()
        for number in range(30):
            history.add([1, 2, 3, 100 + number, 5, 6], (1, 3, 5))
        assert history.draft([], 0, 60) == Draft((1, 2, 3), [1, 3])
        assert len(history.draft([], 5, 60).tokens) == 5
        for _ in range(8):
            history.add([1, 2, 3, 4, 5, 6], (1, 3, 5))
        assert history.draft([], 0, 60) == Draft((1, 2, 3, 4, 5), [1, 3, 5])

    def test_the_places_whose_logits_are_computed_are_bounded(self) -> None:
        history = AnswerHistory()
        for _ in range(20):
            history.add(list(range(40)), range(1, 40))
        draft = history.draft([], 0, 60)
        assert len(draft.asked) == len(draft.tokens) == 9

    @given(st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1), st.sets(st.integers(0, 9)))), st.integers(0, 9))
    def test_any_history_gives_drafts_that_fit(self, answers: list[tuple[list[int], set[int]]], most: int) -> None:
        history = AnswerHistory()
        for tokens, asked in answers:
            history.add(tokens, sorted(place for place in asked if place < len(tokens)))
        for start in [tokens[:cut] for tokens, _ in answers for cut in range(len(tokens))] or [[]]:
            draft = history.draft(start, min(4, most), most)
            assert len(draft.tokens) <= most
            assert list(draft.asked) == sorted(place for place in set(draft.asked) if 0 < place <= len(draft.tokens))
