"""Text in log lines, errors and reports: what comes from outside in one line, short, and without what should stay
secret; and numbers with their nouns. And what no UTF-8 can hold."""

from __future__ import annotations

import re

__all__ = ["counted", "half_character", "one_line", "shown", "without_secrets"]

_URL = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>]+")
_HALF = re.compile("[\ud800-\udfff]")


def counted(number: int | str, noun: str) -> str:
    """`number` of what `noun` names, as one says it: 1 case, 2 cases.

    Args:
        noun: for one of them; its plural ends with an s more.
    """
    return f"{number} {noun}" if str(number) == "1" else f"{number} {noun}s"


def half_character(text: str) -> str:
    """The first half of a surrogate pair in `text`, which JSON and Python can spell and UTF-8 cannot; else nothing."""
    found = _HALF.search(text)
    return found[0] if found else ""


def one_line(text: object) -> str:
    """`text` with its control characters written out, so that it neither begins a line nor moves a cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def shown(text: object, limit: int) -> str:
    """`text` in one line, cut to so many characters."""
    cut = str(text)
    return one_line(cut[:limit]) + ("…" if len(cut) > limit else "")


def without_secrets(text: str) -> str:
    """`text` with the passwords of the URLs in it replaced: user names and passwords, and what follows a `?`."""
    return _URL.sub(lambda match: _masked(match[0]), text)


def _masked(url: str) -> str:
    scheme, _, rest = url.partition("://")
    at = rest.rfind("@")  # a password may hold "/"
    host = rest if at < 0 else f"***@{rest[at + 1 :]}"
    path, mark, _ = host.partition("?")
    return f"{scheme}://{path}{mark}***" if mark else f"{scheme}://{path}"
