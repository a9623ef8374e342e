"""What somebody asks, told apart: a reading is a JSON object, and `{"text": "…"}`, the input of a task's example that
reads a text, is that text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["reading_in", "text_in"]


def reading_in(asked: str) -> Mapping[str, Any] | None:
    """The JSON object that is asked about; None where it is another text."""
    if not asked.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(asked)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def text_in(asked: str) -> str:
    """The text that is asked about: all of it, unless it is a JSON object that has `text` and nothing else."""
    found = reading_in(asked)
    text = found.get("text") if found is not None and len(found) == 1 else None
    return text if isinstance(text, str) else asked
