"""What every demo does alike: runs commands of this checkout, subscribes to a broker, ends with a line and a code."""

from __future__ import annotations

import os
import queue
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from device_runtime.errors import StonechatError
from device_runtime.mqtt.packets import Incoming
from toolkit.demo.processes import Processes

__all__ = ["STONECHAT", "exit_code_of", "next_message", "own_path"]

STONECHAT = (sys.executable, "-c", "import sys; from toolkit.cli import main; sys.exit(main())")


def own_path() -> dict[str, str]:
    """The environment in which a part finds the packages, also when stonechat runs from its source tree."""
    root = str(Path(__file__).parents[2])
    return {"PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])}


def next_message(processes: Processes, heard: queue.Queue[Incoming], for_s: float) -> Incoming | None:
    """The next message; None when there is none for a moment.

    Raises:
        PartFailedError: a part has ended.
    """
    processes.check()
    try:
        return heard.get(timeout=max(0.0, min(for_s, 0.2)))
    except queue.Empty:
        return None


def exit_code_of(demo: Callable[[], None]) -> int:
    """Run a demo to its end, or until it fails or somebody stops it; says which, and returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through the context managers
    try:
        demo()
    except KeyboardInterrupt:
        print("\nstopped.", file=sys.stderr)
        return 130
    except StonechatError as error:
        print(f"the demo failed: {error}", file=sys.stderr)
        return error.exit_code
    return 0
