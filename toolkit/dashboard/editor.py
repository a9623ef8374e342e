"""Links of a fleet file, changed by the page: checked as the command line checks them, saved with all comments kept."""

from __future__ import annotations

import difflib
import hashlib
import io
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import LiteralScalarString

from device_runtime.errors import ConfigurationError, RefusedError
from device_runtime.fleet import yaml_schema
from device_runtime.fleet.file import FLEET, Fleet, check_fleet, load
from device_runtime.fleet.link_fields import LINK
from device_runtime.fleet.yaml_schema import Choice, Number, Reference, Text
from device_runtime.machine.path_errors import cannot_write, is_full
from device_runtime.records.printable import counted
from device_runtime.update import durable
from toolkit.dashboard.kept_layout import (
    dumped,
    only_what_changed,
    parser,
    with_remarks,
    without_entry,
    without_remarks,
)

__all__ = ["Change", "FleetEditor"]

# Fields of a link that the page shows as they are; the others it shows as YAML.
_TEXTS = tuple(name for name, field in LINK.fields.items() if isinstance(field.reader, Text | Choice | Reference))
_NUMBERS = tuple(name for name, field in LINK.fields.items() if isinstance(field.reader, Number))
_CHARACTERS = 200_000  # of one field
_Found = TypeVar("_Found")
_PLACE = re.compile(r"^[^:]*:(\d+):(\d+): (.*)$")


@dataclass(frozen=True)
class Change:
    """A fleet file with one link changed or added."""

    text: str
    base: str  # sha256 of the file that it was made of
    fleet: Fleet | None  # None where there are faults
    faults: tuple[dict[str, Any], ...]  # {"field", "text"}; a field of the link, or empty
    difference: str  # unified


class FleetEditor:
    """One fleet file. May be used from any thread."""

    def __init__(self, path: Path) -> None:
        """`path` is read again at each call: somebody may change it with an editor."""
        self._path = path
        self._lock = threading.Lock()

    def fleet(self) -> Fleet:
        """The file as it is.

        Raises:
            ConfigurationError: lists its faults.
        """
        return load(self._path)

    def links(self) -> dict[str, Any]:
        """What the page shows of the file: links by their fields, models, devices, and the hash that `save` wants."""
        text = self._read()
        _, data = self._parsed(text)
        devices = data.get("devices") or {}
        return {
            "file": self._path.name,
            "base": _sha256(text),
            "models": list(data.get("models") or {}),
            "router": bool(data.get("router")),
            "devices": {name: list((entry or {}).get("links") or ()) for name, entry in devices.items()},
            "links": [_shown(link) for link in data.get("links") or () if isinstance(link, Mapping)],
        }

    def change(self, was: str | None, fields: Mapping[str, Any], devices: list[str]) -> Change:
        """What the file would be.

        Args:
            was: the link's present name; None adds one.
            fields: of the link, texts; empty ones are left out.
            devices: that serve it.

        Raises:
            RefusedError: a field is none of a link's, or is no text.
        """
        text = self._read()
        wanted, faults = _values(fields)

        def put(data: CommentedMap) -> CommentedMap:
            link = _put(data, was, wanted)
            _serve(data, was, str(wanted.get("name", "")), devices)
            return link

        new, link = self._edited(text, put)
        return self._change(text, new, wanted, faults, link)

    def removal(self, name: str) -> Change:
        """What the file would be without a link: no device serves it, and all comments outside of its lines stay.

        Raises:
            RefusedError: there is no such link any more.
        """
        text = self._read()
        place = _place_of(self._parsed(text)[1].get("links"), name)
        served, _ = self._edited(text, lambda data: _serve(data, name, "", []))
        links = self._parsed(served)[1]["links"]
        first = links.lc.item(place)[0]  # 0 is the file's first line
        begin = served.splitlines(keepends=True)[first] if not links.fa.flow_style() else ""
        if len(links) > 1 and begin.lstrip().startswith("- "):
            new = without_entry(served, first, len(begin) - len(begin.lstrip()))
        else:  # the last one, or all on one line
            yaml, data = self._parsed(served)
            del data["links"][place]
            if not data["links"]:
                data["links"] = CommentedSeq()
                data["links"].fa.set_flow_style()
            new = only_what_changed(served, dumped(yaml, data))
        return self._change(text, new, {}, [], CommentedMap())

    def _edited(self, text: str, edit: Callable[[CommentedMap], _Found]) -> tuple[str, _Found]:
        """The file after an edit of what it says, with all its comments; and what the edit gives."""
        self._parsed(text)  # its faults have the file's own lines
        bare, remarks = without_remarks(text)
        yaml, data = self._parsed(bare)
        found = edit(data)
        return with_remarks(bare, only_what_changed(bare, dumped(yaml, data)), remarks), found

    def _change(
        self, text: str, new: str, wanted: Mapping[str, Any], faults: list[dict[str, Any]], link: CommentedMap
    ) -> Change:
        fleet = None
        if not faults:
            try:
                fleet = replace(yaml_schema.loads(new, FLEET, check_fleet, file=self._path.name), path=self._path)
            except ConfigurationError as error:
                faults = _by_field(str(error), new, str(wanted.get("name", "")), link)
        difference = "".join(
            difflib.unified_diff(
                text.splitlines(keepends=True), new.splitlines(keepends=True), self._path.name, self._path.name, n=2
            )
        )
        return Change(new, _sha256(text), fleet, tuple(faults), difference)

    def save(self, change: Change, base: str) -> None:
        """Write the file.

        Args:
            base: the hash of the file that the page showed.

        Raises:
            RefusedError: it has faults, somebody else has changed the file, or it cannot be written.
            DiskFullError: the disk is full. The file is as it was.
        """
        with self._lock:
            if change.faults:
                raise RefusedError(
                    f"the link has {counted(len(change.faults), 'fault')}; nothing was saved.", reason="faults"
                )
            if not (base == change.base == _sha256(self._read())):
                raise RefusedError(
                    f"{self._path.name} has changed meanwhile; load the page again, and make the change once more.",
                    status=409, reason="changed",
                )  # fmt: skip
            mode = self._path.stat().st_mode & 0o777
            real = self._path.resolve()  # a link to the file stays one
            ends = b"\r\n" if b"\r\n" in real.read_bytes() else b"\n"  # an editor on Windows has its own
            try:
                durable.replace_file(real, change.text.encode().replace(b"\n", ends))
                real.chmod(mode)
            except OSError as error:
                advice = (
                    "Free some and save again." if is_full(error) else "Save again once this server may write there."
                )
                refused = cannot_write(Path(self._path.name), error, advice)
                if is_full(error):
                    raise refused from None
                raise RefusedError(str(refused), status=403, reason="not_writable") from None

    def _parsed(self, text: str) -> tuple[YAML, CommentedMap]:
        try:
            yaml = parser(text)
            data = yaml.load(text)
        except (YAMLError, RecursionError) as error:
            raise ConfigurationError(f"{self._path} is not YAML: {error}; mend it in an editor.") from None
        if not isinstance(data, CommentedMap):
            raise ConfigurationError(f"{self._path} is no fleet file.")
        return yaml, data

    def _read(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"{self._path} cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise ConfigurationError(f"{self._path} is not in UTF-8; save it so in an editor.") from None


def _place_of(links: Any, name: str) -> int:
    found = [at for at, link in enumerate(links or ()) if isinstance(link, Mapping) and link.get("name") == name]
    if not found:
        raise RefusedError(f"the fleet file has no link {name[:64]!r} any more; load the page again.", status=409)
    return found[0]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _shown(link: Mapping[str, Any]) -> dict[str, Any]:
    """A link's fields as texts."""
    fields: dict[str, Any] = {}
    for name in LINK.fields:
        if link.get(name) is None:
            continue
        if name in _TEXTS or name in _NUMBERS:
            fields[name] = str(link[name])
        else:
            out = io.StringIO()
            yaml = YAML()
            yaml.width = 100
            yaml.dump(link[name], out)
            fields[name] = out.getvalue().removesuffix("...\n").rstrip("\n")
    return fields


def _values(fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The fields that have a value; and what is no YAML."""
    unknown = set(fields) - set(LINK.fields)
    if unknown or not all(isinstance(value, str) and len(value) <= _CHARACTERS for value in fields.values()):
        what = ", ".join(sorted(map(str, unknown)))[:100] or "what is no text, or too long"
        raise RefusedError(f"a link has the fields {', '.join(LINK.fields)}; found {what}.")
    wanted: dict[str, Any] = {}
    faults = []
    for name in LINK.fields:
        value = fields.get(name, "").replace("\r\n", "\n").strip()
        if not value:
            continue
        if name not in _TEXTS and name not in _NUMBERS:
            try:
                wanted[name] = YAML().load(value)
            except (YAMLError, RecursionError) as error:
                mark = getattr(error, "problem_mark", None)
                where = f"line {mark.line + 1}: " if mark else ""
                faults.append({"field": name, "text": f"not YAML: {where}{getattr(error, 'problem', None) or error}"})
        elif name in _NUMBERS:
            wanted[name] = _number(value)
        else:
            wanted[name] = LiteralScalarString(value) if "\n" in value else value
    return wanted, faults


def _number(text: str) -> int | float | str:
    try:
        number = float(text)
    except ValueError:
        return text  # its fault is found with the others
    return int(number) if number.is_integer() else number


def _put(data: CommentedMap, was: str | None, wanted: Mapping[str, Any]) -> CommentedMap:
    """Change a link in place, so that what is said beside its fields stays; or add one."""
    links = data.get("links")
    if not isinstance(links, CommentedSeq):
        links = data["links"] = CommentedSeq()
    elif links.fa.flow_style() and not links:
        links.fa.set_block_style()
    link: CommentedMap
    if was is None:
        link = CommentedMap(wanted)
        links.append(link)
        return link
    link = links[_place_of(links, was)]
    for name in [name for name in link if name in LINK.fields and name not in wanted]:
        del link[name]
    for name, value in wanted.items():
        if name not in link or not _alike(name, link[name], value):
            link[name] = value
    return link


def _alike(name: str, old: Any, new: Any) -> bool:
    """Whether a form that shows the one would send the other: it leaves out blanks at the ends."""
    before, after = _shown({name: old}), _shown({name: new})
    return str(before.get(name, "")).strip() == str(after.get(name, "")).strip()


def _serve(data: CommentedMap, was: str | None, name: str, devices: list[str]) -> None:
    """Name the link at the devices that serve it, and at no others."""
    for device, entry in (data.get("devices") or {}).items():
        if not isinstance(entry, CommentedMap):
            continue
        links = entry.get("links")
        names = list(links or ())
        new = [name if link == was else link for link in names]
        if device in devices and name not in new:
            new.append(name)
        elif device not in devices:
            new = [link for link in new if link != name]
        if new == names:
            continue
        if isinstance(links, CommentedSeq):
            _made(links, new)
        else:
            entry["links"] = CommentedSeq(new)
            entry["links"].fa.set_flow_style()


def _made(links: CommentedSeq, new: list[str]) -> None:
    """Make a list say `new`, changing no more than that: what is said beside an entry stays beside it."""
    for at in reversed(range(len(links))):
        if links[at] not in new and len(links) > len(new):
            del links[at]
    for at, name in enumerate(new):
        if at == len(links):
            links.append(name)
        elif links[at] != name:
            links[at] = name


def _by_field(faults: str, text: str, name: str, link: CommentedMap) -> list[dict[str, Any]]:
    """The faults of a file, a line each, at the fields of a link."""
    places = _lines_of(text, name)
    found = []
    for fault in faults.splitlines():
        match = _PLACE.match(fault)
        if match is None and fault.endswith(":") and len(faults.splitlines()) > 1:
            continue  # how many there are
        field = ""
        if match and places:
            line = int(match[1])
            begun = [(start, key) for key, start in places.items() if start <= line]
            field = max(begun)[1] if begun and line < places.get("", 1 << 30) else ""
        found.append({"field": field if field in link else "", "text": match[3] if match and field else fault})
    return found


def _lines_of(text: str, name: str) -> dict[str, int]:
    """The line of each field of a link, and under "" the line after it."""
    data = YAML().load(text)
    links = data.get("links") or CommentedSeq()
    for number, link in enumerate(links):
        if isinstance(link, CommentedMap) and link.get("name") == name:
            places = {str(key): link.lc.key(key)[0] + 1 for key in link}
            if number + 1 < len(links):
                places[""] = links.lc.item(number + 1)[0] + 1
            return places
    return {}
