"""Texts in files that people name, and their lines."""

from __future__ import annotations

import re
from pathlib import Path

from device_runtime.errors import ConfigurationError

__all__ = ["lines_in", "read_text"]

# As editors, `wc` and `mosquitto_sub` count them. `str.splitlines` also ends a line at form feeds, U+0085 and U+2028,
# which a sensor's text may have and a string of JSON, too.
_LINE_END = re.compile(r"\r\n|\n|\r")


def read_text(path: Path) -> str:
    """A UTF-8 text file, without the byte order mark that some editors begin it with.

    Raises:
        ConfigurationError: it is not there, no file, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}. Check the path.") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None


def lines_in(text: str) -> list[str]:
    """The lines of a text, without what ends them."""
    return _LINE_END.split(text)
