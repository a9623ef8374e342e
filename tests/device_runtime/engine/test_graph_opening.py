"""A graph opens while the rest of a start goes on, and what goes wrong meanwhile reaches the user all the same."""

from __future__ import annotations

import configparser
import ctypes
import gc
import os
import subprocess
import sys
import threading
import time
from array import array
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from device_runtime.bundle.folder import Bundle
from device_runtime.engine import opening
from device_runtime.engine.backends import begin_opening, compiled_model
from device_runtime.engine.backends.litert import CompiledModel, LiteRt
from device_runtime.engine.backends.native_log import captured_stderr
from device_runtime.engine.language_model import LanguageModel
from device_runtime.errors import BackendError, BundleError
from device_runtime.machine.kernels import LITERT_PACKAGE
from tests.support.update_bundles import variant
from toolkit.cli import main

ROOT = Path(__file__).parents[3]
# Opens a bundle as `stonechat run` does, and says what was loaded when, and by which thread.
CHILD = """
import builtins, sys, threading
from device_runtime.engine import opening
from device_runtime.engine.backends import compiled_model

begun = compiled_model.GraphOpening.__init__
def begin(self, *arguments):
    begun(self, *arguments)
    print("numpy" in sys.modules)
compiled_model.GraphOpening.__init__ = begin

own, by_graph = builtins.__import__, set()
def load(name, *arguments, **options):
    if threading.current_thread().name == "graph" and name not in sys.modules:
        by_graph.add(name)
    return own(name, *arguments, **options)
builtins.__import__ = load

with opening.open_language_model(sys.argv[1], threads=1) as model:
    "".join(model.generate("hello", max_new=2))
print("numpy" in sys.modules)
print(sorted(by_graph))
"""


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs take their time to open."""
    opened = CompiledModel.__init__

    def open_slowly(self: CompiledModel, *arguments: object) -> None:
        time.sleep(0.3)
        opened(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(CompiledModel, "__init__", open_slowly)


def graph_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "graph"]


def damaged(bundle: Path, folder: Path, name: str) -> Path:
    """A bundle whose manifest vouches for a file that is none."""
    return variant(bundle, folder, "2", {name: b"no such file" * 100})


def test_numpy_is_loaded_while_the_graph_opens_and_its_thread_imports_nothing(pi_bundle: Path) -> None:
    """A thread that imports could wait for the other one, which waits for it."""
    done = subprocess.run([sys.executable, "-c", CHILD, str(pi_bundle)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["False", "True", "[]"]


@pytest.mark.usefixtures("slow")
def test_a_graph_that_is_refused_is_said_where_it_is_asked_for(pi_bundle: Path, tmp_path: Path) -> None:
    bundle = damaged(pi_bundle, tmp_path / "bundle", "model.tflite")
    with pytest.raises(BackendError, match=r"LiteRT refused .*model\.tflite: LiteRtCreateModelFromFile failed"):
        LanguageModel.open(bundle)
    assert graph_threads() == []


@pytest.mark.usefixtures("slow")
def test_a_tokenizer_that_is_damaged_is_said_on_stderr_although_the_graph_still_opens(
    pi_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Descriptor 2 is LiteRT's as long as the graph opens."""
    monkeypatch.setattr(opening, "tokenizer_of", lambda bundle: read_badly(bundle))
    monkeypatch.setattr(opening, "TABLE", "model.tflite")  # so that the tokenizer is read after the graph has begun

    def read_badly(bundle: Bundle) -> None:
        assert graph_threads() == ["graph"]
        raise BundleError(f"{bundle.path} cannot be read as a tokenizer; convert the checkpoint again.")

    assert main(["run", str(pi_bundle), "hello"]) == BundleError.exit_code
    assert "cannot be read as a tokenizer" in capfd.readouterr().err
    assert graph_threads() == []


@pytest.mark.usefixtures("slow")
def test_ctrl_c_waits_for_the_graph(pi_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(opening, "open_backend", interrupt)
    with pytest.raises(KeyboardInterrupt):
        opening.open_language_model(pi_bundle)
    assert graph_threads() == []


def test_an_error_of_another_kind_is_not_lost_in_the_thread(pi_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(CompiledModel, "__init__", fail)
    with pytest.raises(MemoryError, match="no room"):
        LanguageModel.open(pi_bundle)


def test_a_graph_that_was_given_up_leaves_nothing(pi_bundle: Path) -> None:
    begun = begin_opening(Bundle.open(pi_bundle))
    assert begun is not None
    begun.abandon()
    assert graph_threads() == []
    with LanguageModel.open(pi_bundle) as model:
        assert "".join(model.generate("hello", max_new=2))


def test_a_model_that_nobody_has_closed_ends_without_a_word(pi_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = LanguageModel.open(pi_bundle)
    list(model.generate("hello", max_new=2))
    del model
    gc.collect()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ['a "b" \\ ü # = c', "two\nlines", b"\xff".decode(errors="surrogateescape")])
def test_packed_weights_are_kept_whatever_the_folder_is_called(
    pi_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("STONECHAT_CACHE", os.fspath(tmp_path / name))
    for _ in range(2):
        with LanguageModel.open(pi_bundle, threads=1) as model:
            assert "".join(model.generate("hello", max_new=2))
    folder = Bundle.open(pi_bundle).cache_path
    assert folder is not None
    assert len(list(folder.glob("*.weights"))) == ("\n" not in name)  # which LiteRT's options cannot say
    assert not list(folder.glob("*.part"))


def test_another_version_of_litert_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"LiteRT 2\.4\.1 is installed.*ai-edge-litert~=2\.3\.0"):
        LiteRt(tmp_path, "2.4.1")


def test_the_version_that_is_installed_is_the_one_that_is_known() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert f"{LITERT_PACKAGE};" in setup["options"]["install_requires"]


def test_a_library_that_is_missing_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"cannot be loaded \(.*install ai-edge-litert again"):
        LiteRt(tmp_path, "2.3.0")


class TestModel:
    """LiteRT's C interface."""

    @pytest.fixture
    def model(self, pi_bundle: Path) -> CompiledModel:
        spec = find_spec("ai_edge_litert")
        assert spec is not None and spec.origin is not None
        runtime = LiteRt(Path(spec.origin).parent, "2.3.0")
        return CompiledModel(runtime, pi_bundle / "model.tflite", 1, "")

    def test_a_buffer_gives_back_what_was_written_to_it(self, model: CompiledModel) -> None:
        signature = model.signatures["decoder"]
        model.resize(signature, "tokens", (3,))
        buffer = model.input_buffer(signature, "tokens")
        buffer.write(array("i", [5, 6, 7]))
        found = np.empty(3, np.int32)
        buffer.read(found)
        assert found.tolist() == [5, 6, 7]
        buffer.read(np.empty(0, np.int32))

    def test_a_buffer_takes_and_gives_no_more_than_it_has(self, model: CompiledModel) -> None:
        signature = model.signatures["decoder"]
        model.resize(signature, "tokens", (3,))
        buffer = model.input_buffer(signature, "tokens")
        for use in (buffer.write, buffer.read):
            with pytest.raises(ValueError, match="a buffer of 12 bytes cannot take or give 16"):
                use(np.zeros(4, np.int32))

    def test_a_buffer_outlives_the_variable_of_its_model(self, model: CompiledModel) -> None:
        buffer = model.input_buffer(model.signatures["decoder"], "slots")
        del model
        buffer.write(np.ones(1, np.float32))

    @pytest.mark.parametrize(
        "name", ["LiteRtCreateModelFromFile", "LiteRtCreateCompiledModel", "LiteRtRunCompiledModel"]
    )
    def test_other_threads_go_on_while_a_graph_opens_or_runs(self, model: CompiledModel, name: str) -> None:
        """ctypes.CDLL releases Python's lock for the call; its subclass PyDLL, for short ones, does not."""
        runtime = model._runtime
        assert type(runtime.library_of(name)) is ctypes.CDLL
        assert type(runtime.library_of("LiteRtLockTensorBuffer")) is ctypes.PyDLL

    def test_a_call_that_fails_says_which(self, model: CompiledModel) -> None:
        with pytest.raises(BackendError, match="LiteRtCompiledModelResizeInputTensor failed with status"):
            model.resize(model.signatures["decoder"], "tokens", (3, 4))


def test_two_threads_that_catch_native_messages_give_stderr_back(capfd: pytest.CaptureFixture[str]) -> None:
    def catch() -> None:
        for _ in range(200):
            with captured_stderr() as log:
                os.write(2, b"ERROR: mine\n")
                assert log() == "ERROR: mine"

    threads = [threading.Thread(target=catch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"shown\n")
    assert capfd.readouterr().err == "shown\n"


def test_a_graph_is_asked_for_once(pi_bundle: Path) -> None:
    begun = compiled_model.GraphOpening(Bundle.open(pi_bundle), 1)
    opened = begun.finish(lambda model: len(model.signatures))
    assert opened.prepared == 1
    with pytest.raises(BackendError, match="asked for twice"):
        begun.finish(lambda model: None)
    opened.weights.close()
