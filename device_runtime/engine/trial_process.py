"""A process of its own for work that a library may not survive: it has a limit of time and one of memory.

The grammar library computes for minutes over some schemas, and the tokenizer library ends the process over some files.
So such input is first tried in a child, which says that all is well, says what is wrong, or is gone.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

__all__ = ["TrialProcess", "serve_trials"]

_IDLE_S = 60  # after which a child that nobody needs ends
_WALL_S = 120  # for one trial on a busy machine; the limit proper is one of CPU time


class TrialProcess:
    """Runs `python -m MODULE ARGUMENTS`, which calls `serve_trials`; kept for the next trial, started again if gone."""

    def __init__(self, module: str, arguments: Sequence[str] = ()) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def run(self, task: str) -> str:
        """Try `task`; returns what is wrong with it, and nothing if all is well."""
        with self._lock:
            for _ in range(2):  # a child that was idle may have ended
                fresh = self._child is None
                child = self._child = self._child or self._start()
                answer = self._ask(child, json.dumps(task).encode() + b"\n")
                if answer:
                    return str(json.loads(answer))
                self._end(child)
                if fresh or child.returncode != 0:
                    break
            return _cause(child.returncode)

    def close(self) -> None:
        """End the child."""
        with self._lock:
            if self._child is not None:
                self._end(self._child)

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        # Threads of numpy's would only take memory from the limit.
        env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, bufsize=0
        )

    @staticmethod
    def _ask(child: subprocess.Popen[bytes], line: bytes) -> bytes:
        assert child.stdin is not None and child.stdout is not None
        answer = b""
        try:
            child.stdin.write(line)
            with selectors.DefaultSelector() as selector:
                selector.register(child.stdout, selectors.EVENT_READ)
                while not answer.endswith(b"\n"):
                    if not selector.select(_WALL_S):
                        child.kill()
                        return b""
                    part = os.read(child.stdout.fileno(), 65536)
                    if not part:
                        return b""
                    answer += part
        except OSError:
            return b""
        return answer

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        self._child = None
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        with suppress(subprocess.TimeoutExpired):
            child.wait(5)
        if child.returncode is None:
            child.kill()
            child.wait()


def _cause(code: int | None) -> str:
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "it takes too much computing"
    if code == -signal.SIGABRT or code == 1:
        return "the library gave up over it, or it takes too much memory"
    return f"the process that tried it ended with {code}"


def serve_trials(trial: Callable[[str], str], *, cpu_s: int, memory_mib: int) -> None:
    """In the child: answer each task on stdin with what `trial` returns.

    Args:
        cpu_s: for one task.
        memory_mib: that the process may take beyond what it has now.
    """
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    used = _data_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (used + (memory_mib << 20),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        while selector.select(_IDLE_S):
            part = os.read(0, 65536)
            if not part:
                return
            pending += part
            while b"\n" in pending:
                line, _, pending = pending.partition(b"\n")
                spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
                _, hard = resource.getrlimit(resource.RLIMIT_CPU)
                resource.setrlimit(resource.RLIMIT_CPU, (int(spent) + cpu_s, hard))
                os.write(out, json.dumps(_tried(trial, json.loads(line))).encode() + b"\n")


def _tried(trial: Callable[[str], str], task: Any) -> str:
    try:
        return trial(task)
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return f"{type(error).__name__}: {error}"[:300]


def _data_bytes() -> int:
    """What counts against RLIMIT_DATA now (proc(5))."""
    with open("/proc/self/status") as file:
        return next((int(line.split()[1]) << 10 for line in file if line.startswith("VmData:")), 0)
