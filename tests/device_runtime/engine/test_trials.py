"""What could keep a library busy, or end its process, is tried in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converters.checkpoints import open_checkpoint
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.language_model import LanguageModel
from device_runtime.engine.schema import trial as module
from device_runtime.engine.schema.trial import is_simple, schema_trial
from device_runtime.engine.structured import SchemaCompiler, check_schema
from device_runtime.engine.text.tokenizer_trial import try_tokenizer
from device_runtime.engine.trial_process import TrialProcess
from device_runtime.errors import BundleError, CheckpointError, SchemaError
from toolkit.cli import main

CHECKPOINTS = Path(__file__).parents[2] / "data" / "checkpoints"
ENDLESS = {"type": "integer", "multipleOf": 10_000_019}  # as many states of a lexer


class TestSchemas:
    def test_one_that_takes_minutes_and_gigabytes_is_refused_in_words(self, pi_bundle: Path) -> None:
        pytest.importorskip("llguidance", reason="llguidance has packages for 64-bit machines only")
        compiler = SchemaCompiler(Bundle.open(pi_bundle))
        for _ in range(2):  # the second time from memory
            with pytest.raises(SchemaError, match=r"cannot be used: .*too much .*Where numbers have bounds or steps"):
                compiler.constraint(ENDLESS, 50)
        assert compiler._trial._child is None
        compiler.constraint(
            {"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": 5}, 50
        )  # goes on after that
        child = compiler._trial._child
        compiler.constraint({"type": "string", "pattern": "^[a-z]{3}$"}, 50)
        assert compiler._trial._child is child is not None  # kept for the next

    def test_an_ordinary_one_needs_no_process(self, pi_bundle: Path) -> None:
        pytest.importorskip("llguidance", reason="llguidance has packages for 64-bit machines only")
        compiler = SchemaCompiler(Bundle.open(pi_bundle))
        schema = {
            "type": "object",
            "properties": {
                "a": {"enum": ["x", "y"]},
                "b": {"type": "string", "maxLength": 120},
                "c": {"type": "number"},
            },
        }
        assert is_simple(schema)
        compiler.constraint(schema, 60)
        assert compiler._trial._child is None

    @pytest.mark.parametrize(
        "schema",
        [
            {"type": "integer", "multipleOf": 3},
            {"items": {"properties": {"a": {"maximum": 5}}}},
            {"type": "string", "pattern": "x"},
            {"type": "string", "minLength": 5000},
            {"anyOf": [{"const": i} for i in range(400)]},
            {"type": "string", "const": "x" * 5000},
        ],
    )
    def test_others_are_tried(self, schema: dict[str, Any]) -> None:
        assert not is_simple(schema)

    def test_a_fleet_file_is_checked_in_the_same_way(self) -> None:
        pytest.importorskip("llguidance", reason="llguidance has packages for 64-bit machines only")
        with pytest.raises(SchemaError, match="too much"):
            check_schema(ENDLESS)


class TestAProcess:
    def test_one_that_is_gone_is_started_again(self) -> None:
        pytest.importorskip("llguidance", reason="llguidance has packages for 64-bit machines only")
        process = schema_trial()
        assert process.run("%llguidance {}\nstart: /a/") == ""
        child = process._child
        assert child is not None
        child.terminate()
        child.wait()
        child.returncode = 0  # as after its idle time
        assert process.run("%llguidance {}\nstart: /b/") == ""
        process.close()

    def test_one_that_cannot_start_says_so(self) -> None:
        assert "gave up" in TrialProcess("device_runtime.no_such_module").run("x")

    def test_one_that_is_killed_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        process = TrialProcess("device_runtime.engine.schema.trial")
        start = process._start

        def started() -> Any:
            child = start()
            os.kill(child.pid, signal.SIGKILL)
            return child

        monkeypatch.setattr(process, "_start", started)
        assert "too much computing" in process.run("x")
        assert module._CPU_S <= 10


def damaged(change: Callable[[dict[str, Any]], object]) -> str:
    document = json.loads((CHECKPOINTS / "gqa-tied" / "tokenizer.json").read_text())
    change(document)
    return json.dumps(document)


# The library panics over the first (no Exception in Python), and takes memory without end over the second.
FAULTS = [
    damaged(lambda d: d.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
    '{"version":',
]


@pytest.mark.parametrize("content", FAULTS)
class TestTokenizers:
    def test_a_folder_that_has_one_is_refused(
        self, content: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        folder = Path(shutil.copytree(CHECKPOINTS / "gqa-tied", tmp_path / "folder"))
        (folder / "tokenizer.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: damaged"):
            open_checkpoint(folder)
        assert main(["convert", str(folder), "--profile", "pi", "-o", str(tmp_path / "bundle")]) == 1
        assert "tokenizer.json: damaged" in capfd.readouterr().err

    def test_a_bundle_that_has_one_is_refused(
        self, content: str, pi_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        import hashlib

        bundle = Path(shutil.copytree(pi_bundle, tmp_path / "bundle"))
        (bundle / "tokenizer.json").write_text(content)
        manifest = json.loads((bundle / "manifest.json").read_text())
        digest = hashlib.sha256(content.encode()).hexdigest()
        manifest["files"]["tokenizer.json"] = {"sha256": digest, "size_bytes": len(content.encode())}
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        refused = pytest.raises(BundleError, match=r"tokenizer\.json cannot be used as a tokenizer")
        with LanguageModel.open(bundle) as model, refused:  # a table serves without it, but for the grammar library
            model.check_schema({"type": "string"})
        del manifest["files"]["tokenizer.table"]
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match=r"tokenizer\.json cannot be used as a tokenizer"):
            LanguageModel.open(bundle)
        assert main(["run", str(bundle), "x"]) == 1
        assert "cannot be used as a tokenizer" in capfd.readouterr().err


def test_a_good_tokenizer_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from device_runtime.engine.text import tokenizer_trial

    path, record = CHECKPOINTS / "gqa-tied" / "tokenizer.json", tmp_path / "record"
    assert try_tokenizer(path, record) == ""
    monkeypatch.setattr(tokenizer_trial, "_tried", lambda digest, path: "tried again")
    assert try_tokenizer(path, record) == ""
    assert try_tokenizer(CHECKPOINTS / "yarn-biases" / "tokenizer.json", record) == "tried again"
