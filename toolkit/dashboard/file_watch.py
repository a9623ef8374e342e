"""Somebody may change the fleet file with an editor while the page shows it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from device_runtime.errors import ConfigurationError
from device_runtime.fleet.file import Fleet
from toolkit.dashboard.editor import FleetEditor

__all__ = ["FileWatch"]

LOOK_S = 1.0


class FileWatch:
    """Looks at one fleet file until it is closed."""

    def __init__(self, editor: FleetEditor, path: Path) -> None:
        """`path`: the editor's file."""
        self._editor, self._path = editor, path
        self._stop = threading.Event()

    def start(self, on_change: Callable[[dict[str, Any], Fleet | None], None]) -> None:
        """Call with `FleetEditor.links()` now, and with that and the fleet after each change of the file.

        Where the file has faults, there is no fleet, and `fault` in the links says why. Where they cannot be read at
        all, they are those of before. After the first, calls come from a thread of their own.

        Raises:
            ConfigurationError: the file cannot be read from the beginning.
        """
        state, links = self._state(), self._editor.links()
        on_change(links, None)

        def look() -> None:
            nonlocal state, links
            while not self._stop.wait(LOOK_S):
                if (now := self._state()) == state:
                    continue
                state, fleet, fault = now, None, {}
                try:
                    links = self._editor.links()
                    fleet = self._editor.fleet()
                except ConfigurationError as error:
                    fault = {"fault": str(error)}
                on_change({**links, **fault}, fleet)

        threading.Thread(target=look, name="stonechat-fleet-file", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._stop.set()

    def _state(self) -> tuple[int, ...]:
        """What is another after each change."""
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino
