"""What native code writes to file descriptor 2 stays away from the terminal; real errors do not get lost."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from device_runtime.engine.backends.native_log import captured_stderr, own_stderr
from tests.support.update_bundles import variant


def native(text: str) -> None:
    """Write past Python, as a C library does."""
    os.write(2, text.encode())


def test_lines_with_the_word_are_kept(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_stderr() as log:
        native("INFO: chatter\nERROR: no such op\n")
        assert log() == "ERROR: no such op"
    assert capfd.readouterr().err == ""


def test_the_empty_word_keeps_everything(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_stderr(keep="") as log:
        native("one\ntwo\n")
        assert log() == "one\ntwo"


def test_afterwards_stderr_is_what_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_stderr():
        native("hidden\n")
    native("shown\n")
    print("shown too", file=sys.stderr, flush=True)
    assert capfd.readouterr().err == "shown\nshown too\n"


def test_a_stream_of_ones_own_is_heard_all_the_while(capfd: pytest.CaptureFixture[str]) -> None:
    stream = own_stderr()
    assert stream is not None
    with stream, captured_stderr():
        native("hidden\n")
        print("from another thread", file=stream)
    assert capfd.readouterr().err == "from another thread\n"


def test_chatter_about_errors_is_chatter() -> None:
    with captured_stderr() as log:
        native("WARNING: no plugin: ERROR: none\nERROR: no such op\nINFO: ERROR\n")
        assert log() == "ERROR: no such op"


@pytest.mark.parametrize(
    "harm",
    [
        lambda graph: graph.replace(b"decoder", b"decuder"),
        lambda graph: graph[: len(graph) // 2],
        lambda graph: bytes(len(graph)),
    ],
    ids=["other names", "half of it", "zeros"],
)
def test_a_graph_that_is_refused_leaves_only_errors_on_the_terminal(
    harm: Callable[[bytes], bytes], pi_bundle: Path, tmp_path: Path
) -> None:
    """LiteRT has been started by then, and is taken down again."""
    graph = harm((pi_bundle / "model.tflite").read_bytes())
    bundle = variant(pi_bundle, tmp_path / "bundle", "1", {"model.tflite": graph})
    done = subprocess.run([sys.executable, "-m", "toolkit", "run", bundle, "hello"], capture_output=True, text=True)
    assert done.returncode == 1
    first, *others = done.stderr.splitlines()
    assert first.startswith("stonechat: LiteRT refused ")
    assert [line for line in others if line.startswith(("INFO", "WARNING"))] == []


def test_a_prefix_of_another_type_leaves_only_its_error_on_the_terminal(pi_bundle: Path, tmp_path: Path) -> None:
    file = io.BytesIO()
    with np.load(pi_bundle / "prefix.npz") as arrays:
        np.savez(file, **{name: array.astype(np.float32) for name, array in arrays.items()})
    bundle = variant(pi_bundle, tmp_path / "bundle", "1", {"prefix.npz": file.getvalue()})
    done = subprocess.run([sys.executable, "-m", "toolkit", "run", bundle, "hello"], capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "prefix.npz: k is float32 (" in line and "; the manifest says int8 (" in line


def test_an_exception_passes_through_and_stderr_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), captured_stderr():
        native("hidden\n")
        raise ZeroDivisionError
    native("shown\n")
    assert capfd.readouterr().err == "shown\n"


def test_no_descriptor_is_leaked() -> None:
    """In a process of its own: here, threads of other tests may open and close some meanwhile."""
    code = (
        "import os\n"
        "from device_runtime.engine.backends.native_log import captured_stderr\n"
        "before = os.listdir('/proc/self/fd')\n"
        "for _ in range(5):\n"
        "    with captured_stderr(): os.write(2, b'x')\n"
        "print(os.listdir('/proc/self/fd') == before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_python_lines_written_before_keep_their_place(capfd: pytest.CaptureFixture[str]) -> None:
    print("before", file=sys.stderr)
    with captured_stderr():
        native("hidden\n")
    assert capfd.readouterr().err == "before\n"


def test_bytes_that_are_not_utf_8_are_no_obstacle() -> None:
    with captured_stderr() as log:
        os.write(2, b"ERROR: \xff\n")
        assert log() == "ERROR: \ufffd"


def test_an_environment_variable_shows_everything(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STONECHAT_NATIVE_LOG", "1")
    with captured_stderr() as log:
        native("INFO: chatter\n")
        assert log() == ""
    assert capfd.readouterr().err == "INFO: chatter\n"


def test_what_is_written_at_exit_is_dropped_and_the_exit_code_stays() -> None:
    code = (
        "import atexit, os, sys\n"
        "atexit.register(lambda: os.write(2, b'torn down\\n'))\n"  # runs last, as a library's destructor
        "from device_runtime.engine.backends.native_log import silence_at_exit\n"
        "silence_at_exit(); silence_at_exit()\n"
        "print('before', file=sys.stderr)\n"
        "sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stderr, done.returncode) == ("before\n", 7)


def test_a_program_whose_stderr_is_closed_runs_all_the_same() -> None:
    code = (
        "from device_runtime.engine.backends.native_log import captured_stderr\n"
        "with captured_stderr(): pass\nprint('ok')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.close(2)
    )
    assert done.stdout == "ok\n"
