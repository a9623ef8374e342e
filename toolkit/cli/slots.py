"""`stonechat slots`: two bundles of one model on this device, a trial for the new one, and the way back."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.cli.options import add_json, positive_number

if TYPE_CHECKING:
    from device_runtime.bundle.manifest import Manifest
    from device_runtime.bundle.trust import TrustStore
    from device_runtime.update.slots import Slots
    from device_runtime.update.state import Last, State

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
        type=positive_number,
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
    from device_runtime.bundle.trust import trusted
    from device_runtime.update.install import install, preview
    from device_runtime.update.policy import Policy
    from device_runtime.update.slots import is_slot_folder, lock
    from device_runtime.update.state import Limits
    from toolkit.device.installed import check_is_served

    trust = trusted(args.keys)
    policy = Policy(trust, *_of_board(args.board))
    limits = Limits(args.min_tps, args.max_rss_mb, args.trial_timeout_s)
    preview(args.bundle, policy)  # before a folder is made for it
    if not is_slot_folder(args.folder):
        check_is_served(args.folder)
    with lock(args.folder, make=True) as slots:
        done = install(args.bundle, slots, limits, policy)
        if slots.state.trial is not None and args.trial:
            _try(slots, trust)
        state = slots.state
    if args.json:
        _print_json(args.folder, state, {"changed": done.changed, "copied": done.copied, "reused": done.reused})
        return 0
    if not done.changed:
        print(f"{args.folder} has version {done.version} of {done.name} already")
    else:
        print(
            f"copied {', '.join(done.copied) or 'nothing'}; unchanged on this device: {', '.join(done.reused) or '-'}"
        )
    _print_state(args.folder, state)
    return 0


def _of_board(name: str | None) -> tuple[str | None, Callable[[Manifest], object]]:
    """The id of a board, and what raises a `DoesNotFitError` when it, or else this machine, does not hold a bundle."""
    from device_runtime.machine.requirements import require_room

    if name is None:
        return None, require_room
    from boards import load_board
    from toolkit.device.installed import fits_on

    board = load_board(name)
    return board.id, fits_on(board)


def _show(args: argparse.Namespace) -> int:
    from device_runtime.errors import ConfigurationError
    from device_runtime.update.slots import is_slot_folder, read_state

    if not is_slot_folder(args.folder):
        what = "is not a slot folder" if args.folder.exists() else "does not exist"
        raise ConfigurationError(f"{args.folder} {what}. Make one with `stonechat slots install BUNDLE FOLDER`.")
    state = read_state(args.folder)
    if args.json:
        _print_json(args.folder, state)
    else:
        _print_state(args.folder, state)
    return 0


def _trial(args: argparse.Namespace) -> int:
    from device_runtime.bundle.trust import trusted
    from device_runtime.errors import ConfigurationError
    from device_runtime.update.slots import lock

    with lock(args.folder) as slots:
        if slots.state.trial is None:
            raise ConfigurationError(f"No bundle in {args.folder} waits for a trial; install one first.")
        _try(slots, trusted(args.keys))
        state = slots.state
    return _report(args, state)


def _rollback(args: argparse.Namespace) -> int:
    from device_runtime.bundle.trust import trusted
    from device_runtime.update.slots import lock
    from device_runtime.update.trial import roll_back

    with lock(args.folder) as slots:
        roll_back(slots, trusted(args.keys))
        state = slots.state
    return _report(args, state)


def _try(slots: Slots, trust: TrustStore) -> None:
    """Hold the trial that is due.

    Raises:
        RolledBackError: it was not passed.
    """
    from device_runtime.errors import RolledBackError
    from device_runtime.update.trial import try_pending

    last = try_pending(slots, trust=trust)
    if last.outcome == "rolled_back":
        active = _versions(slots.folder)[slots.state.active] if slots.state.active else None
        runs = f"Version {active} runs as before." if active else "No bundle runs here yet."
        raise RolledBackError(
            f"version {last.version} of {last.name} did not pass its trial: {last.reason}. {runs}",
            version=last.version,
            reason=last.reason,
        )


def _report(args: argparse.Namespace, state: State) -> int:
    if args.json:
        _print_json(args.folder, state)
    else:
        _print_state(args.folder, state)
    return 0


def _print_state(folder: Path, state: State) -> None:
    versions = _versions(folder)
    rows = [("state", state.phase.value)]
    for label, slot in (("active", state.active), ("previous", state.previous)):
        rows.append((label, f"version {versions[slot]}, slot {slot}" if slot else "none"))
    if trial := state.trial:
        rows.append(
            ("on trial", f"version {versions[trial.slot]}, slot {trial.slot}, starts left {trial.attempts_left}")
        )
    rows.append(("security counter", str(state.security_counter)))
    if state.last:
        rows.append(("last update", _sentence(state.last)))
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        print(f"{label:<{width}}  {text}")


def _sentence(last: Last) -> str:
    words = [f"version {last.version} of {last.name} {last.outcome.replace('_', ' ')}"]
    if last.reason:
        words.append(last.reason)
    elif last.tokens_per_s is not None:
        words.append(f"{last.tokens_per_s:.1f} tok/s, {last.peak_rss_mb:.1f} MB")
    return ": ".join(words)


def _print_json(folder: Path, state: State, more: dict[str, Any] | None = None) -> None:
    import json
    from dataclasses import asdict

    fields = {"folder": str(folder), "state": state.phase.value, **asdict(state), "versions": _versions(folder)}
    print(json.dumps(fields | (more or {}), ensure_ascii=False))


def _versions(folder: Path) -> dict[str, str]:
    """slot -> version of its bundle, as the manifest says it."""
    from device_runtime.update.slots import SLOTS
    from device_runtime.update.staging import peek

    manifests = {slot: peek(folder / slot) for slot in SLOTS if (folder / slot).exists()}
    return {slot: manifest.version if manifest else "?" for slot, manifest in manifests.items()}
