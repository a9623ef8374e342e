"""The texts that a command is given: as arguments, as lines of a file, or on standard input."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from device_runtime.errors import ConfigurationError
from device_runtime.records.text_file import lines_in, read_text

__all__ = ["add_texts", "texts_of"]


def add_texts(parser: argparse.ArgumentParser) -> None:
    """TEXT … and --file"""
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="a text (repeatable); - reads one a line from stdin")
    parser.add_argument("--file", metavar="FILE", type=Path, help="texts, one a line")
    parser.add_argument("--truncate", action="store_true", help="cut off what is too long instead of refusing it")


def texts_of(args: argparse.Namespace) -> list[str]:
    """The texts, in order; empty lines are left out.

    Raises:
        ConfigurationError: there are none.
    """
    found: list[str] = []
    for text in args.texts:
        found += lines_in(sys.stdin.read()) if text == "-" else [text]
    if args.file is not None:
        found += lines_in(read_text(args.file))
    found = [text for text in found if text.strip()]
    if not found:
        raise ConfigurationError("There is no text; give one, or --file FILE, or - for standard input.")
    return found
