"""Writes the tables of message fields in docs/, from the dataclasses that describe the messages.

    python scripts/message_tables.py            write them
    python scripts/message_tables.py --check    exit with 1 and say which pages are not current

In a page, everything between `<!-- fields of MODULE:CLASS -->` and `<!-- end of fields -->` is generated.
"""

from __future__ import annotations

import argparse
import re
import sys
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from device_runtime.bridge.codec import Message, packed_fields  # noqa: E402
from device_runtime.mqtt.strict_json import MAX_PAYLOAD_BYTES  # noqa: E402
from device_runtime.records.constraints import COUNT, Length  # noqa: E402
from device_runtime.records.typed_json import Field, fields_of  # noqa: E402

PAGES = sorted(ROOT.glob("docs/**/*.md"))
BLOCK = re.compile(r"(<!-- fields of (\S+):(\w+) -->\n).*?(<!-- end of fields -->)", re.DOTALL)


def current(page: str) -> str:
    """The text of a page with its tables as the code has them."""
    return BLOCK.sub(lambda found: found[1] + table(found[2], found[3]) + found[4], page)


def table(module: str, name: str) -> str:
    """The fields of a record, as Markdown."""
    record = getattr(import_module(module), name)
    packed = isinstance(record, type) and issubclass(record, Message)
    rows = _packed_rows(record) if packed else _json_rows(record)
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _json_rows(record: Any) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("field", "value", "meaning", "if absent"), ("---",) * 4]
    return rows + [
        (f"`{'.'.join(field.path)}`", _value(field), field.doc, _default(field)) for field in fields_of(record)
    ]


def _value(field: Field) -> str:
    unit = "entries" if get_origin(field.type) is tuple else "characters"
    words = [_kind(field)]
    for constraint in field.constraints:
        if isinstance(constraint, Length) and constraint.high < MAX_PAYLOAD_BYTES:
            words.append(f"{constraint.words} {unit}")
        elif not isinstance(constraint, Length) and constraint != COUNT:
            words.append(constraint.words)
    return ", ".join(filter(None, words))


def _kind(field: Field) -> str:
    choices = get_args(field.type) if get_origin(field.type) is Literal else None
    if isinstance(field.type, type) and issubclass(field.type, Enum):
        choices = tuple(member.value for member in field.type)
    if field.type is Any:
        return "any JSON"
    if choices is not None:
        return ", ".join(f"`{str(choice).lower() if choice is True else choice}`" for choice in choices)
    return field.kind.partition(" ")[2] if field.kind.startswith(("a ", "an ")) else field.kind


def _default(field: Field) -> str:
    if field.required or not field.init:
        return "required"
    if field.default in (None, ()) or not isinstance(field.default, str | int | float | bool):
        return ""
    if isinstance(field.default, str):
        return f"`{field.default}`"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else f'{field.default:g}'}`"


def _packed_rows(record: Any) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("field", "type", "meaning"), ("---",) * 3]
    for field in packed_fields(record):
        doc = field.doc
        if field.choices is not None:
            choices = ", ".join(f"{choice.value} `{choice.name}`" for choice in field.choices)
            doc = f"{choices} ({doc})"
        if field.since > 1:
            doc = f"version {field.since}: {doc}"
        rows.append((f"`{field.name}`", field.layout.words, doc))
    return rows


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    stale = [page for page in PAGES if (text := page.read_text(encoding="utf-8")) != current(text)]
    for page in stale:
        if args.check:
            print(f"{page.relative_to(ROOT)} is not current; run: python scripts/message_tables.py", file=sys.stderr)
        else:
            page.write_text(current(page.read_text(encoding="utf-8")), encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
