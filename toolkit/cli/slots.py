"""`stonechat slots`: two bundles of one model on this device, a trial for the new one, and the way back."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options import add_json, positive_number, seconds
from toolkit.cli.output import rows, show

if TYPE_CHECKING:
    from device_runtime.update.state import Last
    from toolkit.device.slot_state import SlotState

__all__ = ["HELP", "add_arguments", "run"]

HELP = "on a device: install a bundle beside the one that runs, try it, and go back if it fails"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions of `stonechat slots` and their flags."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    texts = {
        "install": "put a bundle into the free slot and try it",
        "show": "what runs, what waits, and how the last update ended",
        "trial": "hold the trial that is due",
        "rollback": "go back to the bundle before the active one, or call off a trial",
    }
    for name, text in texts.items():
        action = actions.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".", allow_abbrev=False)
        if name == "install":
            action.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle folder, or a packed bundle")
        action.add_argument("folder", metavar="FOLDER", type=Path, help="the slot folder of one model")
        if name == "install":
            _add_install(action)
        if name != "show":
            action.add_argument(
                "--keys",
                metavar="DIR",
                type=Path,
                help="take only what these keys have signed (default: this device's keys)",
            )
        add_json(action)


def _add_install(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--board", metavar="ID", help="which board this is; refuses bundles for others")
    parser.add_argument("--min-tps", metavar="N", type=positive_number, help="its trial fails below N tokens a second")
    parser.add_argument("--max-rss-mb", metavar="MB", type=positive_number, help="its trial fails above MB of memory")
    parser.add_argument(
        "--trial-timeout-s",
        metavar="S",
        type=seconds,
        default=300.0,
        help="its trial fails after S (default 300)",
    )
    parser.add_argument(
        "--trial",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="try it now (default), or leave that to the next start of `stonechat serve`",
    )


def run(args: argparse.Namespace) -> int:
    """Do one thing to a slot folder."""
    return {"install": _install, "show": _show, "trial": _trial, "rollback": _rollback}[args.action](args)


def _install(args: argparse.Namespace) -> int:
    from device_runtime.update.state import TrialLimits
    from toolkit.device.slots import install_bundle

    limits = TrialLimits(args.min_tps, args.max_rss_mb, args.trial_timeout_s)
    done, state = install_bundle(args.bundle, args.folder, limits, keys=args.keys, board=args.board, trial=args.trial)
    if not done.changed:
        first = f"{args.folder} has version {done.version} of {done.name} already"
    else:
        first = f"copied {', '.join(done.copied) or 'nothing'}; unchanged here: {', '.join(done.reused) or '-'}"
    more = {"changed": done.changed, "copied": done.copied, "reused": done.reused}
    return show(args, state.to_fields() | more, [first, *_lines(state)])


def _show(args: argparse.Namespace) -> int:
    from toolkit.device.slots import state_of

    return _report(args, state_of(args.folder))


def _trial(args: argparse.Namespace) -> int:
    from toolkit.device.slots import hold_trial

    return _report(args, hold_trial(args.folder, args.keys))


def _rollback(args: argparse.Namespace) -> int:
    from toolkit.device.slots import go_back

    return _report(args, go_back(args.folder, args.keys))


def _report(args: argparse.Namespace, state: SlotState) -> int:
    return show(args, state.to_fields(), _lines(state))


def _lines(slots: SlotState) -> Iterator[str]:
    state = slots.state
    lines = [("state", state.phase.value)]
    for label, slot in (("active", state.active), ("previous", state.previous)):
        lines.append((label, f"version {slots.version(slot)}, slot {slot}" if slot else "none"))
    if trial := state.trial:
        lines.append(
            ("on trial", f"version {slots.version(trial.slot)}, slot {trial.slot}, starts left {trial.attempts_left}")
        )
    lines.append(("security counter", str(state.security_counter)))
    if state.last:
        lines.append(("last update", _sentence(state.last)))
    return rows(lines)


def _sentence(last: Last) -> str:
    words = [f"version {last.version} of {last.name} {last.outcome.replace('_', ' ')}"]
    if last.reason:
        words.append(last.reason)
    elif last.tokens_per_s is not None:
        words.append(f"{last.tokens_per_s:.1f} tok/s, {last.peak_rss_mb:.1f} MB")
    return ": ".join(words)
