"""Typed look-ups in a checkpoint's own configuration, whose values nobody has checked yet."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from device_runtime.errors import CheckpointError

__all__ = ["SAME_AS_PUBLISHED", "Fields", "read_json", "refuse_pointer"]

# Of a fault that does not come from a broken transfer: the next copy would have it as well.
SAME_AS_PUBLISHED = (
    "Compare its sha256 with the publisher's: if it is the same, the fault is in the file as it was published; "
    "use another export of the model. If not, fetch it again."
)
_LFS = b"version https://git-lfs.github.com/spec/"
_MOST = 1 << 40  # no count in a configuration is larger; a larger one is damage


class Fields:
    """A configuration: `config.json`, or a GGUF file's metadata. A key that is null counts as absent.

    Every look-up raises `CheckpointError` for a value of another kind, and for an absent key without `default`.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = {key: value for key, value in values.items() if value is not None}
        self.nulls = frozenset(key for key, value in values.items() if value is None)  # to say that something is off
        self.where = where  # file or folder, for messages

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __repr__(self) -> str:
        return f"Fields({self.where!r})"

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number from `least` up."""
        value = self._value(key, default, "a whole number")
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or not least <= value <= _MOST:
            raise self._wrong(key, value, f"a whole number from {least} to {_MOST}")
        return int(value)

    def number(self, key: str, default: float | None = None, *, least: float = 0.0) -> float:
        """A finite number above `least`."""
        value = self._value(key, default, "a number")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        if not (abs(value) < 1e30 and math.isfinite(value) and value > least):
            raise self._wrong(key, value, f"a finite number above {least:g}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._value(key, default, "true or false")
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default, "a string")
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def section(self, key: str) -> Fields:
        """A nested object; empty when the key is absent."""
        value = self.values.get(key, {})
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "an object")
        return Fields(value, f"{self.where}: {key}")

    def _value(self, key: str, default: Any, expected: str) -> Any:
        value = self.values.get(key, default)
        if value is None:
            raise CheckpointError(f"{self.where}: {key} is missing; expected {expected}. {SAME_AS_PUBLISHED}")
        return value

    def _wrong(self, key: str, value: object, expected: str) -> CheckpointError:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return CheckpointError(
            f"{self.where}: {key} is {shown}; expected {expected}. The configuration is damaged, or of a variant that "
            "is not supported; another copy of it will say the same."
        )


def refuse_pointer(path: Path) -> None:
    """Raise a `CheckpointError` for what git leaves in place of a large file that was not fetched."""
    try:
        with path.open("rb") as file:
            start = file.read(200)
    except OSError:
        return  # the reader of the file says why
    if start.startswith(_LFS):
        size = next((line.split()[1].decode() for line in start.splitlines() if line.startswith(b"size ")), "?")
        raise CheckpointError(
            f"{path}: a git-lfs pointer, expected the file of {size} bytes that it stands for. "
            "Run `git lfs install` and `git lfs pull` in the folder, or fetch the file from the model's page."
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: it cannot be read, is not JSON, or holds something else.
    """
    refuse_pointer(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}. Check the file's permissions.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}. {SAME_AS_PUBLISHED}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, expected an object. {SAME_AS_PUBLISHED}")
    return value
