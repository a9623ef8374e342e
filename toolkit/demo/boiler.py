"""The boiler advisor beside the general model: the same readings, asked of both, and what is true."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from device_runtime.tasks.answering import Answerer, TypedAnswer
from device_runtime.tasks.file import load
from device_runtime.tasks.purpose import Purpose
from device_runtime.tasks.rules import Truth
from device_runtime.update.active import open_bundle
from toolkit.examples.sources import all_examples

__all__ = ["READINGS", "beside"]

EXAMPLE = Path(__file__).parents[2] / "examples" / "boiler-advisor"
READINGS: tuple[Mapping[str, Any], ...] = (
    {"temp_c": 71.5, "bar": 1.6, "flow_l_min": 11.8},
    {"temp_c": 74.0, "bar": 3.1, "flow_l_min": 12.4},
    {"temp_c": 83.2, "bar": 1.5, "flow_l_min": 0.4, "window": [{"temp_c": 78.9, "bar": 1.5, "flow_l_min": 6.0}]},
    {"temp_c": 68.1, "bar": 0.8, "flow_l_min": 10.9},
)
_SHOWN, _SHOWN_SEED = 8, 20_000  # examples that the general model is shown
_COLUMNS = 80


def beside(general: Path) -> tuple[int, int]:
    """Print the answers of both; returns how many of each were right."""
    task = load(EXAMPLE)
    truth, shown = Truth(task), list(islice(all_examples(task, _SHOWN, _SHOWN_SEED), _SHOWN))
    bundle = open_bundle(general)
    small = Answerer.open(EXAMPLE / "bundle")
    large = Answerer(bundle, Purpose.of_task(task), shown=shown)
    right = [0, 0]
    sizes = [_megabytes(EXAMPLE / "bundle"), _megabytes(bundle.path)]
    print(f"Boiler readings: the advisor ({sizes[0]:.1f} MB) and the general model ({sizes[1]:.0f} MB)\n")
    try:
        for reading in READINGS:
            print(_reading(reading))
            expected = truth.answer(reading) or {}
            for number, (name, answerer) in enumerate((("advisor", small), ("general", large))):
                found = answerer.answer(reading)
                good = _typed(found) == (expected["severity"], expected["cause"])
                right[number] += good
                _print(name, found, "right" if good else f"wrong: {expected['severity']}, {expected['cause']}")
    finally:
        small.close()
        large.close()
    print(f"\nRight: the advisor {right[0]} of {len(READINGS)}, the general model {right[1]}.\n", flush=True)
    return right[0], right[1]


def _print(name: str, found: TypedAnswer, verdict: str) -> None:
    sure = min(found.confidence.values(), default=0.0)
    said = ", ".join(str(value) for value in _typed(found))
    print(f"  {name}  {said} ({sure:.0%} sure)  {verdict}")
    advice = str((found.answer or {}).get("advice", ""))
    print(textwrap.fill(advice, _COLUMNS, initial_indent=" " * 11, subsequent_indent=" " * 11), flush=True)


def _typed(found: TypedAnswer) -> tuple[Any, Any]:
    answer = found.answer or {}
    return answer.get("severity"), answer.get("cause")


def _reading(reading: Mapping[str, Any]) -> str:
    before = f", before that {reading['window'][0]['temp_c']} °C" if reading.get("window") else ""
    return f"{reading['temp_c']} °C{before}, {reading['bar']} bar, {reading['flow_l_min']} l/min"


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix == ".tflite") / 1e6
