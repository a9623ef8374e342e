"""One command: its line is parsed, its file imported and run, and what goes wrong is said in a line.

Data goes to stdout, progress and logs to stderr. Exit codes are listed in device_runtime/errors.py.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from device_runtime import __version__
from device_runtime.errors import StonechatError
from device_runtime.machine.machine import numpy_without_threads
from device_runtime.machine.path_errors import is_full, next_step
from toolkit.cli import COMMANDS
from toolkit.cli.output import report
from toolkit.cli.parser import Parser

__all__ = ["parser", "run_command"]

_ANSWERING = ("run", "chat", "try", "embed", "classify", "translate", "serve", "bridge")


def run_command(words: Sequence[str]) -> int:
    """Run one command; returns its exit code.

    Args:
        words: of its line, after `stonechat`.
    """
    args = argparse.Namespace()
    for stream in (sys.stdout, sys.stderr):  # a terminal that has no "…" shows "?" instead of a traceback
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):  # as bytes in an argument: what is no text is refused where it is used
        sys.stdin.reconfigure(errors="surrogateescape")
    try:
        if words and words[0] in _ANSWERING:
            numpy_without_threads()
        parser(words[0] if words else "").parse_args(words, args)
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except StonechatError as error:
        report(error.code, str(error), error.fields)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        _drop_stdout()
        return 0
    except OSError as error:  # a full disk, a folder without permission: of the user's machine, not of ours
        where = f"{error.filename}: " if error.filename else ""
        try:
            advice = next_step(error) if error.filename or is_full(error) else None
            said = f"{where}{error.strerror or error}"
            report(StonechatError.code, f"{said}. {advice}" if advice else said)
            sys.stdout.flush()
        except OSError:  # it is stdout that is full, and Python would fail once more at exit
            _drop_stdout()
        return 1


def parser(first: str = "") -> argparse.ArgumentParser:
    """For a command line that begins with `first`: of the others a command needs to know nothing."""
    whole = Parser(prog="stonechat", description="Small language models on small boards, linked to sensors.")
    whole.add_argument("--version", action="version", version=f"stonechat {__version__}")
    subparsers = whole.add_subparsers(metavar="COMMAND", required=True)
    for name in (first,) if first in COMMANDS else COMMANDS:
        module = import_module(f"toolkit.cli.{name}")
        sub = subparsers.add_parser(name, help=module.HELP, description=_sentence(module.HELP))
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return whole


def _drop_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
