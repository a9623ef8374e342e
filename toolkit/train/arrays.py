"""Arrays on the disk, whole or not at all: SIGKILL may come at any moment of a training."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["write_arrays"]


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an .npz file in the place of the one before."""
    held = io.BytesIO()
    np.savez(held, **arrays)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as stream:
        stream.write(held.getvalue())
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
