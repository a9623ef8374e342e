"""Flags that several commands share, and what their values mean."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.errors import ConfigurationError, MissingExtraError
from device_runtime.records.text_file import lines_in, read_text

if TYPE_CHECKING:
    from device_runtime.engine.sampler import Sampling

__all__ = [
    "LONGEST_S",
    "add_json",
    "add_runtime",
    "add_sampling",
    "amount",
    "percent",
    "positive_number",
    "read_schema",
    "read_schemas",
    "require_extra",
    "sampling",
    "seconds",
    "security_counter",
    "whole_number",
]


LONGEST_S = 86_400  # the longest that a command may wait; that of `RemoteModel`, which takes longer to import


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json"""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def add_runtime(parser: argparse.ArgumentParser) -> None:
    """--backend and --threads"""
    parser.add_argument(
        "--backend", metavar="NAME", help="compiled, litert, tflite-runtime, native, tflm (default: by profile)"
    )
    parser.add_argument(
        "--threads", metavar="N", type=whole_number(1, 256), help="CPU threads (default: one a core, at most 4)"
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """--max-new, --temperature and so on"""
    parser.add_argument(
        "--max-new", metavar="N", type=whole_number(1), help="at most N tokens (default: until it stops)"
    )
    parser.add_argument(
        "--temperature", metavar="T", type=float, default=0.0, help="0 is greedy (default), above draws"
    )
    parser.add_argument("--top-k", metavar="K", type=whole_number(0), default=0, help="draw from the K likeliest")
    parser.add_argument("--top-p", metavar="P", type=float, default=1.0, help="draw from the likeliest up to this sum")
    parser.add_argument("--seed", metavar="N", type=whole_number(0), help="the same seed draws the same answer")
    parser.add_argument("--stop", metavar="TEXT", action="append", default=[], help="end before this text (repeatable)")


def sampling(args: argparse.Namespace) -> Sampling:
    """What `add_sampling` asked for."""
    from device_runtime.engine.sampler import Sampling

    return Sampling(args.temperature, args.top_k, args.top_p, args.seed)


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer of at least `least`, and at most `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"{text!r} is more than {most}")
        return value

    return parse


def security_counter(text: str) -> int:
    """An argparse type: a security counter, which has four bytes in an image for a microcontroller."""
    return whole_number(0, 2**32 - 1)(text)


def percent(text: str) -> float:
    """An argparse type: a share of at least 0 %."""
    return _number(text, lambda value: 0 <= value < float("inf"), "a number of percent, at least 0")


def share(text: str) -> float:
    """An argparse type: a number above 0, at most 1."""
    return _number(text, lambda value: 0 < value <= 1, "a number above 0, at most 1")


def amount(text: str) -> float:
    """An argparse type: a number of at least 0."""
    return _number(text, lambda value: 0 <= value < 1e12, "a number, at least 0")


def positive_number(text: str) -> float:
    """An argparse type: a number above 0."""
    return _number(text, lambda value: 0 < value < 1e12, "a number above 0")


def seconds(text: str) -> float:
    """An argparse type: a time that something may wait, above 0, at most a day: the system's clocks count no longer
    than some years, and MQTT's message expiry 136.
    """
    return _number(text, lambda value: 0 < value <= LONGEST_S, f"a number of seconds above 0, at most {LONGEST_S}")


def _number(text: str, good: Callable[[float], bool], expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not good(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return value


def require_extra(extra: str, error: ImportError) -> MissingExtraError:
    """What to say when a package of an extra is missing."""
    return MissingExtraError.of("This command", error.name, extra)


def read_schema(path: Path) -> dict[str, Any]:
    """A JSON schema in a file."""
    import json

    text = read_text(path)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not JSON: {error}.") from None
    if not isinstance(schema, dict):
        raise ConfigurationError(f"{path} holds {type(schema).__name__}; a JSON schema is an object.")
    return schema


def read_shown(path: Path) -> list[dict[str, Any]]:
    """Examples for a model in a file, one JSON object a line: `{"prompt": "…", "answer": …}`."""
    import json

    found = []
    for number, line in enumerate(lines_in(read_text(path)), 1):
        if not line.strip():
            continue
        try:
            example = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{path}:{number} is not JSON: {error}.") from None
        if not isinstance(example, dict) or set(example) != {"prompt", "answer"}:
            raise ConfigurationError(f'{path}:{number}: expected {{"prompt": "…", "answer": …}}, got {line[:80]}')
        found.append(example)
    return found


def read_schemas(paths: Sequence[Path], task: Path | None) -> tuple[dict[str, Any], ...]:
    """JSON schemas in files, and that of a task's answer."""
    schemas = [read_schema(path) for path in paths]
    if task is not None:
        from device_runtime.tasks.file import load

        schemas.append(dict(load(task).answer))
    return tuple(schemas)
