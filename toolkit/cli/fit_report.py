"""The report of `stonechat check BUNDLE --board ID`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boards.fit import Figure, Fit
    from device_runtime.bundle.manifest import Manifest

__all__ = ["check_bundle"]


def check_bundle(args: argparse.Namespace) -> int:
    """Print every figure and the verdict; exit 5 when the bundle does not fit, 1 when it costs more than it did."""
    from boards import load_board
    from boards.fit import Subject, explain, fit
    from device_runtime.errors import DoesNotFitError

    board = load_board(args.board)
    result = fit(board, Subject.of_manifest(_manifest(args.path)))
    if not args.json:
        _print(result)
    grown = _against_baseline(args, result) if args.baseline and result.fits else []
    if args.json:
        print(json.dumps(_as_json(result, grown), ensure_ascii=False))
    if not result.fits:
        if args.json:
            return DoesNotFitError.exit_code
        raise DoesNotFitError(explain(result))
    if grown:
        print(f"stonechat: it costs more than {args.baseline} says:", *grown, sep="\n  ", file=sys.stderr)
        return 1
    return 0


def _manifest(path: Path) -> Manifest:
    """Of a bundle in either form; a packed one is read, not unpacked."""
    from device_runtime.bundle.archive import Archive
    from device_runtime.update.slots import open_bundle

    if path.is_dir():
        return open_bundle(path).manifest
    with Archive.open(path) as archive:
        return archive.manifest


def _against_baseline(args: argparse.Namespace, result: Fit) -> list[str]:
    from toolkit.baseline import growth, read_baseline, write_baseline

    path: Path = args.baseline
    costs = {name: figure.value for name, figure in result.figures.items() if figure.cost}
    if args.update_baseline or not path.exists():
        write_baseline(path, result.board.id, result.subject.name, costs)
        print(f"stonechat: wrote {path}", file=sys.stderr)
        return []
    return growth(read_baseline(path, result.board.id), costs, args.allow)


def _as_json(result: Fit, grown: list[str]) -> dict[str, object]:
    return {
        "board": result.board.id,
        "bundle": result.subject.name,
        "profile": result.subject.profile,
        "context": result.subject.context,
        "fits": result.fits,
        "problems": list(result.problems),
        "remedies": list(result.remedies),
        "largest_context": result.largest_context,
        "grown": grown,
        "figures": {name: asdict(figure) for name, figure in result.figures.items()},
    }


def _print(result: Fit) -> None:
    subject, board = result.subject, result.board
    print(f"{subject.name}, profile {subject.profile}, context {subject.context}, on {board.name} ({board.id})")
    for figure in result.figures.values():
        print(f"{figure.label:<42}{_value(figure):>18}  {figure.kind}")
    print("it fits" if result.fits else "it does not fit")


def _value(figure: Figure) -> str:
    if figure.unit == "bytes":
        return f"{figure.value / 1024:,.0f} KiB"
    if figure.unit == "bytes/s":
        return f"{figure.value / 1e6:,.0f} MB/s"
    digits = 0 if figure.unit == "positions" or figure.value >= 100 else 1
    return f"{figure.value:,.{digits}f} {figure.unit}"
