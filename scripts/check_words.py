#!/usr/bin/env python3
"""Finds words of a private dialect in texts, docstrings and comments. `make lint` runs it.

Each of these words is good English somewhere. Together they were a dialect that made people read sentences twice, so
that the list asks for the plain word. Where the word is right, add its phrase to `FINE`.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

WORDS = {  # pattern -> what to write
    r"anew": "again; or say what is new",
    r"who(m)?ever": "the client, the user, the operator; or anyone who",
    r"tell(s|ing)?|told": "report, show, say, know, recognize, distinguish",
    r"hear(s|d|ing)?": "receive, get, learn",
    r"stand(s|ing)? (?!alone|for)|stood": "is, are, has",
    r"behind": "after",
    r"evening": "smoothing strength, alpha",
    r"turned (rows|weights|by)": "rotated",
    r"on (the )?air": "online, connected",
    r"(be)?comes? of (it|us|them)": "what happens, the result",
}
FINE = (  # phrases that are what they say
    "tell the gardener", "tell apart", "tells apart", "told apart", "nothing to tell", "over the air",
    "does not tell you", "behind a proxy", "behind nat", "hears no", "tell a", "go-between", "standard", "understand",
)  # fmt: skip
LATER: tuple[str, ...] = ()
SKIP = ("tests/", "LICENSE", "scripts/check_words.py", "converters/texts/")

_WORD = re.compile(r"\b(?:" + "|".join(f"(?:{word})" for word in WORDS) + r")\b", re.IGNORECASE)


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of what people read in a file."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(content.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT) or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            yield from enumerate(token.string.splitlines(), token.start[0])


def faults(path: Path) -> Iterator[str]:
    """What to rewrite in a file."""
    for number, text in texts(path):
        plain = text.lower()
        for phrase in FINE:
            plain = plain.replace(phrase, " " * len(phrase))
        for match in _WORD.finditer(plain):
            word = match[0]
            advice = next(better for pattern, better in WORDS.items() if re.fullmatch(pattern, word, re.IGNORECASE))
            where = f"{path.relative_to(ROOT)}:{number}"
            yield f"{where}: {word.strip()!r}: write {advice}: {text.strip()[:100]}"


def checked_files() -> list[Path]:
    """Python and C sources, pages and examples."""
    listed = subprocess.run(
        ["git", "ls-files", "-c", "-o", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    names = [name for name in listed.stdout.splitlines() if name.endswith((".py", ".md", ".c", ".h", ".sh"))]
    return [ROOT / name for name in names if not name.startswith((*SKIP, *LATER)) and (ROOT / name).is_file()]


def main() -> int:
    """Print every fault; 1 if there is one."""
    found = [fault for path in checked_files() for fault in faults(path)]
    print(*found, sep="\n" if found else "", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
