"""`stonechat compare`: what local and escalated answers took, in time and energy, from their records."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.cli.options import add_json, amount, positive_number

__all__ = ["HELP", "add_arguments", "run"]

HELP = "compare local and escalated answers in time, energy and CO2, from records"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat compare`."""
    parser.add_argument(
        "records", metavar="RECORDS.jsonl", type=Path, nargs="+", help="as `stonechat records` writes them"
    )
    parser.add_argument(
        "--far-w", metavar="W", type=positive_number, help="what the larger model's machine draws while it answers"
    )
    parser.add_argument("--grid", metavar="G_PER_KWH", type=amount, help="grams of CO2 a kilowatt-hour costs")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print both sides."""
    from device_runtime.errors import ConfigurationError
    from toolkit.brain.router_training import lines_of
    from toolkit.cli.output import show, table

    found: dict[str, list[Mapping[str, Any]]] = {"local": [], "escalated": []}
    for path in args.records:
        for line in lines_of(path):
            entry = _record(line)
            if entry is None:
                raise ConfigurationError(f"{path} holds {line[:60]!r}; expected records of answers, a line each.")
            where = entry.get("route", {}).get("where", "here")
            found["local" if where == "here" else "escalated"].append(entry)
    sides = {
        side: _of_side(entries, args.far_w if side == "escalated" else None, args.grid)
        for side, entries in found.items()
    }
    places = {"took_ms": 1, "j": 3, "mwh": 4, "mg_co2": 3}
    lines = [
        (side, str(of["answers"]), *(_shown(of[figure], digits) for figure, digits in places.items()))
        for side, of in sides.items()
    ]
    header = ("", "answers", "ms", "J", "mWh", "mg CO2")
    return show(
        args, {**sides, "far_w": args.far_w, "grid_g_per_kwh": args.grid}, table(lines, header, right=range(1, 6))
    )


def _record(line: str) -> Mapping[str, Any] | None:
    """A record, as far as it is looked at here; None: the line is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not _is_figure(entry.get("took_ms")):
        return None
    energy = entry.get("energy")
    if not isinstance(entry.get("route", {}), dict) or not isinstance(energy, Mapping | None):
        return None
    if energy is not None and not (_is_figure(energy.get("j")) and isinstance(energy.get("how"), str)):
        return None
    return entry


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _of_side(entries: Sequence[Mapping[str, Any]], far_w: float | None, grid: float | None) -> dict[str, Any]:
    """Means of an answer. The larger model's energy is computed: its machine's power over the whole time it took."""
    from device_runtime.machine.power import energy_fields, grams_co2

    took = [float(entry["took_ms"]) for entry in entries]
    own = [float(entry["energy"]["j"]) for entry in entries if entry.get("energy") is not None]
    took_ms = statistics.mean(took) if took else None
    joules = statistics.mean(own) if own else None
    if far_w is not None and took_ms is not None:
        joules = (joules or 0.0) + far_w * took_ms / 1000
    energy = energy_fields(joules, "") if joules is not None else {"j": None, "mwh": None}
    co2 = round(grams_co2(joules, grid) * 1000, 4) if joules is not None and grid is not None else None
    how = sorted({entry["energy"]["how"] for entry in entries if entry.get("energy") is not None})
    return {
        "answers": len(entries),
        "took_ms": took_ms,
        "j": energy["j"],
        "mwh": energy["mwh"],
        "mg_co2": co2,
        "how": how,
    }


def _shown(value: float | None, places: int) -> str:
    return "?" if value is None else f"{value:.{places}f}"
