"""Where this user's programs keep what is to outlast them."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["state_home"]


def state_home() -> Path:
    """Where the XDG base directory specification says, for all programs; ours is the folder `stonechat` in it.

    Raises:
        RuntimeError: this user has no home.
    """
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
