"""`stonechat correct`: tell a device what would have been the right answer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolkit.cli.broker_access import add_broker_access, broker_access
from toolkit.cli.options import add_json, seconds

if TYPE_CHECKING:
    from device_runtime.mqtt.address import BrokerAddress

__all__ = ["HELP", "add_arguments", "run"]

HELP = "tell a device what would have been the right answer, for the next training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat correct`."""
    parser.add_argument(
        "answer", metavar="FIELD=VALUE", nargs="+", help="of the right answer, or the whole of it as a JSON object"
    )
    parser.add_argument("--device", metavar="ID", required=True, help="which has answered")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--link", metavar="NAME", help="whose answer it was")
    what.add_argument("--prompt", metavar="TEXT", help="what was asked, in place of a link's reading")
    parser.add_argument(
        "--reading", metavar="READING",
        help="of the link, as JSON or a text (default: that of its last answer, whose other fields then stay)",
    )  # fmt: skip
    parser.add_argument(
        "--window", metavar="READINGS",
        help="the readings before --reading, as a JSON list, the oldest first, where the link's prompt looks at them",
    )  # fmt: skip
    parser.add_argument("--topic", metavar="TOPIC", help="of --reading, where the link's prompt uses it")
    parser.add_argument(
        "--model", metavar="NAME", help="which of its models was asked (default: the one that answered, or would)"
    )
    parser.add_argument("--timeout", metavar="S", type=seconds, default=10.0, help="(default 10)")
    add_broker_access(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Send the correction, and say what is kept."""
    from device_runtime.client.corrections import correct
    from device_runtime.errors import ConfigurationError
    from device_runtime.mqtt.topics import check_id
    from toolkit.cli.output import say, show

    check_id("device", args.device)
    if args.reading is not None and args.link is None:
        raise ConfigurationError("--reading is of a link: name it with --link, or say what was asked with --prompt.")
    for flag, value in (("--topic", args.topic), ("--window", args.window)):
        if value is not None and args.reading is None:
            raise ConfigurationError(f"{flag} goes with --reading: give that, too, or leave out both.")
    window = _value(args.window) if args.window is not None else None
    if not isinstance(window, list | None):
        raise ConfigurationError(f"--window is {args.window[:80]}; expected a JSON list of readings, the oldest first.")
    given = _fields(args.answer)
    broker, name = broker_access(args)
    correction: dict[str, Any] = {"prompt": args.prompt} if args.link is None else {"link": args.link}
    said: Mapping[str, Any] = {}
    if args.reading is not None:
        correction["reading"] = _reading(args.reading)
    elif args.link is not None:
        last = _last(broker, name, args.device, args.link, args.timeout)
        said = last["said"] or {}
        correction |= last
        shown = json.dumps(last["reading"], ensure_ascii=False)
        say(f"{args.link}: {shown}, answered {json.dumps(said, ensure_ascii=False) if said else 'nothing'}")
    correction |= {name: of for name, of in (("topic", args.topic), ("window", window)) if of is not None}
    answer: dict[str, Any] = {field: _as_before(text, said.get(field)) for field, text in given.items()}
    answer = answer if _is_whole(args.answer) else {**said, **answer}
    correction |= {"answer": answer} | ({"model": args.model} if args.model is not None else {})
    kept = correct(
        broker, args.device, {key: value for key, value in correction.items() if value is not None},
        client=name, timeout_s=args.timeout,
    )  # fmt: skip
    text = f"kept on {args.device}: {json.dumps(answer, ensure_ascii=False)}"
    return show(args, {**kept, "answer": answer}, [text])


def _fields(words: Sequence[str]) -> dict[str, Any]:
    """What `FIELD=VALUE …` or a JSON object says; a VALUE is a text still."""
    from device_runtime.errors import ConfigurationError

    if _is_whole(words):
        try:
            found = json.loads(words[0])
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"the answer is not JSON: {error}.") from None
        return dict(found)
    pairs = [word.partition("=") for word in words]
    for word, (field, equals, _) in zip(words, pairs, strict=True):
        if not field or not equals:
            raise ConfigurationError(f"{word!r} is no part of an answer; expected FIELD=VALUE, or one JSON object.")
    named = [field for field, _, _ in pairs]
    if twice := [field for field in named if named.count(field) > 1]:
        raise ConfigurationError(f"{twice[0]!r} is given twice; an answer has one value for each field.")
    return {field: _Text(value) for field, _, value in pairs}


def _is_whole(words: Sequence[str]) -> bool:
    """Whether they are an answer as one JSON object, of whose fields none stays as it was."""
    return len(words) == 1 and words[0].lstrip().startswith("{")


class _Text(str):
    """A value as it was typed: what it means, the field decides."""


def _as_before(value: Any, before: Any) -> Any:
    """What was typed, as a text where the answer had one, else as JSON where it is some."""
    if not isinstance(value, _Text):
        return value
    return str(value) if isinstance(before, str) else _value(value)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return str(text)


def _reading(text: str) -> Any:
    """JSON, or a text; raises a ConfigurationError for an object that breaks off."""
    from device_runtime.errors import ConfigurationError

    found = _value(text)
    if isinstance(found, str) and text.lstrip().startswith("{"):
        raise ConfigurationError(
            f"--reading is {text[:80]}, which begins as a JSON object and is none; expected a whole one in quotation "
            "marks of the shell. A text that begins so is given as a JSON string."
        )
    return found


def _last(broker: BrokerAddress, name: str | None, device: str, link: str, timeout_s: float) -> dict[str, Any]:
    """The last answer of a link, as the broker keeps it.

    Raises:
        ConfigurationError: there is none, or none that could be corrected.
        UnreachableError: there is no broker.
    """
    from device_runtime.client.roll_call import FleetWatch
    from device_runtime.errors import ConfigurationError

    watch = FleetWatch(broker, client=name, device=device)
    watch.open()
    try:
        watch.settle(timeout_s)
    finally:
        watch.close()
    report = watch.devices().get(device)
    links = {} if report is None else report.links
    if link not in links:
        has = f"there are answers of {', '.join(links)}" if links else "it has answered for none"
        raise ConfigurationError(
            f"the broker has no answer of link {link!r} of device {device!r}; {has}. Name the reading with --reading."
        )
    last = links[link]
    if last.text is not None or last.reading is None:
        raise ConfigurationError(
            f"the last answer of link {link!r} is a text, or says no reading; answers that are data can be corrected."
        )
    said = dict(last.answer) if isinstance(last.answer, Mapping) else None
    here = last.route is not None and last.route.where == "here"
    return {
        "reading": last.reading, "window": last.window, "topic": last.topic, "said": said,
        "model": last.route.model if here and last.route is not None else None,
    }  # fmt: skip
