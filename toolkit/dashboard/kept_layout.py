"""The text of a YAML file with one change in it: comments, quotes and the layout of everything else stay."""

from __future__ import annotations

import difflib
import io
import re
from functools import lru_cache

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

__all__ = ["between_entries", "dumped", "only_what_changed", "parser", "without_entry"]

_LIST = re.compile(
    r"^( *)[\w-]+:[ \t]*(?:#[^\n]*)?\n(?:[ \t]*(?:#[^\n]*)?\n)*( *)- ", re.MULTILINE
)  # a list below its key


def parser(text: str) -> YAML:
    """A reader and writer that lays lists out as the file does."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1 << 20
    if (found := _LIST.search(text)) is not None:
        offset = len(found[2]) - len(found[1])
        yaml.indent(mapping=2, sequence=offset + 2, offset=offset)
    return yaml


def dumped(yaml: YAML, data: CommentedMap) -> str:
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()


def without_entry(text: str, first: int, indent: int) -> str:
    """A file without one entry of a list in block style: up to the next line that is not further in, less the comments
    before that."""
    lines = text.splitlines(keepends=True)
    end = first + 1
    while end < len(lines) and (not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > indent):
        end += 1
    while end > first + 1 and not lines[end - 1].strip():  # blank lines belong to what follows
        end -= 1
    return "".join(lines[:first] + lines[end:])


def between_entries(text: str, first: int, indent: int) -> tuple[int, int]:
    """The comments and blank lines after one entry of a list in block style: from which line to which. They speak of
    what follows, but the writer would have them at the entry's last field.

    Args:
        first: the entry's first line; 0 is the file's.
        indent: blanks before its dash.
    """
    lines = text.splitlines(keepends=True)
    end = first + 1
    while end < len(lines) and (_says_nothing(lines[end]) or _indent(lines[end]) > indent):
        end += 1
    begin = end
    while begin > first + 1 and _says_nothing(lines[begin - 1]) and _indent(lines[begin - 1]) <= indent + 2:
        begin -= 1  # further in, it may be a text of several lines
    return begin, end


def _says_nothing(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip()) if line.strip() else 0


@lru_cache(maxsize=2)  # a page asks for each key that is typed
def _rewritten(text: str) -> str:
    """A file as the writer lays it out."""
    yaml, out = parser(text), io.StringIO()
    yaml.dump(yaml.load(text), out)
    return out.getvalue()


def only_what_changed(before: str, after: str) -> str:
    """`after`, but lines that only the writer has laid out in another way stay as they were.

    The writer folds, quotes and aligns a little differently from a person. What it makes of the file without a
    change is compared with what it makes of it with one; only that difference goes into the file.
    """
    written = _rewritten(before)
    if written == before:
        return after
    lines, theirs, wanted = (text.splitlines(keepends=True) for text in (before, written, after))
    place: dict[int, int] = {}  # of a line of theirs -> of the file
    for a, b, size in difflib.SequenceMatcher(None, theirs, lines, autojunk=False).get_matching_blocks():
        place |= {a + n: b + n for n in range(size)}
    result: list[str] = []
    done = 0
    for tag, a, b, c, d in difflib.SequenceMatcher(None, theirs, wanted, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        begin = place.get(a) if a < len(theirs) else len(lines)
        end = place.get(b) if b < len(theirs) else len(lines)
        if begin is None or end is None or begin < done:
            return after  # the change touches what the writer lays out in its own way
        result += lines[done:begin] + wanted[c:d]
        done = end
    return "".join(result + lines[done:])
