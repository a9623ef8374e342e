"""Pieces of a prompt that know whether the names of control tokens in them count."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["PRIVATE", "Markup", "Segment"]

# Noncharacters, which "should never be interchanged" (Unicode, 23.7). No text has them; the engine uses them for names.
PRIVATE = re.compile("[\ufdd0-\ufdef]")


class Segment(NamedTuple):
    """A part of a prompt."""

    text: str
    markup: bool  # whether a control token's name in `text` is that token; False: it is text like any other


class Markup(str):
    """A whole prompt with control tokens spelled out in it: a template rendered by the caller."""

    __slots__ = ()
