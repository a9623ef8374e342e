"""`stonechat rollout`: see, pause, resume and abort updates of several devices; `stonechat deploy` begins them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.records.printable import counted
from toolkit.cli.bundle import signing_keys
from toolkit.cli.key import add_passphrase
from toolkit.cli.options import add_json, percent, whole_number
from toolkit.cli.output import paragraph, rows, say, show, table

if TYPE_CHECKING:
    from toolkit.rollout.files import RolloutFiles
    from toolkit.rollout.rollout import Rollout

__all__ = ["HELP", "add_arguments", "add_broker", "add_rollout", "begin", "run"]

HELP = "see, pause, resume and abort updates of several devices"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions of `stonechat rollout` and their flags."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    texts = {
        "list": "all roll-outs that this user has begun",
        "show": "how far one is, device by device",
        "pause": "begin no more devices for now",
        "resume": "go on, here",
        "abort": "begin no more devices for good; what runs the new bundle keeps it",
        "back": "bring its devices back to the bundle before, signed again with a higher counter",
    }
    for name, text in texts.items():
        action = actions.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".", allow_abbrev=False)
        if name != "list":
            action.add_argument("id", metavar="ID", help="as `stonechat rollout list` shows it")
        if name == "back":
            _add_back(action)
        if name in ("resume", "back"):
            add_broker(action)
        add_json(action)


def _add_back(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key", metavar="FILE", type=Path, action="append", required=True, help="sign with it (repeatable)"
    )
    add_passphrase(parser)
    parser.add_argument(
        "--bundle", metavar="BUNDLE", type=Path, help="where to go back to (default: what they had before)"
    )


def add_broker(parser: argparse._ActionsContainer) -> None:
    """--broker, --as, --password-file and --wait"""
    parser.add_argument("--broker", metavar="URL", help="mqtt://[user@]host[:port] in place of the fleet file's")
    parser.add_argument("--as", metavar="NAME", dest="name", help="who sends, as the broker knows it (operator)")
    parser.add_argument("--password-file", metavar="FILE", type=Path, help="the password at the broker")
    parser.add_argument(
        "--wait", metavar="S", type=whole_number(0), default=0, help="for devices that are not online (default 0)"
    )


def add_rollout(parser: argparse.ArgumentParser) -> None:
    """Flags of `stonechat deploy --to fleet:GROUP`."""
    group = parser.add_argument_group("with --to fleet:GROUP, over MQTT")
    group.add_argument("--fleet", metavar="FLEET.yaml", type=Path, help="whose groups and broker; `all` is a group")
    group.add_argument("--canary", metavar="PERCENT", type=percent, default=10.0, help="come first (default 10)")
    group.add_argument(
        "--max-failed", metavar="PERCENT", type=percent, default=20.0, help="more failures stop it (default 20)"
    )
    group.add_argument("--parallel", metavar="N", type=whole_number(1), default=10, help="at once (default 10)")
    group.add_argument(
        "--url", metavar="URL", type=_url, help="where devices fetch the bundle's folder (default: over MQTT)"
    )
    add_broker(group)


def _url(text: str) -> str:
    """An argparse type: the URL of a bundle's folder."""
    from device_runtime.errors import ConfigurationError
    from device_runtime.update.http_source import check_url

    try:
        return check_url(text)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None


def begin(args: argparse.Namespace) -> int:
    """Begin a roll-out, and carry it out."""
    from device_runtime.errors import ConfigurationError
    from device_runtime.fleet import file as fleet
    from device_runtime.update.active import open_bundle
    from toolkit.rollout.files import RolloutFiles, default_folder
    from toolkit.rollout.rollout import Plan, Rollout

    if args.fleet is None:
        raise ConfigurationError("--to fleet:GROUP needs --fleet FLEET.yaml, which says what is in the group.")
    group = args.to.removeprefix("fleet:")
    plan, files = fleet.load(args.fleet), RolloutFiles(default_folder())
    devices = plan.group(group)
    rollout_id = _new_id()
    with files.beginning(rollout_id):
        bundle = open_bundle(files.keep_bundle(rollout_id, args.bundle), verify=True)
        rollout = Rollout.of(
            Plan(
                rollout_id, str(bundle.path), bundle.manifest_sha256, bundle.manifest.name, bundle.manifest.version,
                str(args.fleet.absolute()), group, devices, args.model, args.canary, args.max_failed, args.parallel,
                url=args.url, min_tps=args.min_tps, max_rss_mb=args.max_rss_mb,
            )
        )  # fmt: skip
        files.write(rollout)
    return _carry_out(args, rollout, files)


def run(args: argparse.Namespace) -> int:
    """Do one thing."""
    from toolkit.rollout.control import hold, require_open
    from toolkit.rollout.files import RolloutFiles, default_folder

    files = RolloutFiles(default_folder())
    if args.action == "list":
        return _list(args, files)
    rollout = files.read(args.id)
    if args.action == "show":
        return _print(args, rollout, files)
    if args.action == "back":
        return _back(args, rollout, files)
    if args.action == "resume":
        require_open(rollout)
        return _carry_out(args, rollout, files)
    return _print(args, hold(files, args.id, args.action), files)


def _new_id() -> str:
    import secrets
    import time

    return time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)


def _back(args: argparse.Namespace, left: Rollout, files: RolloutFiles) -> int:
    """Leave a roll-out's bundle: a roll-out of its own, of the bundle before."""
    from device_runtime.errors import ConfigurationError
    from toolkit.rollout.back import way_back

    if files.is_carried_out(left.plan.id):
        raise ConfigurationError(
            f"Roll-out {left.plan.id} is being carried out; end it first: stonechat rollout abort {left.plan.id}"
        )
    rollout_id, keys = _new_id(), signing_keys(args)
    with files.beginning(rollout_id):
        rollout = way_back(left, files, rollout_id, args.bundle, keys)
        if not left.ended:
            files.write(left.abort())
        files.write(rollout)
    return _carry_out(args, rollout, files)


def _carry_out(args: argparse.Namespace, rollout: Rollout, files: RolloutFiles) -> int:
    import signal

    from device_runtime.errors import ConfigurationError, DiskFullError
    from device_runtime.fleet import file as fleet
    from device_runtime.update.active import open_bundle
    from toolkit.rollout.rollout import Stage
    from toolkit.rollout.run import Runner
    from toolkit.rollout.sender import Sender

    plan = rollout.plan
    bundle = open_bundle(Path(plan.bundle), verify=True)
    if bundle.manifest_sha256 != plan.manifest_sha256:
        raise ConfigurationError(f"{plan.bundle} has changed since roll-out {plan.id} began; deploy it again.")
    address = fleet.load(plan.fleet).address_for(args.name or "operator", args.broker, args.password_file)
    say(f"roll-out {plan.id}: {plan.name} {plan.version} to {counted(len(plan.devices), 'device')} of {plan.group}")
    with files.carrying_out(plan.id), Sender(address, bundle, name=args.name) as sender:
        runner = Runner(rollout, files, sender, say, args.wait)
        before = {number: signal.signal(number, lambda *_: runner.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            rollout = runner.run()
        except DiskFullError:  # what was ordered is under way; its file knows how far it came
            say(f"once there is room, go on with: stonechat rollout resume {plan.id}")
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    _print(args, rollout, files)
    if not rollout.ended:
        say(f"go on with: stonechat rollout resume {plan.id}")
        return 130 if runner.interrupted else 3 if not rollout.paused else 1
    if rollout.stage is Stage.DONE:
        return 0 if all(device.message == "" for device in rollout.devices.values()) else 1
    return _stopped(rollout) if rollout.stage is Stage.STOPPED else 1


def _stopped(rollout: Rollout) -> int:
    """What all who failed have in common, as `deploy` to a single board would end; else 6."""
    from device_runtime.errors import DoesNotFitError, RolledBackError, SignatureError

    for error in (SignatureError, DoesNotFitError):
        if rollout.codes == {error.code}:
            return error.exit_code
    return RolledBackError.exit_code


def _list(args: argparse.Namespace, files: RolloutFiles) -> int:
    from toolkit.rollout.control import fields_of

    rollouts = [files.read(rollout_id) for rollout_id in files.ids()]
    none = ["no roll-outs; begin one with:", "  stonechat deploy BUNDLE --to fleet:GROUP --fleet FLEET.yaml"]
    lines = [(r.plan.id, f"{r.plan.name} {r.plan.version} to {r.plan.group}: {_sentence(r, files)}") for r in rollouts]
    fields = {"rollouts": [fields_of(rollout, files) for rollout in rollouts]}
    return show(args, fields, rows(lines) if lines else none)


def _print(args: argparse.Namespace, rollout: Rollout, files: RolloutFiles) -> int:
    from toolkit.rollout.control import fields_of

    plan = rollout.plan
    lines = []
    for name, device in rollout.devices.items():
        role = "canary" if name in rollout.canaries else ""
        note = device.message or (f"{device.tokens_per_s:.1f} tok/s" if device.tokens_per_s else "")
        lines.append((f"  {name}", f"{device.phase.value:<9}", f"{role:<6}", note))
    first = f"roll-out {plan.id}: {plan.name} {plan.version} to {plan.group}: {_sentence(rollout, files)}"
    return show(args, fields_of(rollout, files), [*paragraph(first), *table(lines)])


def _sentence(rollout: Rollout, files: RolloutFiles) -> str:
    from collections import Counter

    from toolkit.rollout.control import is_paused
    from toolkit.rollout.rollout import DevicePhase

    counts = Counter(device.phase for device in rollout.devices.values())
    order = (DevicePhase.CONFIRMED, DevicePhase.FAILED, DevicePhase.UPDATING, DevicePhase.WAITING)
    words = ", ".join(f"{counts[phase]} {phase.value}" for phase in order if counts[phase])
    paused = ", paused" if is_paused(rollout, files) else ""
    return f"{rollout.stage.value}{paused} ({words})"
