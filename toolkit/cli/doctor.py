"""`stonechat doctor`: what may be wrong with this machine."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options import add_json
from toolkit.cli.output import print_json, rows, say

if TYPE_CHECKING:
    from toolkit.doctor import Finding

__all__ = ["HELP", "add_arguments", "print_findings", "run"]

HELP = "find what is wrong with this machine, as a device"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat doctor`."""
    parser.add_argument("--fleet", metavar="FLEET.yaml", type=Path, help="check its broker and its model too")
    parser.add_argument("--device", metavar="ID", help="which device of the file this is")
    parser.add_argument("--board", metavar="ID", help="a board, or a board file (default: found out)")
    parser.add_argument("--broker", metavar="URL", help="in place of the fleet file's")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Examine; 1 when something is broken."""
    from device_runtime.errors import ConfigurationError
    from device_runtime.fleet import file as fleet
    from toolkit.doctor import examine

    if (args.device is None) != (args.fleet is None):
        raise ConfigurationError("--fleet and --device go together: which device of which file is this?")
    plan = fleet.load(args.fleet) if args.fleet else None
    if plan is not None:
        plan.models_of(args.device)
    return print_findings(examine(plan, args.device, args.board, args.broker), args.json)


def print_findings(findings: Iterable[Finding], as_json: bool) -> int:
    """One line each as it comes, or all as JSON; returns the exit code."""
    from toolkit.doctor import Level

    found = []
    for finding in findings:
        found.append(finding)
        if not as_json:
            lines = [(finding.level.value, finding.what, finding.found)]
            if finding.next:
                lines.append(("", "", f"-> {finding.next}"))
            for level, what, text in lines:
                print(*rows([(f"{level:<5} {what:<11}", text)]), sep="\n", flush=True)
    failed = sum(finding.level is Level.FAIL for finding in found)
    if as_json:
        fields = [vars(finding) | {"level": finding.level.value} for finding in found]
        print_json({"ok": not failed, "findings": fields})
    elif failed:
        say(f"stonechat: {failed} of {len(found)} checks failed")
    return 1 if failed else 0
