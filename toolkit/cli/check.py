"""`stonechat check`: find the faults of a fleet file, or whether a bundle fits a board, before a device does."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.records.printable import counted
from toolkit.cli.options import add_json, percent
from toolkit.cli.output import say, show

if TYPE_CHECKING:
    from boards.fit import Fit
    from device_runtime.bundle.manifest import Manifest
    from device_runtime.fleet.file import Fleet
    from device_runtime.fleet.links import Link
    from device_runtime.fleet.policies.escalation import Escalation

__all__ = ["HELP", "add_arguments", "run"]

HELP = "check a fleet file, or whether a bundle fits a board"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat check`."""
    parser.add_argument("path", metavar="FLEET.yaml|BUNDLE", type=Path, help="a bundle may be packed; nothing is run")
    parser.add_argument("--board", metavar="ID", help="the board to hold the bundle against, or a board file's path")
    parser.add_argument("--baseline", metavar="FILE", type=Path, help="fail when it costs more than this file says")
    parser.add_argument("--allow", metavar="PERCENT", type=percent, default=0.0, help="how much more (default 0)")
    parser.add_argument("--update-baseline", action="store_true", help="rewrite the baseline")
    parser.add_argument(
        "--force", metavar="REASON", type=_reason,
        help="exit 0 although it does not fit or costs more; the reason is printed, and the board still refuses it",
    )  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Tell a bundle from a fleet file by what the path is."""
    from device_runtime.errors import ConfigurationError

    if args.update_baseline and args.baseline is None:
        raise ConfigurationError("--update-baseline needs --baseline FILE, the file to write.")
    if args.path.is_dir() or _is_zip(args.path):
        if args.board is None:
            what = "a folder" if args.path.is_dir() else "a packed bundle"
            raise ConfigurationError(
                f"{args.path} is {what}; say for which board: --board ID (`stonechat boards list`)."
            )
        return _check_bundle(args)
    if args.board is not None or args.baseline is not None or args.force is not None:
        what = "is no bundle" if args.path.exists() else "is no bundle: it does not exist"
        raise ConfigurationError(
            f"{args.path} {what}; --board, --baseline and --force ask for one: its folder, or the .zip that "
            "`stonechat bundle pack` writes."
        )
    return _check_fleet(args)


def _check_bundle(args: argparse.Namespace) -> int:
    """Print every figure and the verdict; exit 5 when the bundle does not fit, 1 when it costs more than it did."""
    from boards import load_board
    from boards.fit import Subject, explain, fit
    from device_runtime.errors import DoesNotFitError
    from toolkit.fit_report import fit_fields, fit_lines

    board = load_board(args.board)
    result = fit(board, Subject.of_manifest(_manifest(args.path)))
    grown = _against_baseline(args, result) if args.baseline and result.fits else []
    forced = args.force if grown or not result.fits else None
    show(args, fit_fields(result, grown) | {"forced": forced}, fit_lines(result))
    if args.force is not None:
        return _forced(args, result, grown)
    if not result.fits:
        if args.json:
            return DoesNotFitError.exit_code
        raise DoesNotFitError(explain(result))
    if grown:
        say("\n  ".join([f"stonechat: it costs more than {args.baseline} says:", *grown]))
        return 1
    return 0


def _forced(args: argparse.Namespace, result: Fit, grown: list[str]) -> int:
    """Say what --force has changed: the exit code, and nothing else."""
    from boards.fit import explain

    if result.fits and not grown:
        say("stonechat: --force was not needed: it fits, and costs no more than before")
        return 0
    if not result.fits:
        say(f"stonechat: {explain(result)}")
        say(
            f"stonechat: forced: {args.force}. This check ends with 0; `convert --board`, `deploy` and the board "
            "itself refuse the bundle all the same."
        )
    else:
        say("\n  ".join([f"stonechat: it costs more than {args.baseline} says:", *grown]))
        say(f"stonechat: forced: {args.force}. This check ends with 0; the baseline is as it was (--update-baseline).")
    return 0


def _reason(text: str) -> str:
    """An argparse type: words that a later reader of the log will want."""
    if not text.strip():
        raise argparse.ArgumentTypeError("a reason is required, such as --force 'measured on the board: 92 KiB free'")
    return text.strip().rstrip(".")


def _manifest(path: Path) -> Manifest:
    """Of a bundle in either form; a packed one is read, not unpacked."""
    from device_runtime.bundle.archive import Archive
    from device_runtime.update.active import open_bundle

    if path.is_dir():
        manifest = open_bundle(path).manifest
    else:
        with Archive.open(path) as archive:
            manifest = archive.manifest
    manifest.require_present_graph()
    return manifest


def _against_baseline(args: argparse.Namespace, result: Fit) -> list[str]:
    from toolkit.baseline import growth, read_baseline, write_baseline

    path: Path = args.baseline
    costs = {name: figure.value for name, figure in result.figures.items() if figure.cost}
    if args.update_baseline or not path.exists():
        write_baseline(path, result.board.id, result.subject.name, costs)
        say(f"stonechat: wrote {path}")
        return []
    return growth(read_baseline(path, result.board.id), costs, args.allow)


def _is_zip(path: Path) -> bool:
    """By its name, so that a damaged one is reported as such, or by how it begins."""
    if path.suffix.lower() == ".zip" or not path.is_file():
        return path.is_file()
    with suppress(OSError), path.open("rb") as file:
        return file.read(2) == b"PK"
    return False


def _check_fleet(args: argparse.Namespace) -> int:
    """Report every fault of the file, of the files that it names, and of what its devices ask of bundles on this
    machine."""
    from device_runtime.bundle.folder import Bundle
    from device_runtime.bundle.manifest import MANIFEST
    from device_runtime.engine.opening import schema_check
    from device_runtime.errors import ConfigurationError, StonechatError
    from device_runtime.fleet import file as fleet
    from device_runtime.fleet.link_faults import why_left_out
    from device_runtime.fleet.named_files import named_files
    from device_runtime.update.active import resolve

    plan = fleet.load(args.path)
    named = named_files(plan)
    elsewhere: dict[str, str] = {}
    faults = [f"{args.path}: {fault}" for fault in named.faults]
    warnings = list(named.warnings)
    for device in plan.devices:
        try:
            models = plan.models_of(device)
        except ConfigurationError as error:
            faults.append(f"{args.path}, device {device!r}: {error}")
            continue
        manifests: dict[str, Manifest] = {}  # of the bundles on this machine
        refused: dict[str, Mapping[str, str]] = {}  # model -> link -> why it cannot answer that
        for name, model in models.items():
            try:
                path = resolve(Path(model.bundle))
                if not (path / MANIFEST).is_file():
                    if path.is_file():
                        raise ConfigurationError(
                            f"{args.path}: models.{name}.bundle: {path} is a file; name the folder of a bundle, or a "
                            "folder of slots (a packed one goes there with `stonechat slots install BUNDLE.zip DIR`)."
                        )
                    elsewhere[name] = str(path)
                    continue
                bundle = Bundle.open(path)
                bundle.manifest.require_present_graph()
                refused[name] = plan.refused_links(device, name, bundle.manifest, schema_check(bundle))
                manifests[name] = bundle.manifest
                plan.check_model(device, name, bundle.manifest)
            except StonechatError as error:
                faults.append(str(error))
        for link, asked in plan.asking(device):
            whys = {name: found[link.name] for name, found in refused.items() if link.name in found}
            if why := why_left_out(link, asked, whys):
                faults.append(f"{args.path}, device {device!r}: {why}")
            else:
                warnings += _in_vain(device, link, link.escalate or plan.devices[device].escalate, whys)
            if all(name in manifests for name in asked):
                warnings += _warnings(link, [manifests[name] for name in asked])
    if faults:
        raise ConfigurationError("\n".join(dict.fromkeys(faults)))
    counts = {"models": len(plan.models), "devices": len(plan.devices), "links": len(plan.links)}
    served = {name for device in plan.devices.values() for name in device.links}
    unserved = [link.name for link in plan.links if link.name not in served]
    words = [counted(count, name.removesuffix("s")) for name, count in counts.items()]
    return show(
        args,
        {
            "file": str(args.path),
            **counts,
            "bundles_elsewhere": elsewhere,
            "files_elsewhere": named.elsewhere,
            "links_unserved": unserved,
            "warnings": list(dict.fromkeys(warnings)),
        },
        [
            f"{args.path}: {', '.join(words)}; no faults",
            *(
                f"the bundle of {name} is not on this machine ({missing}); what links ask of it was not checked"
                for name, missing in elsewhere.items()
            ),
            *(
                f"{at} is not on this machine, or not to be read by you ({missing}); it was not checked"
                for at, missing in named.elsewhere.items()
            ),
            *(f"warning: {warning}" for warning in dict.fromkeys(warnings)),
            *_broker_lines(plan),
            *(f"the link {name} is in the `links` of no device; nobody listens to its readings" for name in unserved),
        ],
    )


def _in_vain(device: str, link: Link, policy: Escalation | None, whys: Mapping[str, str]) -> Iterator[str]:
    """What becomes of readings for which the router finds a model that cannot answer them, where others can."""
    end = "has no answer, but the event link_refused"
    if policy is not None and "malformed" in policy.when:
        end = f"goes on to {policy.to.name}, as malformed"
    for name, why in whys.items():
        yield (
            f"device {device!r}: a reading of link {link.name!r} for which the router finds the model {name!r} {end}. "
            f"{why}"
        )


def _warnings(link: Link, manifests: Sequence[Manifest]) -> Iterator[str]:
    """What a device would do with any reading, and nobody would want of it; `manifests` are of all that it may ask."""
    from device_runtime.fleet.link_faults import judged_numbers

    trained = [manifest.purpose is not None for manifest in manifests]
    if all(trained) and (link.examples or link.system):
        yield f"the link {link.name} has examples or a system message, which a bundle of a task does not read"
    if not any(trained) and (numbers := judged_numbers(link)):
        yield (
            f"the link {link.name} has a general model judge numbers ({', '.join(numbers)}), where it guesses; "
            "give such fields to expressions with `decide`, or train a model for it (stonechat task new), and see "
            "how it does with stonechat try"
        )


def _broker_lines(fleet: Fleet) -> list[str]:
    """What has to be done with the files of the broker, as far as they are on this machine."""
    from toolkit.broker.access import is_current

    folder = fleet.certs_folder()
    acl = folder / "acl" if folder is not None else None
    if folder is None or acl is None or not acl.is_file() or is_current(acl.read_text(encoding="utf-8")):
        return []
    return [
        f"{acl} is of an earlier stonechat and lets every user pose as a device; renew it: stonechat broker init "
        f"{folder}, then copy it to the broker"
    ]
