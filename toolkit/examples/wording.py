"""Wording for the programs that make a task's examples: alternatives within a line, and slips of the finger.

`(turn|switch) on the light(| please)` is one of four sentences. Brackets without `|` are the sentence's own, and `?`
after a group lets it be left out.
"""

from __future__ import annotations

import random
import re

__all__ = ["chosen", "misspelt"]


def chosen(rng: random.Random, text: str) -> str:
    """`text` with one of each group of alternatives; runs of spaces become one."""
    parts, place = [], 0
    while (start := text.find("(", place)) >= 0 and (end := _closing(text, start)) is not None:
        inner = _alternatives(text[start + 1 : end])
        parts.append(text[place:start])
        place = end + 1
        if len(inner) == 1:
            parts.append(f"({chosen(rng, inner[0])})")
            continue
        if text[place : place + 1] == "?":
            inner, place = [*inner, ""], place + 1
        parts.append(chosen(rng, rng.choice(inner)))
    return re.sub(" {2,}", " ", "".join([*parts, text[place:]]))


def misspelt(rng: random.Random, text: str) -> str:
    """A letter left out, doubled, exchanged with the next, or wrong; never the first or the last, nor a digit."""
    places = [i for i, c in enumerate(text) if c.isalpha() and 0 < i < len(text) - 1]
    if len(places) < 6:
        return text
    i = rng.choice(places)
    slip = rng.randrange(4)
    if slip == 0:
        return text[:i] + text[i + 1 :]
    if slip == 1:
        return text[:i] + text[i] + text[i:]
    if slip == 2 and text[i + 1].isalpha():
        return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    return text[:i] + rng.choice("abcdefghijklmnopqrstuvwxyz") + text[i + 1 :]


def _closing(text: str, start: int) -> int | None:
    """The bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return None


def _alternatives(text: str) -> list[str]:
    """What is between the `|` that are in no inner bracket."""
    found, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "|" and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return found
