#!/usr/bin/env python3
"""Writes the pages of docs/reference/ that say what the code says. A test holds that they are current.

python scripts/write_reference.py            write them
python scripts/write_reference.py --check    exit 1 if one is not current
"""

# ruff: noqa: E501  (sentences of the pages)

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

REFERENCE = ROOT / "docs" / "reference"
GENERATED = "<!-- Written by scripts/write_reference.py; change the code, not this page. -->"
_COLUMNS = 100  # of the help texts


def commands() -> str:
    """Every command with its flags, from argparse."""
    from toolkit.cli.command import parser as parser_of

    parser = parser_of()
    subparsers = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    lines = [
        "# Commands", "", GENERATED, "",
        "Data goes to stdout, progress and logs to stderr. `--json` prints one JSON object instead of text, errors "
        "included; a wrong command line and Ctrl-C are said on stderr, too. [Exit codes](exit-codes.md).", "",
        "| command | |", "|---|---|",
        *(f"| [`stonechat {name}`](#stonechat-{name}) | {sub.description or ''} |" for name, sub in subparsers.choices.items()),
    ]  # fmt: skip
    for name, sub in subparsers.choices.items():
        lines += ["", f"## stonechat {name}", "", sub.description or "", "", "```", *_help(sub), "```"]
        nested = next((a for a in sub._actions if isinstance(a, argparse._SubParsersAction)), None)
        for action, actions_parser in (nested.choices if nested else {}).items():
            lines += ["", f"### stonechat {name} {action}", "", "```", *_help(actions_parser), "```"]
    return "\n".join(lines) + "\n"


def _help(parser: argparse.ArgumentParser) -> list[str]:
    """The help text without its description, as wide on every machine."""
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=_COLUMNS, max_help_position=28)
    description, parser.description = parser.description, None
    text = parser.format_help().rstrip()
    parser.description = description
    return text.splitlines()


def exit_codes() -> str:
    """The tree of errors."""
    from device_runtime import errors

    meanings = {
        0: "done", 1: "failed", 2: "wrong usage or configuration", 3: "unreachable: trying again may help",
        4: "a signature was refused", 5: "the model does not fit the board",
        6: "an update failed; the device runs what it ran before", 130: "stopped with Ctrl-C",
    }  # fmt: skip
    lines = [
        "# Exit codes and errors", "", GENERATED, "",
        "| exit code | |", "|---|---|", *(f"| {code} | {meaning} |" for code, meaning in meanings.items()), "",
        "`stonechat deploy` and `stonechat device` end with the code that the device reports. A roll-out to several devices "
        "ends with 0 if all run the new bundle, with 4 or 5 if that is the reason of every failure, with 6 if other "
        "failures stopped it, with 3 if it can go on later (`stonechat rollout resume`), and else with 1.", "",
        "`stonechat slots install` ends with 1 for a damaged bundle, a full disk or another update in progress, with 4 for a "
        "signature, a downgrade or an expired bundle, with 5 for a bundle of another board or profile, and with 6 if the "
        "trial failed and the previous bundle runs.", "",
        "## Errors", "",
        "In Python every error is a subclass of `StonechatError` (`from device_runtime.errors import …`; the common ones "
        "also `from stonechat import …`). With `--json` an error is "
        '`{"error": {"code": "…", "message": "…"}}` and, where there are any, its fields; a wrong command line is '
        "`configuration`, and Ctrl-C is `interrupted`, unless the command has printed its object already.", "",
        "| error | `code` | exit code | built-in | fields | |", "|---|---|---|---|---|---|",
    ]  # fmt: skip

    def walk(error: type[errors.StonechatError], depth: int) -> Iterator[str]:
        built_in = ", ".join(
            base.__name__ for base in error.__bases__ if not issubclass(base, errors.StonechatError)
        ).replace("Exception", "")
        own = inspect.signature(error.__init__).parameters
        fields = ", ".join(f"`{name}`" for name in own if name not in ("self", "message"))
        summary = (inspect.getdoc(error) or "").splitlines()[0]
        indent = "&nbsp;&nbsp;" * 2 * depth
        yield f"| {indent}`{error.__name__}` | `{error.code}` | {error.exit_code} | {built_in} | {fields} | {summary} |"
        for name in errors.__all__:
            child: type[errors.StonechatError] = getattr(errors, name)
            if child.__bases__[0] is error:
                yield from walk(child, depth + 1)

    return "\n".join([*lines, *walk(errors.StonechatError, 0)]) + "\n"


def boards() -> str:
    """The boards that come with stonechat."""
    from boards import board_ids, load_board

    lines = [
        "# Boards", "", GENERATED, "",
        "Boards that come with stonechat, from their files in `boards/`. `stonechat boards show ID` prints one with the "
        "source of each figure; [boards and what fits them](../guides/boards.md) says how a file is written. "
        "Memory is what a model may use, not all that the board has.", "",
        "| id | board | processor | profile | memory for a model | storage for a model | flashed by |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for board in map(load_board, board_ids()):
        profile = "not supported" if board.refused else f"`{board.profile}`"
        soc = f"{board.soc.cores} × {board.soc.core}, {board.soc.mhz} MHz, {board.arch}"
        storage = f"{board.storage.slots} × {_size(board.storage.model_kib)}"
        memory, method = _size(board.model_budget_kib), board.flash.method
        lines.append(f"| `{board.id}` | {board.name} | {soc} | {profile} | {memory} | {storage} | {method} |")
    refused = [board for board in map(load_board, board_ids()) if board.refused]
    lines += [""] + [f"`{board.id}`: {' '.join((board.refused or '').split())}" for board in refused]
    return "\n".join(lines) + "\n"


def _size(kib: int) -> str:
    return f"{kib:,} KiB" if kib < 1024 else f"{kib / 1024:,.0f} MiB" if kib < 1 << 20 else f"{kib / 1048576:,.0f} GiB"


def models() -> str:
    """The model families that the converter supports."""
    from converters.architectures import FAMILIES

    lines = [
        "# Model families", "", GENERATED, "",
        "A checkpoint of one of these families can be converted, from a GGUF file or a Hugging Face folder "
        "([convert](../guides/convert.md)); `stonechat get` fetches the ones that were tried. To add a family, see "
        "[adding a family](../contributing/adding-a-family.md).", "",
        "| family | models | `model_type` | classes in config.json | `general.architecture` in GGUF |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, family in FAMILIES.items():
        folder, file = family.huggingface, family.gguf
        classes = ", ".join(f"`{c}`" for c in sorted(folder.classes)) if folder else "–"
        kind, architecture = f"`{folder.model_type}`" if folder else "–", f"`{file.architecture}`" if file else "–"
        architecture += f" ({family.note})" if family.note else ""
        lines.append(f"| {name} | {family.models} | {kind} | {classes} | {architecture} |")
    lines += [
        "",
        "`stonechat families` prints the same. Mixtures of experts, models that see pictures or listen, and what else is "
        "not in the table are refused by name.",
    ]
    return "\n".join([*lines, *_encoder_families()]) + "\n"


def _encoder_families() -> list[str]:
    from converters.encoders.families import ENCODER_FAMILIES

    lines = [
        "", "## Encoders and translators", "",
        "From Hugging Face folders, for the profile `pi` ([vectors, labels, translations](../guides/encoders.md)).", "",
        "| family | models | `model_type` | task: classes in config.json |", "|---|---|---|---|",
    ]  # fmt: skip
    for name, family in ENCODER_FAMILIES.items():
        kinds = ", ".join(f"`{kind}`" for kind in family.model_types)
        tasks = {
            task: [c for c, t in family.classes.items() if t == task] for task in sorted(set(family.classes.values()))
        }
        classes = "; ".join(f"{task}: {', '.join(f'`{c}`' for c in found)}" for task, found in tasks.items())
        lines.append(f"| {name} | {family.models} | {kinds} | {classes} |")
    return lines


def fleet_fields(page: str) -> str:
    """The fleet file's page, with the table of fields between its marks renewed."""
    from device_runtime.fleet.file import FLEET

    rows = ["| field | expected | default | |", "|---|---|---|---|", *_rows(FLEET, "")]
    begin, end = "<!-- fields: written by scripts/write_reference.py -->", "<!-- end of fields -->"
    before, _, rest = page.partition(begin)
    return before + "\n".join([begin, "", *rows, "", end]) + rest.partition(end)[2]


def _rows(record: Any, prefix: str) -> Iterator[str]:
    """One row per field of a `yaml_schema.Record`, nested ones after their parent."""
    from device_runtime.fleet import yaml_schema as ys

    comments = _comments(record.make)
    for name, field in record.fields.items():
        reader = field.reader
        default = "required" if field.default is ys.REQUIRED else _default(field.default)
        what = comments.get(field.to or name, "")
        yield f"| `{prefix}{name}` | {_expected(reader)} | {default} | {what} |"
        nested, deeper = reader, f"{prefix}{name}."
        if isinstance(reader, ys.MapOf):
            nested, deeper = reader.item, f"{prefix}{name}.<name>."
        elif isinstance(reader, ys.ListOf):
            nested, deeper = reader.item, f"{prefix}{name}[]."
        if isinstance(nested, ys.Record):
            yield from _rows(nested, deeper)


def _expected(reader: Any) -> str:
    from device_runtime.fleet import yaml_schema as ys

    match reader:
        case ys.Choice():
            return " or ".join(f"`{word}`" for word in reader.words)
        case ys.Integer() | ys.Number():
            if reader.high >= 2**62:
                return f"{reader.low} or more {reader.unit}".strip()
            return f"{reader.low:g} … {reader.high:,} {reader.unit}".strip()
        case ys.Boolean():
            return "`true` or `false`"
        case ys.Reference():
            return f"the name of a {reader.what}"
        case ys.OneOrMore():
            return f"{_expected(reader.item)}, or a list of them"
        case ys.ListOf():
            return reader.expected
    return str(getattr(reader, "expected", "a mapping"))


def _default(value: Any) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if isinstance(value, str | int | float) else ""


def _comments(cls: Callable[..., Any]) -> Mapping[str, str]:
    """The comments beside the fields of a dataclass, for its readers."""
    found = {}
    for line in textwrap.dedent(inspect.getsource(cls)).splitlines():
        if match := re.match(r" {4}(\w+): [^#]*# (.*)", line):
            found[match[1]] = match[2].replace("|", "\\|")
    return found


PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": commands,
    "exit-codes.md": exit_codes,
    "boards.md": boards,
    "models.md": models,
    "fleet-file.md": lambda: fleet_fields((REFERENCE / "fleet-file.md").read_text(encoding="utf-8")),
}


def main() -> int:
    """Write the pages, or say which are not current."""
    parser = argparse.ArgumentParser(description="Write the generated pages of docs/reference/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is not current")
    args = parser.parse_args()
    stale = []
    for name, page in PAGES.items():
        path = REFERENCE / name
        if not path.exists() or path.read_text(encoding="utf-8") != (text := page()):
            stale.append(name)
            if not args.check:
                path.write_text(text if path.exists() else page(), encoding="utf-8")
    print(f"{'not current' if args.check else 'written'}: {', '.join(stale) or 'none'}")
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
