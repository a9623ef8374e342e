"""Whether a command still owes its reader a JSON object: with --json it prints one, also when it is refused or stopped.

Imports nothing, so that Ctrl-C finds it whatever else is still being imported.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["expect_json", "json_is_owed", "json_is_printed"]

_owed = False


def expect_json(words: Sequence[str]) -> None:
    """A command begins; `words` are its line, which may be a wrong one."""
    global _owed
    _owed = "--json" in (words[: words.index("--")] if "--" in words else words)


def json_is_owed() -> bool:
    """Whether what goes wrong now is to be said in JSON."""
    return _owed


def json_is_printed() -> None:
    """The one object is on stdout: what goes wrong after it is said in text."""
    global _owed
    _owed = False
