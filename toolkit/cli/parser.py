"""argparse, but a wrong command line gets all its faults at once, with the nearest spelling of each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from device_runtime.errors import ConfigurationError
from toolkit.cli.output import print_error
from toolkit.cli.owed import json_is_owed

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """The parser of a command; its subcommands get the same class."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self._words: list[str] = []  # what it was given

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse; what nobody knows is an error of the command that it was given to, which lists its flags."""
        self._words = list(sys.argv[1:] if args is None else args)
        known, extra = super().parse_known_args(args, namespace)
        if extra:
            self.error(f"unrecognized arguments: {' '.join(extra)}")
        return known, extra

    def error(self, message: str) -> NoReturn:
        """The usage, a line for each fault, exit code 2; with --json the faults as an object, too."""
        unknown = list(self._unknown_flags())
        required = {"/".join(a.option_strings) for a in self._actions if a.option_strings and a.required}
        given = {word.split("=", 1)[0] for word in self._words}
        missing = sorted(flag for flag in required if not given & set(flag.split("/")))
        faults = [message]
        if message.startswith("unrecognized arguments: ") and unknown:
            faults = []
        faults += [f"unrecognized arguments: {flag}{hint}" for flag, hint in unknown]
        if missing and not message.startswith("the following arguments are required: "):
            faults.append(f"the following arguments are required: {', '.join(missing)}")
        if json_is_owed():
            said = "; ".join(fault.rstrip(".") for fault in faults)
            end = "" if said.endswith("?") else "."
            print_error(ConfigurationError.code, f"{said}{end} See `{self.prog} --help`.")
        self.print_usage(sys.stderr)
        self.exit(2, "".join(f"{self.prog}: error: {fault}\n" for fault in faults))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = _nearest(str(value), map(str, action.choices or ()))
            raise argparse.ArgumentError(action, f"{error.message}{hint}") from None

    def _unknown_flags(self) -> Iterator[tuple[str, str]]:
        """Words that look like flags and are none, with their nearest spelling."""
        flags = self._option_string_actions
        for word in self._words:
            if word == "--" or (self._subparsers is not None and not word.startswith("-")):
                return  # what follows is no flag, or another parser's
            name = word.split("=", 1)[0]
            if word.startswith("--") and name not in flags:
                yield word, _nearest(name, flags)


def _nearest(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches  # which a right command line does without

    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
