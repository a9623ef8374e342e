"""The text of a YAML file with one change in it: comments, quotes and the layout of everything else stay."""

from __future__ import annotations

import difflib
import io
import re
from functools import lru_cache

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.tokens import ScalarToken

__all__ = ["dumped", "only_what_changed", "parser", "with_remarks", "without_entry", "without_remarks"]

_LIST = re.compile(
    r"^( *)[\w-]+:[ \t]*(?:#[^\n]*)?\n(?:[ \t]*(?:#[^\n]*)?\n)*( *)- ", re.MULTILINE
)  # a list below its key


def parser(text: str) -> YAML:
    """A reader and writer that lays lists out as the file does."""
    made = YAML()
    made.preserve_quotes = True
    made.width = 1 << 20
    if (found := _LIST.search(text)) is not None:
        offset = len(found[2]) - len(found[1])
        made.indent(mapping=2, sequence=offset + 2, offset=offset)
    return made


def dumped(writer: YAML, data: CommentedMap) -> str:
    """The text of what a reader has read."""
    out = io.StringIO()
    writer.dump(data, out)
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


def without_remarks(text: str) -> tuple[str, list[tuple[int, str]]]:
    """A file without its lines of comments and blank lines, and these: before which of the remaining lines they were.

    They speak of what follows, but the writer would have them at the field before: with it they go, and what is added
    after it comes under them.
    """
    inside: set[int] = set()  # lines of texts of several lines
    for token in YAML(typ="safe", pure=True).scan(text):
        if isinstance(token, ScalarToken):
            inside |= set(range(token.start_mark.line + 1, token.end_mark.line + (token.end_mark.column > 0)))
    kept: list[str] = []
    remarks: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(keepends=True)):
        if number in inside or (line.strip() and not line.lstrip().startswith("#")):
            kept.append(line)
        else:
            remarks.append((len(kept), line))
    return "".join(kept), remarks


def with_remarks(before: str, after: str, remarks: list[tuple[int, str]]) -> str:
    """`after` with the lines that `without_remarks` has taken out of what became `before`: each before the line that it
    was before, or what is there now."""
    theirs, ours = before.splitlines(keepends=True), after.splitlines(keepends=True)
    place = {len(theirs): len(ours)}
    for _, a, b, c, d in difflib.SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
        place |= {a + n: c + min(n, d - c) for n in range(b - a)}
    found: dict[int, str] = {}
    for number, line in remarks:
        found[place[number]] = found.get(place[number], "") + line
    return "".join(found.get(n, "") + line for n, line in enumerate([*ours, ""]))


@lru_cache(maxsize=2)  # a page asks for each key that is typed
def _rewritten(text: str) -> str:
    """A file as the writer lays it out."""
    writer = parser(text)
    return dumped(writer, writer.load(text))


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
