"""`stonechat eval` and the report in a bundle: what they measure, and what they say to wrong input."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from converters.checkpoints import open_checkpoint
from converters.measure.quality import compare_windows, pooled
from converters.texts.windows import text_windows
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import MANIFEST
from device_runtime.engine.tokenizer import read_tokenizer
from toolkit.cli import main

CHECKPOINTS = Path(__file__).parents[1] / "data" / "checkpoints"
CHECKPOINT = CHECKPOINTS / "gqa-tied"
WORDS = "The pump runs hot. Close the valve, then write the alarm into the log of station 42.\n"
CONVERSATIONS = [[{"role": "user", "content": WORDS * 2}, {"role": "assistant", "content": "close(valve)"}]]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "log.txt").write_text(WORDS * 12)
    return tmp_path / "log.txt"


@pytest.fixture
def micro(converted: Callable[..., Path]) -> Path:
    return converted("gqa-tied", "micro")


Eval = Callable[..., tuple[int, str, str]]


@pytest.fixture
def evaluate(capfd: pytest.CaptureFixture[str]) -> Eval:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["eval", *map(str, arguments)])
        return code, *capfd.readouterr()

    return run


class TestFigures:
    @pytest.mark.parametrize("profile", ["pi", "micro"])
    def test_json_has_all_of_them(
        self, profile: str, converted: Callable[..., Path], text: Path, evaluate: Eval
    ) -> None:
        bundle = converted("gqa-tied", profile)
        code, out, err = evaluate(bundle, "--text", text, "--against", CHECKPOINT, "--window", 64, "--json")
        assert (code, err) == (0, "")
        result = json.loads(out)
        assert result["window"] == 64
        assert result["tokens"] == result["kinds"]["log.txt"]["tokens"] > 100
        assert result["ratio"] == pytest.approx(result["graph_perplexity"] / result["float_perplexity"], rel=1e-4)
        assert result["kl_divergence"] > 0 and 0.5 < result["top1_agreement"] <= 1
        assert [layer["name"] for layer in result["layers"]] == [
            f"layers.{i}.{part}" for i in (0, 1) for part in ("attention_out", "out")
        ]
        assert all(layer["snr_db"] > 10 for layer in result["layers"])

    def test_they_are_those_of_the_backend_on_the_same_windows(self, micro: Path, text: Path, evaluate: Eval) -> None:
        _, out, _ = evaluate(micro, "--text", text, "--against", CHECKPOINT, "--window", 64, "--json")
        tokens = read_tokenizer(micro / "tokenizer.json").encode(text.read_text())
        expected = pooled(
            compare_windows(Bundle.open(micro), text_windows(tokens, 64), open_checkpoint(CHECKPOINT), workers=1)
        )
        assert expected.to_json().items() <= json.loads(out).items()

    def test_without_a_checkpoint_there_is_the_perplexity_alone(self, micro: Path, text: Path, evaluate: Eval) -> None:
        _, out, _ = evaluate(micro, "--text", text, "--window", 64, "--json")
        assert set(json.loads(out)) == {"tokens", "graph_perplexity", "window", "kinds", "layers"}
        _, out, _ = evaluate(micro, "--text", text, "--window", 64)
        assert out.splitlines()[0].split() == ["tokens", "perplexity"]

    def test_a_table_has_a_line_for_each_text_and_one_for_all(self, micro: Path, text: Path, evaluate: Eval) -> None:
        other = text.with_name("chat.json")
        other.write_text(json.dumps(CONVERSATIONS))
        code, out, _ = evaluate(micro, "--text", text, "--text", other, "--against", CHECKPOINT)
        assert code == 0
        lines = out.splitlines()
        assert [line.split()[0] for line in lines[:4]] == ["tokens", "log.txt", "chat.json", "all"]
        assert lines[4].startswith("signal to noise after the last layer: ")

    def test_conversations_are_read_in_the_models_own_template(self, micro: Path, text: Path, evaluate: Eval) -> None:
        chat = text.with_name("chat.json")
        chat.write_text(json.dumps(CONVERSATIONS))
        rendered = text.with_name("rendered.txt")
        rendered.write_text(f"<|im_start|>user\n{WORDS * 2}<|im_end|>\n<|im_start|>assistant\nclose(valve)<|im_end|>\n")
        results = [json.loads(evaluate(micro, "--text", file, "--json")[1]) for file in (chat, rendered)]
        assert results[0]["graph_perplexity"] == results[1]["graph_perplexity"]

    def test_without_a_text_three_kinds_are_measured(self, micro: Path, evaluate: Eval) -> None:
        code, out, _ = evaluate(micro, "--window", 16, "--tokens", 32, "--json")
        assert (code, set(json.loads(out)["kinds"])) == (0, {"prose", "documentation", "chat"})

    def test_another_backend_can_be_asked(self, micro: Path, text: Path, evaluate: Eval) -> None:
        pytest.importorskip("tflite_micro", reason="tflite-micro is not installed (x86_64 only)")
        flags = ["--text", text, "--window", 64, "--json"]
        in_litert, in_tflm = (
            json.loads(evaluate(micro, *flags, "--backend", name)[1])["graph_perplexity"] for name in ("litert", "tflm")
        )
        assert in_litert != in_tflm  # other kernels, which round in other ways …
        assert in_litert == pytest.approx(in_tflm, rel=0.05)  # … by less than quantization itself does

    def test_a_picture(self, micro: Path, text: Path, tmp_path: Path, evaluate: Eval) -> None:
        flags = ["--text", text, "--window", 64, "--against", CHECKPOINT, "--plot", tmp_path / "layers.png"]
        assert evaluate(micro, *flags)[0] == 0
        assert (tmp_path / "layers.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


class TestRefusals:
    @pytest.mark.parametrize(
        "flags, words",
        [
            (["--text", "{folder}/nothing.txt"], "nothing.txt cannot be read: No such file or directory"),
            (["--text", "{folder}"], "cannot be read: Is a directory"),
            (["--text", "{folder}/latin1.txt"], "is not UTF-8 text (byte 4)"),
            (["--text", "{folder}/empty.txt"], "empty.txt has 0 tokens; a window needs 2"),
            (["--text", "{folder}/log.txt", "--window", "250", "--tokens", "20"], "has 20 tokens; a window needs 250"),
            (["--text", "{folder}/broken.json"], "broken.json"),
            (["--text", "{folder}/log.txt", "--text", "{folder}/log.txt"], "Two texts are named log.txt; rename one"),
            (["--window", "256"], "--window is 256, but the bundle has room for 255 tokens"),
            (["--plot", "{folder}/x.png"], "name that with --against"),
            (["--against", "{folder}/nowhere"], "nowhere"),
            (["--against", str(CHECKPOINTS / "llama3-rope")], "The bundle was made of another checkpoint: it has"),
            (["--backend", "gpu", "--window", "16", "--tokens", "16"], "There is no backend 'gpu'"),
        ],
    )
    def test_one_line_says_what_and_leaves_nothing(
        self, flags: list[str], words: str, micro: Path, text: Path, tmp_path: Path, evaluate: Eval
    ) -> None:
        (tmp_path / "latin1.txt").write_bytes("caf\xe9".ljust(40).encode("latin-1").replace(b"caf\xe9", b"caf \xe9"))
        (tmp_path / "empty.txt").write_text("")
        (tmp_path / "broken.json").write_text('[[{"role": "user"}]]')
        code, out, err = evaluate(micro, *(flag.format(folder=tmp_path) for flag in flags))
        assert code in (1, 2) and out == ""
        assert words in err and "Traceback" not in err and len(err.splitlines()) == 1
        assert not (tmp_path / "x.png").exists()

    def test_few_tokens_are_said_to_be_few(self, micro: Path, text: Path, evaluate: Eval) -> None:
        _, out, _ = evaluate(micro, "--text", text, "--window", 16, "--tokens", 16)
        assert "only 15 tokens: give a text" in out

    def test_a_picture_that_cannot_be_written(self, micro: Path, text: Path, evaluate: Eval) -> None:
        flags = ["--text", text, "--window", 16, "--tokens", 16, "--against", CHECKPOINT]
        for name, words in (("no/such/folder/x.png", "there is no folder"), ("x.doc", "must be one of")):
            code, _, err = evaluate(micro, *flags, "--plot", text.parent / name)
            assert code == 2 and f"{name} cannot be written: " in err and words in err


class TestReport:
    """What convert has measured stands in the manifest, and inspect shows it."""

    def test_of_the_micro_profile(self, micro: Path, capfd: pytest.CaptureFixture[str]) -> None:
        quality = Bundle.open(micro).manifest.quality
        assert set(quality["kinds"]) == {"prose", "documentation", "chat"}
        assert len(quality["worst_layers"]) == 3
        assert set(quality["int16"]["instead"]) == {"o", "down", "attention", "head"}
        assert main(["inspect", str(micro)]) == 0
        out = capfd.readouterr().out
        for label in ("perplexity", "divergence", "  chat", "most is lost in", "int16 activations", "arena"):
            assert f"\n{label}  " in out, label
        assert f"ratio {quality['ratio']:.4f} ± {quality['ratio_error']:.4f}" in out

    def test_of_a_bundle_that_an_older_stonechat_made(
        self, pi_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        bundle = self.with_quality(
            pi_bundle, tmp_path, float_perplexity=20.0, graph_perplexity=21.0, ratio=1.05, tokens=510, text="a text"
        )
        assert main(["inspect", str(bundle)]) == 0
        assert "21.00 (float 20.00, ratio 1.0500; 510 tokens of a text)" in capfd.readouterr().out

    def test_a_large_ratio_is_warned_of_with_the_worst_layers(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """With a limit that every graph exceeds, since a random network has no ratio to speak of."""
        from toolkit import quality_text

        monkeypatch.setattr(quality_text, "LARGEST_RATIO", 0.5)
        assert main(["convert", str(CHECKPOINT), "--profile", "micro", "-o", str(tmp_path / "bundle")]) == 0
        err = capfd.readouterr().err
        worst = Bundle.open(tmp_path / "bundle").manifest.quality["worst_layers"]
        assert "stonechat: warning: the graph's perplexity is " in err
        assert all(layer["name"] in err for layer in worst)
        assert "--calibrate FILE" in err

    def test_without_figures_by_layer_the_warning_names_none(self) -> None:
        from toolkit.quality_text import quality_warning

        warning = quality_warning({"ratio": 1.075})
        assert warning is not None and "lost in" not in warning and "--weights int8" in warning

    def test_a_small_one_is_not(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["convert", str(CHECKPOINT), "--profile", "micro", "-o", str(tmp_path / "bundle")]) == 0
        assert "warning" not in capfd.readouterr().err  # a machine that is busy may have said how far it is

    @staticmethod
    def with_quality(source: Path, folder: Path, **quality: object) -> Path:
        for file in source.iterdir():
            os.link(file, folder / file.name)
        manifest = replace(Bundle.open(source).manifest, quality=quality)
        (folder / MANIFEST).unlink()
        (folder / MANIFEST).write_text(manifest.to_json())
        return folder
