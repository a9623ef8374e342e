"""One command: its line is parsed, its file imported and run, and what goes wrong is said in a line.

Data goes to stdout, progress and logs to stderr. Exit codes are listed in device_runtime/errors.py.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from device_runtime import __version__
from device_runtime.errors import StonechatError
from device_runtime.machine.machine import numpy_without_threads
from toolkit.cli import COMMANDS
from toolkit.cli.output import report
from toolkit.cli.parser import Parser

__all__ = ["parser", "run_command"]

_ANSWERING = ("run", "chat", "try", "embed", "classify", "translate", "serve", "bridge")


_NEXT_STEPS = {  # after what the system says of a path
    errno.ENOENT: "Check the path; the folder that a file goes into must be there.",
    errno.EEXIST: "Choose another name, or remove what is there.",
    errno.ENOTDIR: "Check the path: a part of it is a file, not a folder.",
    errno.EISDIR: "Name a file; this is a folder.",
    errno.EACCES: "Choose a place that this user may use, or change its permissions.",
}


def run_command(words: Sequence[str]) -> int:
    """Run one command; returns its exit code.

    Args:
        words: of its line, after `stonechat`.
    """
    args = argparse.Namespace()
    for stream in (sys.stdout, sys.stderr):  # a terminal that has no "…" shows "?" instead of a traceback
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
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
            next_step = _NEXT_STEPS.get(error.errno or 0) if error.filename else None
            said = f"{where}{error.strerror or error}"
            report(StonechatError.code, f"{said}. {next_step}" if next_step else said)
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
