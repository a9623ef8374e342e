"""`stonechat try`: recorded readings through the links of a fleet file, before any device runs them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.records.printable import counted
from toolkit.cli.options import add_json, whole_number

if TYPE_CHECKING:
    from toolkit.replay import Replayed

__all__ = ["HELP", "add_arguments", "run"]

HELP = "replay recorded readings through a fleet file's links, and score the answers"
_SHOWN = 160  # characters of an answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat try`."""
    parser.add_argument("fleet", metavar="FLEET.yaml", type=Path)
    parser.add_argument(
        "--readings", metavar="FILE", type=Path, required=True,
        help='a line each: {"topic", "reading", "answer"}, or what `mosquitto_sub -v` prints',
    )  # fmt: skip
    parser.add_argument("--device", metavar="ID", help="whose links and models (default: the first that has links)")
    parser.add_argument("--link", metavar="NAME", help="this link alone")
    parser.add_argument("--threads", metavar="N", type=whole_number(1, 256), help="CPU threads")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print each answer as it comes, then the scores."""
    from device_runtime.errors import ConfigurationError
    from device_runtime.fleet import file
    from toolkit.cli.output import print_json
    from toolkit.replay import Replay, read_recorded

    fleet = file.load(args.fleet)
    readings = read_recorded(args.readings)
    served = [name for name, device in fleet.devices.items() if device.links]
    if args.device is None and not served:
        raise ConfigurationError(f"{args.fleet} has no device with `links`; give one the links that it serves.")
    answered: list[Replayed] = []
    asleep = 0
    with Replay(fleet, args.device or served[0], only=args.link, threads=args.threads) as replay:
        for replayed in replay.run(readings):
            if replayed is None:
                asleep += 1
                continue
            answered.append(replayed)
            if not args.json:
                print(_line(replayed), flush=True)
    summary = _summary(answered, asleep)
    summary["of_no_link"] = replay.of_no_link
    if args.json:
        print_json({**summary, "answers": [replayed.to_json() for replayed in answered]})
        return 0
    for line in _summary_lines(summary):
        print(line)
    return 0


def _line(replayed: Replayed) -> str:
    import json

    said = replayed.said
    if "error" in said:
        return f"{replayed.topic}  {replayed.link}: no answer: {said['error']}"
    text = said["text"] if "text" in said else json.dumps(said["answer"], ensure_ascii=False)
    text = " ".join(text.split())
    parts = [text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"]
    if confidence := said.get("confidence"):
        parts.append(" ".join(f"{name} {share:.2f}" for name, share in confidence.items()))
    if replayed.held_back:
        parts.append("held back: " + said["reason"])
    elif said.get("unsure") or said.get("unfamiliar"):
        parts.append(("unsure: " if said.get("unsure") else "unfamiliar: ") + said["reason"])
    wrong = [f"{name} should be {json.dumps(replayed.truth[name])}" for name, ok in replayed.right.items() if not ok]
    if replayed.truth:
        parts.append("; ".join(wrong) or "right")
    return f"{replayed.topic}  {replayed.link}: {'  | '.join(parts)}"


def _summary(answered: Sequence[Replayed], asleep: int) -> dict[str, Any]:
    from device_runtime.tasks.score import calibration_error, shares

    fields: dict[str, list[bool]] = {}
    sure: dict[str, list[tuple[float, bool]]] = {}
    for replayed in answered:
        for name, right in replayed.right.items():
            fields.setdefault(f"{replayed.link}.{name}", []).append(right)
            share = (replayed.said.get("confidence") or {}).get(name)
            if share is not None:
                sure.setdefault(f"{replayed.link}.{name}", []).append((share, right))
    accuracy = {}
    for name, held in fields.items():
        error = calibration_error(sure.get(name, []))
        accuracy[name] = {
            "right": sum(held),
            "count": len(held),
            **shares(sum(held), len(held)),
            "calibration_error": None if error is None else round(error, 4),
        }
    good = [replayed for replayed in answered if "error" not in replayed.said]
    return {
        "answered": len(good),
        "without_answer": len(answered) - len(good),
        "not_woken": asleep,
        "unsure": sum(bool(replayed.said.get("unsure")) for replayed in good),
        "held_back": sum(replayed.held_back for replayed in good),
        "prompt_tokens": sum(replayed.prompt_tokens for replayed in good),
        "reused_tokens": sum(replayed.reused_tokens for replayed in good),
        "seconds": round(sum(replayed.seconds for replayed in good), 3),
        "fields": accuracy,
    }


def _summary_lines(summary: dict[str, Any]) -> Iterator[str]:
    seconds = f" in {summary['seconds']:.1f} s" if summary["seconds"] else ""
    yield ""
    yield (
        f"{summary['answered']} answered{seconds}, {summary['without_answer']} without an answer, "
        f"{summary['not_woken']} woke no link; {summary['unsure']} unsure, {summary['held_back']} of them held back"
    )
    if count := summary["of_no_link"]:
        yield f"{count} on topics that no link listens to; check the links' `from`"
    if summary["prompt_tokens"]:
        share = summary["reused_tokens"] / summary["prompt_tokens"]
        yield f"{counted(summary['prompt_tokens'], 'prompt token')}, {share:.0%} of them not computed again"
    for name, found in summary["fields"].items():
        error = found["calibration_error"]
        sure = "" if error is None else f"; confidence is off by {error:.2f} on average"
        yield (
            f"{name}: {found['right']} of {found['count']} right, {found['accuracy']:.0%} "
            f"({found['low']:.0%} to {found['high']:.0%}){sure}"
        )
