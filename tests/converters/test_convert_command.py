"""`stonechat convert`: a bundle appears whole or not at all, and what is wrong is said in one message."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters.checkpoints import Checkpoint, open_checkpoint
from converters.convert import Options, convert
from device_runtime.bundle.folder import Bundle
from device_runtime.errors import ConfigurationError
from tests.support.random_checkpoint import CHECKPOINTS, random_checkpoint
from toolkit.cli import main

QUICK = Options("pi", fast=True)


@pytest.fixture
def checkpoint() -> Checkpoint:
    return random_checkpoint(max_context=128)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of gqa-tied to do harm to."""
    return Path(shutil.copytree(CHECKPOINTS / "gqa-tied", tmp_path / "checkpoint"))


def refused(capfd: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """Run the command; returns its one message, which is all that it writes."""
    assert main(["convert", *map(str, arguments)]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("stonechat: ") and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    return err


class Interrupted(Exception):
    pass


def interrupt_at(step: str):
    def progress(name: str, share: float) -> None:
        if name == step and share > 0:
            raise Interrupted

    return progress


class TestWhole:
    @pytest.mark.parametrize("step", ["calibrating", "quantizing", "measuring"])
    def test_an_exception_leaves_nothing_behind(self, step: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
        with pytest.raises(Interrupted):
            convert(checkpoint, tmp_path / "bundle", Options("pi"), interrupt_at(step))
        assert list(tmp_path.iterdir()) == []

    def test_an_exception_leaves_the_older_bundle_as_it_was(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        convert(checkpoint, tmp_path / "bundle", replace(QUICK, version="1"))
        with pytest.raises(Interrupted):
            convert(checkpoint, tmp_path / "bundle", Options("pi", version="2"), interrupt_at("measuring"))
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
        assert Bundle.open(tmp_path / "bundle", verify=True).manifest.version == "1"

    def test_an_older_bundle_is_replaced_at_the_end(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        bundle = tmp_path / "bundle"
        convert(checkpoint, bundle, replace(QUICK, version="1"))
        seen = set()

        def look(step: str, share: float) -> None:
            seen.add(json.loads((bundle / "manifest.json").read_text())["version"])

        convert(checkpoint, bundle, Options("pi", version="2"), look)
        assert seen == {"1"}
        assert Bundle.open(bundle, verify=True).manifest.version == "2"
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

    @pytest.mark.parametrize("older", [False, True])
    def test_a_killed_conversion_leaves_nothing_at_its_target(self, older: bool, tmp_path: Path) -> None:
        target = tmp_path / "bundle"
        if older:
            convert(random_checkpoint(max_context=64), target, replace(QUICK, version="older"))
        before = {p.name for p in tmp_path.iterdir()}
        command = [sys.executable, "-m", "toolkit", "convert", str(CHECKPOINTS / "gqa-tied"), "--profile", "pi"]
        process = subprocess.Popen([*command, "-o", str(target)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and {p.name for p in tmp_path.iterdir()} == before:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        if older:
            assert Bundle.open(target, verify=True).manifest.version == "older"
        else:
            assert not target.exists()
        convert(random_checkpoint(max_context=64), target, replace(QUICK, version="next"))
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]  # what the killed one left is cleared

    def test_nobody_else_needs_to_be_asked_to_read_it(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        """The temporary folder is private; the bundle is not."""
        bundle = convert(checkpoint, tmp_path / "bundle", QUICK)
        assert bundle.path.stat().st_mode & 0o777 == 0o755
        assert all(path.stat().st_mode & 0o044 == 0o044 for path in bundle.path.iterdir())

    def test_a_folder_that_is_no_bundle_is_left_alone(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
        with pytest.raises(ConfigurationError, match="thesis exists and is not a bundle; choose another"):
            convert(checkpoint, tmp_path / "thesis", QUICK)
        assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "precious"

    def test_a_file_is_left_alone(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("precious")
        for target in (tmp_path / "file", tmp_path / "file" / "bundle"):
            with pytest.raises(ConfigurationError, match="choose another folder with -o"):
                convert(checkpoint, target, QUICK)
        assert (tmp_path / "file").read_text() == "precious"

    def test_an_empty_folder_will_do(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert convert(checkpoint, tmp_path / "empty", QUICK).path == tmp_path / "empty"

    def test_the_current_folder_will_do(
        self, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        convert(checkpoint, Path("."), QUICK)
        assert (tmp_path / "here" / "manifest.json").is_file()

    def test_folders_above_it_are_made(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        assert convert(checkpoint, tmp_path / "a" / "b" / "bundle", QUICK).path.is_dir()


@pytest.mark.parametrize("name", ["gqa-tied", "yarn-biases"])
@pytest.mark.parametrize("profile", ["pi", "micro"])
def test_two_conversions_give_the_same_bytes(name: str, profile: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(CHECKPOINTS / name)
    options = Options(profile, context=64)  # type: ignore[arg-type]
    one, other = (convert(checkpoint, tmp_path / part, options).path for part in ("one", "other"))
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in other.iterdir())
    assert "model.tflite" in files and "manifest.json" in files
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


class TestReport:
    def test_the_manifest_says_how_good_the_graph_is_and_on_what(self, pi_bundle: Path) -> None:
        quality = Bundle.open(pi_bundle).manifest.quality
        assert quality["text"] == "stonechat held-out text"
        assert quality["tokens"] > 400
        assert quality["ratio"] == pytest.approx(quality["graph_perplexity"] / quality["float_perplexity"], abs=1e-4)
        assert 0.9 < quality["ratio"] < 1.1

    def test_without_a_report_there_are_no_figures(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        assert convert(checkpoint, tmp_path / "bundle", QUICK).manifest.quality == {}


class TestContext:
    def test_the_default_is_no_longer_than_the_checkpoints(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        assert convert(checkpoint, tmp_path / "bundle", QUICK).manifest.context == 128

    def test_a_longer_one_is_refused(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        arguments = [CHECKPOINTS / "gqa-tied", "--profile", "pi", "--context", 257, "-o", tmp_path / "bundle"]
        assert "--context is 257" in refused(capfd, 2, *arguments)
        assert list(tmp_path.iterdir()) == []

    def test_a_tiny_one_is_refused(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        arguments = [CHECKPOINTS / "gqa-tied", "--profile", "pi", "--context", 15, "-o", tmp_path / "bundle"]
        assert "at least 16" in refused(capfd, 2, *arguments)

    def test_a_board_sets_profile_and_context(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        arguments = ["convert", str(CHECKPOINTS / "gqa-tied"), "--json", "-o", str(tmp_path / "bundle")]
        assert main([*arguments, "--board", "stm32h743"]) == 0
        result = json.loads(capfd.readouterr().out)
        assert (result["profile"], result["context"]) == ("micro", 128)
        assert main([*arguments, "--board", "raspberry-pi-zero-2-w"]) == 0
        result = json.loads(capfd.readouterr().out)
        assert (result["profile"], result["context"]) == ("pi", 256)  # the checkpoint's, below the board's 1,024

    def test_an_unknown_board_is_refused(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        err = refused(capfd, 2, CHECKPOINTS / "gqa-tied", "--board", "pi-zero", "-o", tmp_path / "bundle")
        assert "There is no board 'pi-zero'" in err and "raspberry-pi-zero-2-w" in err

    def test_neither_profile_nor_board_is_refused(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        assert "--board ID" in refused(capfd, 2, CHECKPOINTS / "gqa-tied", "-o", tmp_path / "bundle")


class TestCalibrationText:
    def try_text(self, capfd: pytest.CaptureFixture[str], tmp_path: Path, text: Path) -> str:
        target = tmp_path / "out" / "bundle"
        err = refused(capfd, 2, CHECKPOINTS / "gqa-tied", "--profile", "pi", "--calibrate", text, "-o", target)
        assert not target.exists()
        return err

    def test_a_missing_file(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        err = self.try_text(capfd, tmp_path, tmp_path / "none.txt")
        assert "none.txt cannot be read: No such file" in err

    def test_a_folder(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        assert "Is a directory" in self.try_text(capfd, tmp_path, tmp_path)

    def test_another_encoding(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "latin1.txt").write_bytes("Überdruck".encode("latin-1"))
        err = self.try_text(capfd, tmp_path, tmp_path / "latin1.txt")
        assert "latin1.txt is not UTF-8 text (byte 0)" in err

    @pytest.mark.parametrize("text", ["", "too short"])
    def test_too_short_a_text(self, text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "short.txt").write_text(text)
        assert "at least 32" in self.try_text(capfd, tmp_path, tmp_path / "short.txt")
        assert not (tmp_path / "out").exists()

    def test_one_that_is_long_enough_is_used(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "own.txt").write_text("The pump in hall 3 runs at 81.5 °C. " * 5)
        bundles = []
        for extra in ([], ["--calibrate", str(tmp_path / "own.txt")]):
            target = tmp_path / f"bundle{len(extra)}"
            arguments = [str(CHECKPOINTS / "gqa-tied"), "--profile", "micro", "--context", "32"]
            assert main(["convert", *arguments, *extra, "-o", str(target)]) == 0
            bundles.append((target / "model.tflite").read_bytes())
        assert bundles[0] != bundles[1]


class TestCheckpointsThatCannotBeRead:
    def try_checkpoint(self, capfd: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Path, code: int = 1) -> str:
        (tmp_path / "out").mkdir()
        err = refused(capfd, code, checkpoint, "--profile", "pi", "-o", tmp_path / "out" / "bundle")
        assert list((tmp_path / "out").iterdir()) == []
        assert str(checkpoint) in err
        return err

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.9, 0.9999])
    def test_a_truncated_gguf(self, share: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        data = (CHECKPOINTS / "gqa-tied.gguf").read_bytes()
        (tmp_path / "cut.gguf").write_bytes(data[: int(len(data) * share)])
        self.try_checkpoint(capfd, tmp_path, tmp_path / "cut.gguf")

    def test_a_missing_tensor(self, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, folder / "model.safetensors")
        assert "up" in self.try_checkpoint(capfd, tmp_path, folder)

    def test_a_tensor_of_another_shape(self, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] = np.ones(63, np.float32)
        save_file(tensors, folder / "model.safetensors")
        err = self.try_checkpoint(capfd, tmp_path, folder)
        assert "63" in err and "64" in err

    def test_an_unknown_architecture(self, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "mamba", "architectures": ["MambaForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(config))
        err = self.try_checkpoint(capfd, tmp_path, folder)
        assert "mamba" in err.lower() and "llama" in err

    def test_a_missing_tokenizer(self, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        (folder / "tokenizer.json").unlink()
        assert "tokenizer" in self.try_checkpoint(capfd, tmp_path, folder)

    def test_a_missing_path(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        assert "no such file or folder" in self.try_checkpoint(capfd, tmp_path, tmp_path / "none.gguf", code=2)


def test_a_full_disk_is_one_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("converters.profiles.pi.PiProfile.write", full)
    err = refused(capfd, 1, CHECKPOINTS / "gqa-tied", "--profile", "pi", "-o", tmp_path / "bundle")
    assert "No space left on device" in err
    assert list(tmp_path.iterdir()) == []
