"""What commands print: text for people or one JSON object on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import json
import math
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from device_runtime.records.printable import shown
from toolkit.cli.owed import json_is_owed, json_is_printed
from toolkit.progress import say

__all__ = [
    "WIDTH", "paragraph", "print_error", "print_json", "report", "rows", "say", "say_unfamiliar", "show", "table",
]  # fmt: skip

WIDTH = 80  # columns that every listing fits, whatever the terminal: the same text in a log and in a test
_LEAST = 24  # columns of text beside a label
_NO_FIELDS: Mapping[str, Any] = {}


def show(args: argparse.Namespace, fields: Mapping[str, Any], text: Iterable[str]) -> int:
    """Print `fields` as JSON with --json, else the lines of `text`, which is not looked at before; returns 0."""
    if args.json:
        print_json(fields)
    else:
        for line in text:
            print(line)
    return 0


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on a line of its own. A figure that is no number is null, as Python would write `NaN`."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False)
    print(text)
    json_is_printed()


def print_error(code: str, message: str, fields: Mapping[str, Any] = _NO_FIELDS) -> None:
    """What went wrong, where JSON was asked for."""
    print_json({"error": {**fields, "code": code, "message": message}})


def report(code: str, message: str, fields: Mapping[str, Any] = _NO_FIELDS) -> None:
    """Say what went wrong, as JSON where an object is owed, else as text."""
    if json_is_owed():
        print_error(code, message, fields)
    else:
        print(f"stonechat: {message}", file=sys.stderr)


def say_unfamiliar(reasons: Iterable[str], text: str = "") -> None:
    """That an input is unlike those which the model was trained for, if it is.

    Args:
        text: which input, where there are several.
    """
    if why := "; ".join(reasons):
        say(f"unfamiliar: {shown(repr(text), 60)}: {why}" if text else f"unfamiliar: {why}")


def rows(pairs: Iterable[tuple[str, str]], width: int | None = None) -> Iterator[str]:
    """Lines `label  text`, the texts below each other.

    Args:
        width: of the labels; None takes the longest.
    """
    pairs = list(pairs)
    width = max((len(label) for label, _ in pairs), default=0) if width is None else width
    for label, text in pairs:
        yield from _wrapped(f"{label:<{width}}  ", text)


def paragraph(text: str) -> list[str]:
    """A long line as several."""
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def table(lines: Iterable[Sequence[str]], header: Sequence[str] = (), right: Iterable[int] = ()) -> Iterator[str]:
    """Columns as wide as their longest cell; the last one is wrapped.

    Args:
        right: numbers of the columns that are aligned to the right.
    """
    cells = [*([tuple(header)] if header else []), *map(tuple, lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)][:-1]
    right = set(right)
    for line in cells:
        pads = (f"{cell:>{w}}" if i in right else f"{cell:<{w}}" for i, (cell, w) in enumerate(zip(line, widths)))  # noqa: B905 (the last cell is open)
        yield from _wrapped("".join(f"{pad}  " for pad in pads), line[-1])


def _finite(value: Any) -> Any:
    """`value` with null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _wrapped(head: str, text: str) -> Iterator[str]:
    """`head` and the words of `text`, on as many lines as they need; a word is never cut."""
    room = max(WIDTH - len(head), _LEAST)
    parts = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    for i, part in enumerate(parts):
        yield ((head if i == 0 else " " * len(head)) + part).rstrip()
