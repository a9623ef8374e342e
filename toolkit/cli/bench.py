"""`stonechat bench`: how fast a bundle runs on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.records.printable import counted
from toolkit.cli.options import add_json, add_runtime, amount, whole_number
from toolkit.cli.output import show, table

if TYPE_CHECKING:
    from device_runtime.bundle.manifest import Manifest
    from toolkit.bench import Run

__all__ = ["HELP", "add_arguments", "run"]

HELP = "measure load time, prefill, decode and memory of a bundle on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat bench`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--runs", metavar="N", type=whole_number(1), default=5, help="processes to measure (default 5)")
    parser.add_argument("--prompt-tokens", metavar="N", type=whole_number(1), help="default 64, or what fits")
    parser.add_argument("--new-tokens", metavar="N", type=whole_number(2), help="default 128, or what fits")
    parser.add_argument(
        "--grid",
        metavar="G_PER_KWH",
        type=amount,
        help="grams of CO2 a kilowatt-hour costs, to print those of an answer",
    )
    add_runtime(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print medians and spread."""
    from dataclasses import asdict

    from device_runtime.update.active import open_bundle
    from toolkit.bench import FIGURES, measure, spread
    from toolkit.progress import ProgressBar

    manifest = open_bundle(args.bundle).manifest
    prompt_tokens, new_tokens, needed = _lengths(args, manifest)
    with ProgressBar() as bar:
        runs = list(
            measure(
                args.bundle,
                runs=args.runs,
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens,
                threads=args.threads,
                backend=args.backend,
                progress=bar.update,
            )
        )
    figures = spread(runs)
    bytes_per_token = manifest.graph.bytes_per_token(needed)
    lines = [
        (label, *(f"{figures[figure][what]:.1f}" for what in ("median", "min", "max")), unit)
        for figure, (label, unit) in FIGURES.items()
        if not (figure == "decode_tokens_per_s" and manifest.task in ("embed", "classify"))  # nothing is written
    ]
    lines.append(("bytes per token", f"{bytes_per_token / 1e6:.1f}", "", "", "MB"))
    energy = _energy(runs, args.grid)
    if energy:
        lines.append((f"energy an answer ({energy['how']})", f"{energy['j']:.2f}", "", "", "J"))
        lines.append(("", f"{energy['mwh']:.3f}", "", "", "mWh"))
        lines += [("CO2 an answer", f"{energy['mg_co2']:.2f}", "", "", "mg")] if "mg_co2" in energy else []
    return show(
        args,
        {
            "figures": figures,
            "bytes_per_token": bytes_per_token,
            "energy": energy or None,
            "runs": [asdict(r) for r in runs],
        },
        table(lines, ("", "median", "min", "max", ""), right=(1, 2, 3)),
    )


def _lengths(args: argparse.Namespace, manifest: Manifest) -> tuple[int, int, int]:
    """Tokens of the prompt, new tokens, and the positions of the context that they take together.

    Raises:
        ContextOverflowError: what was asked for is more than the context holds.
    """
    from device_runtime.errors import ContextOverflowError

    room = manifest.context - len(manifest.prefix_tokens)
    apart = manifest.encoder is not None  # the text and its translation have a cache each
    prompt = args.prompt_tokens or min(64, room if apart else max(1, room // 3))
    new = args.new_tokens or min(128, room if apart else max(2, room - prompt))
    needed = len(manifest.prefix_tokens) + prompt + new
    if apart:
        needed = max(prompt, new if manifest.task == "translate" else 0)
    if needed > manifest.context:
        raise ContextOverflowError(
            f"{counted(prompt, 'token')} of a prompt (--prompt-tokens) and {counted(new, 'new one')} (--new-tokens) "
            f"need {needed} positions; the context holds {manifest.context}.",
            tokens=needed,
            context=manifest.context,
        )
    return prompt, new, needed


def _energy(runs: list[Run], g_per_kwh: float | None) -> dict[str, Any]:
    """Of an answer, the median; nothing where this machine does not say it."""
    import statistics

    from device_runtime.machine.power import energy_fields, grams_co2

    known = [run.energy_j for run in runs if run.energy_j is not None]
    if not known:
        return {}
    found = energy_fields(statistics.median(known), runs[0].energy_how or "")
    if g_per_kwh is not None:
        found["mg_co2"] = round(grams_co2(found["j"], g_per_kwh) * 1000, 4)
    return found
