"""Texts that go into encoders: padding, limits, prompts, languages, and commands that meet the wrong bundle."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters.encoders.checkpoint import open_encoder
from converters.encoders.convert import EncoderOptions, convert_encoder
from converters.encoders.graphs.pi import lengths_of
from converters.ops.numpy_parts import activation
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.encoder.encoder_model import EncoderModel
from device_runtime.engine.encoder.graph import read_floats
from device_runtime.engine.encoder.translator import Translator
from device_runtime.engine.encoder.vocabulary import VOCABULARY, Vocabulary
from device_runtime.engine.language_model import LanguageModel
from device_runtime.errors import (
    ArchitectureError,
    BundleError,
    CheckpointError,
    ConfigurationError,
    ContextOverflowError,
    SchemaError,
)
from tests.encoders.conftest import FOLDER
from toolkit.cli import main


def copied(name: str, folder: Path, **config: object) -> Path:
    """A checkpoint with other fields in its config.json."""
    shutil.copytree(FOLDER / name, folder / name)
    path = folder / name / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder / name


def test_padding_changes_nothing(bundles):
    """A text of 20 tokens, in the signatures of 32 and of 96: equal up to the order of float sums."""
    with EncoderModel.open(bundles("bert-embed").path) as model:
        tokens = [2, *range(10, 28), 3]
        short = model.read(tokens)
        graph, outputs = model._graph._graph, None
        for pad in (0, 7):
            _, outputs = graph.bind("encode_96")
            graph.run("encode_96", {"tokens": tokens + [pad] * 76, "length": [len(tokens)]})
            np.testing.assert_allclose(read_floats(outputs["result"], 32), short, atol=1e-5)


def test_each_length_has_its_signature():
    assert lengths_of(512) == (32, 128, 512)
    assert lengths_of(96) == (32, 96)
    assert lengths_of(20) == (20,)


def test_vectors_have_length_one_and_equal_texts_equal_vectors(bundles):
    with EncoderModel.open(bundles("bert-embed").path) as model:
        vectors = model.embed(["the pump is hot", "valve", "the pump is hot"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (vectors[0] == vectors[2]).all()
    assert abs(vectors[0] @ vectors[1]) < 0.999


def test_a_prompt_goes_before_the_text(bundles):
    with EncoderModel.open(bundles("bert-embed").path) as model:
        asked, written = model.embed("valve", prompt_name="query"), model.embed("query: valve")
        np.testing.assert_array_equal(asked, written)
        with pytest.raises(ConfigurationError, match="no prompt 'passage'; it has 'query'"):
            model.embed("valve", prompt_name="passage")


def test_the_nearest_label_is_the_one_with_the_largest_cosine(bundles):
    with EncoderModel.open(bundles("bert-embed").path) as model:
        ((label, cosine),) = model.nearest(["the pump is hot"], ["valve closed", "the pump is hot"])
    assert label == "the pump is hot"
    assert cosine == pytest.approx(1, abs=1e-5)


def test_the_name_of_a_control_token_is_text(bundles):
    vocabulary = Vocabulary(bundles("bert-embed"))
    assert vocabulary.encode("[SEP]").tokens.count(3) == 1  # the frame's own


def test_a_text_that_is_too_long_is_an_error_or_cut_within_the_frame(bundles):
    vocabulary = Vocabulary(bundles("bert-embed"))
    with pytest.raises(ContextOverflowError, match="200 tokens; this model reads 94 at most"):
        vocabulary.encode("pump " * 200)
    cut = vocabulary.encode("pump " * 200, truncate=True)
    assert cut.cut
    assert (len(cut.tokens), cut.tokens[0], cut.tokens[-1]) == (96, 2, 3)


@pytest.mark.parametrize("text", ["", " \n", "\ud800"])
def test_what_is_no_text_is_refused(text, bundles):
    with pytest.raises(ConfigurationError, match=r"empty|not text"):
        Vocabulary(bundles("bert-embed")).encode(text)


def test_positions_of_roberta_begin_after_the_paddings():
    """transformers adds padding_idx + 1 = 2: of 130 rows 128 are positions."""
    checkpoint = open_encoder(FOLDER / "roberta")
    assert checkpoint.config.max_tokens == 128


def test_probabilities_of_a_field_sum_to_one_and_the_chosen_is_the_largest(bundles):
    with EncoderModel.open(bundles("bert-classify").path) as model:
        found = model.classify("the pump is hot")
    shares = found.probabilities["label"]
    assert list(shares) == ["calm", "odd", "alarm"]
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    assert shares[found.answer["label"]] == max(shares.values()) == found.confidence["label"]


def test_several_labels_at_once_are_fields_of_their_own(bundles):
    """The probability of true is the sigmoid of the logit that transformers gives."""
    row = json.loads((FOLDER / "bert-several" / "golden.json").read_text())["rows"][0]
    with EncoderModel.open(bundles("bert-several").path) as model:
        found = model.classify(row["text"])
    for name, logit in zip(("calm", "odd", "alarm"), row["result"], strict=True):
        assert found.probabilities[name]["true"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=0.03)
        assert found.answer[name] is bool(logit > 0)


def test_an_answer_of_a_link_has_to_be_one_that_the_classifier_can_give(bundles):
    with EncoderModel.open(bundles("bert-classify").path) as model:
        model.check_schema({"properties": {"label": {"enum": ["alarm", "odd", "calm", "more"]}}})
        with pytest.raises(SchemaError, match="may answer label 'odd', which the schema does not allow"):
            model.check_schema({"properties": {"label": {"enum": ["alarm", "calm"]}}})
        with pytest.raises(SchemaError, match="'severity' is none of its fields"):
            model.check_schema({"properties": {"severity": {}}})


@pytest.mark.parametrize("given", [True, False])
def test_what_a_schema_gives_no_head_chooses(bundles, given):
    """As a link's `decide` does."""
    with EncoderModel.open(bundles("bert-several").path) as model:
        answer = model.generate("The pump is too hot.", schema={"properties": {"odd": {"const": given}}})
        said = json.loads("".join(answer))
    assert said["odd"] is given and set(said) == {"calm", "odd", "alarm"}
    assert set(answer.result.confidence) == set(answer.result.probabilities) == {"calm", "alarm"}


def test_a_translation_goes_on_in_the_next_window(bundles):
    """Positions 31 and 32 lie in signatures of 32 and 96 tokens; the longer one alone says the same."""
    with Translator.open(bundles("marian").path) as model:
        source = model.vocabulary.encode("the pump is hot").tokens
        target = [model.manifest.translator.start_id, *([20, 30, 40] * 13)]
        moved = model.force(source, target)
        model.manifest.graph.__dict__["windows"] = (96,)
        whole = model.force(source, target)
    np.testing.assert_allclose(moved, whole, atol=2e-4)


def test_a_translation_is_the_same_the_second_time(bundles):
    with Translator.open(bundles("t5").path) as model:
        first = model.translate("the pump is hot", max_new=8)
        model.translate("valve closed valve open", max_new=8)
        assert model.translate("the pump is hot", max_new=8) == first


def test_a_translator_of_one_language_is_told_to_leave_the_flag_out(bundles):
    with Translator.open(bundles("marian").path) as model, pytest.raises(
        ConfigurationError, match=r"writes one language alone; leave --to 'deu' \(to=…\) out"
    ):  # fmt: skip
        model.translate("the pump", to="deu")


def test_a_bundle_that_answers_with_no_text_takes_no_golden_prompt(bundles, tmp_path, capsys):
    command = ["bundle", "pack", str(bundles("bert-embed").path), "-o", str(tmp_path / "b.zip"), "--trial-prompt", "hi"]
    assert main([*command, "--trial-expect", "x"]) == 2
    assert "Use `stonechat embed BUNDLE TEXT`" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_translator_of_several_languages_wants_one(bundles, tmp_path):
    bundle = shutil.copytree(bundles("marian").path, tmp_path / "several")
    ids = json.loads((bundle / VOCABULARY).read_text())
    ids = {{20: ">>deu<<", 21: ">>fra<<"}.get(i, piece): i for piece, i in ids.items()}
    opened = Bundle(bundle, bundles("marian").manifest, "")
    (bundle / VOCABULARY).write_text(json.dumps(ids))
    vocabulary = Vocabulary(opened)
    assert vocabulary.encode("the pump", to="fra").tokens[0] == 21
    with pytest.raises(ConfigurationError, match="writes deu, fra; no language is named"):
        vocabulary.encode("the pump")


@pytest.mark.parametrize(("name", "command"), [("bert-embed", "embed"), ("marian", "translate")])
def test_a_bundle_of_another_task_is_refused_with_its_command(name, command, bundles):
    with pytest.raises(ConfigurationError, match=f"Use `stonechat {command} BUNDLE TEXT`"):
        LanguageModel.open(bundles(name).path)


def test_a_manifest_without_what_its_task_needs_is_refused(bundles, changed):
    with pytest.raises(BundleError, match="lacks encoder for the task embed"):
        Bundle.open(changed(bundles("bert-embed").path, encoder=None))


def test_a_classifier_is_no_encoder(bundles):
    with EncoderModel.open(bundles("bert-classify").path) as model, pytest.raises(ConfigurationError, match="classify"):
        model.embed("the pump")


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("bert-embed", {"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification; of BERT"),
        ("bert-embed", {"position_embedding_type": "relative_key"}, "described for absolute only"),
        ("mpnet", {"relative_attention_num_buckets": 64}, "relative_attention_num_buckets is 64; .* for 32 only"),
        ("bert-classify", {"id2label": {"0": "score"}}, "as a regression or a reranker does"),
        ("bert-classify", {"id2label": {"0": "a", "1": "a", "2": "b"}}, "2 of them different"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings is False"),
        ("t5", {"feed_forward_proj": "gated-tanh"}, "feed_forward_proj is tanh"),
    ],
)
def test_what_the_network_does_not_describe_is_refused_by_name(name, config, words, tmp_path):
    with pytest.raises(ArchitectureError, match=words):
        open_encoder(copied(name, tmp_path, **config))


def test_a_pooling_that_is_not_known_is_refused_by_name(tmp_path):
    folder = copied("bert-embed", tmp_path)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ArchitectureError, match="pooling_mode_max_tokens is not supported"):
        open_encoder(folder)


def test_weights_of_another_model_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"word_embeddings.weight .* has shape \(\d+, 32\), expected \(999, 32\)"):
        open_encoder(copied("bert-embed", tmp_path, vocab_size=999))


def test_a_limit_of_tokens_beside_the_checkpoint_is_the_context(tmp_path):
    folder = copied("bert-embed", tmp_path)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40}))
    bundle = convert_encoder(open_encoder(folder), tmp_path / "bundle", EncoderOptions(fast=True))
    assert bundle.manifest.context == 40
    with pytest.raises(ConfigurationError, match="at most 40 tokens"):
        convert_encoder(open_encoder(folder), tmp_path / "longer", EncoderOptions(context=64))


def test_e5_has_its_prompts_without_being_asked(tmp_path):
    """Its files do not say them; the folder's name does."""
    shutil.copytree(FOLDER / "bert-embed", tmp_path / "multilingual-e5-small")
    (tmp_path / "multilingual-e5-small" / "config_sentence_transformers.json").unlink()
    checkpoint = open_encoder(tmp_path / "multilingual-e5-small")
    assert checkpoint.settings.prompts == {"query": "query: ", "passage": "passage: "}


def test_small_letters_that_the_tokenizer_does_not_make_are_refused(tmp_path):
    folder = copied("xlm-roberta", tmp_path)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    with pytest.raises(ArchitectureError, match="the tokenizer keeps capitals"):
        open_encoder(folder)


def test_tokens_become_the_text_of_the_second_language(bundles):
    vocabulary = Vocabulary(bundles("marian"))
    for row in json.loads((FOLDER / "marian" / "golden.json").read_text())["rows"]:
        assert vocabulary.decode(row["target"]) == row["translation"]


def test_the_fit_of_an_encoder_counts_texts(bundles):
    from boards import load_board
    from boards.fit import Subject, fit

    found = fit(load_board("raspberry-pi-zero-2-w"), Subject.of_manifest(bundles("bert-embed").manifest))
    assert found.fits
    assert found.figures["ceiling"].unit == "texts/s"
    assert found.figures["kv_cache"].value == 0
    assert found.largest_context == 96


def test_smoothing_brings_a_network_with_large_channels_closer_to_its_float_one(tmp_path):
    """Two channels of every norm are made 20 times as large: one scale a row has little left for the others."""
    from converters.encoders.ops_numpy import reference_sentence

    opened = open_encoder(FOLDER / "bert-embed")

    def read(name):
        values = opened.read(name).copy()
        if name.endswith("_norm.weight") and ".layers." in name:
            values[[3, 17]] *= 20
        return values

    checkpoint = replace(opened, read=read)
    distances = {}
    for fast in (True, False):
        bundle = convert_encoder(checkpoint, tmp_path / str(fast), EncoderOptions(fast=fast))
        found = []
        with EncoderModel.open(bundle.path) as model:
            for row in json.loads((FOLDER / "bert-embed" / "golden.json").read_text())["rows"]:
                wanted = reference_sentence(checkpoint.config, read, row["tokens"])
                found.append(1 - float(wanted @ model.read(row["tokens"])))
        distances[fast] = max(found)
    assert distances[False] < distances[True]


def test_gelu_with_erf_is_right_to_seven_digits():
    """Against values of the error function from its definition: x * (1 + erf(x / sqrt(2))) / 2."""
    import math

    x = np.linspace(-6, 6, 2001).astype(np.float32)
    wanted = [value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x.tolist()]
    np.testing.assert_allclose(activation(x, "gelu"), wanted, atol=1e-6)


def test_the_commands_print_one_object(bundles, capsys, tmp_path):
    (tmp_path / "texts").write_text("the pump is hot\n\nvalve\n")
    assert main(["embed", str(bundles("bert-embed").path), "--file", str(tmp_path / "texts"), "--json"]) == 0
    vectors = json.loads(capsys.readouterr().out)
    assert (vectors["width"], len(vectors["embeddings"])) == (32, 2)
    assert main(["classify", str(bundles("bert-classify").path), "the pump", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["texts"]
    assert found["answer"]["label"] in ("calm", "odd", "alarm")
    assert main(["translate", str(bundles("marian").path), "the pump", "--max-new", "4", "--json"]) == 0
    (written,) = json.loads(capsys.readouterr().out)["translations"]
    assert written["completion_tokens"] == 4


def test_a_classifier_that_others_trained_is_run_and_scored_on_texts_as_they_are(bundles, capsys, tmp_path):
    bundle, text = bundles("bert-classify").path, "The pump is hot"
    with EncoderModel.open(bundle) as model:
        answer = dict(model.classify(text).answer)
    assert main(["run", str(bundle), text]) == 0
    assert json.loads(capsys.readouterr().out) == answer
    (tmp_path / "held.jsonl").write_text(json.dumps({"input": {"text": text}, "answer": answer}) + "\n")
    assert main(["eval", str(bundle), "--examples", str(tmp_path / "held.jsonl"), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["accuracy"] == 1.0 and scored["answers"][0]["answer"]["label"] == answer["label"]


def test_a_command_without_texts_says_how_to_give_them(bundles, capsys):
    assert main(["embed", str(bundles("bert-embed").path)]) == 2
    assert "--file FILE" in capsys.readouterr().err


def test_a_command_for_models_that_write_text_says_what_the_checkpoint_is(capsys, tmp_path):
    assert main(["trace", str(FOLDER / "bert-embed"), "--tokens", "5,6", "-o", str(tmp_path / "x.npz")]) == 1
    assert "a bert checkpoint of the task embed; expected one that writes text" in capsys.readouterr().err


def test_convert_refuses_what_only_writers_have(capsys, tmp_path):
    command = ["convert", str(FOLDER / "marian"), "-o", str(tmp_path / "out")]
    assert main([*command, "--profile", "micro"]) == 1
    assert "has no graph in the profile micro" in capsys.readouterr().err
    for flags in (
        ["--prefix", "Be brief."],
        ["--weights", "int4"],
        ["--schema", "answer.json"],
        ["--task", "pump"],
        ["--no-thinking"],
    ):
        assert main([*command, "--profile", "pi", *flags]) == 2
        named = "--weights int4" if "int4" in flags else flags[0]
        assert f"{named} is for models that write text" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
