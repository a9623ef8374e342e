"""Inputs of the four example tasks that nothing was trained on, mixed with 20 % that are for none of them."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from tests.support.heldout_readings import HELD_OUT, _boiler_truth  # noqa: E402

__all__ = ["TASKS", "Mixed", "boiler_truth", "mixed"]

boiler_truth = _boiler_truth  # (temp_c, bar, flow_l_min, window) -> severity, cause

TASKS = ("boiler-advisor", "fall-alert", "home-commands", "log-triage")
_TEXTS = (  # besides what converters/texts keeps apart
    "Who painted the ceiling of the Sistine Chapel?", "Convert 14 ounces to grams.", "SELECT * FROM users ORDER BY age",
    "Roast the carrots with honey and thyme for half an hour.", "The minister resigned on Wednesday after the debate.",
    "Wie komme ich zum Hauptbahnhof?", "Quelle heure est-il à Tokyo ?", "My knee hurts when I climb stairs.",
    "import numpy as np", "Let epsilon be greater than zero.", "Please find attached the invoice for September.",
    "Recommend a film for a rainy Sunday.", "Does the museum open on public holidays?", "E = m c^2",
    "Mix the flour, sugar and two eggs.", "The striker scored twice before half-time.", "How tall is Mount Kenya?",
    "A detective returns to her village.", "Interest rates may rise again next spring.", "What rhymes with orange?",
)  # fmt: skip
_READINGS = (  # fields of sensors that no task knows
    ("humidity", "lux"), ("ph", "turbidity"), ("speed_kmh", "heading"), ("soil_moisture",), ("voltage", "current_a"),
    ("co2_ppm", "voc"), ("battery", "rssi"), ("rain_mm", "wind_m_s"), ("weight_kg",), ("level_cm", "valve"),
)  # fmt: skip


@dataclass(frozen=True)
class Mixed:
    """One input."""

    prompt: str
    task: str | None  # that it is for; None: none of them
    answer: Mapping[str, Any] | None  # what is right


def mixed(each: int, seed: int = 1) -> list[Mixed]:
    """`each` inputs of each task and as many for none of them, in an order that the seed decides."""
    found = [case for name in TASKS for case in _of_task(name, each)]
    rng = random.Random(seed)
    kept = list(_kept_apart())
    texts = [*_TEXTS, *rng.sample(kept, min(each, len(kept)))][: each - each // 2]
    readings = [
        json.dumps({name: round(rng.uniform(0, 100), 1) for name in _READINGS[number % len(_READINGS)]})
        for number in range(each // 2)
    ]
    found += [Mixed(prompt, None, None) for prompt in (*texts, *readings)]
    rng.shuffle(found)
    return found


def _of_task(name: str, count: int) -> Iterator[Mixed]:
    if name in HELD_OUT:
        for case in HELD_OUT[name](count, 4711):
            yield Mixed(json.dumps(case["input"]), name, case["answer"])
        return
    files = sorted((ROOT / "examples" / name).glob("heldout-*.jsonl"))  # heldout.jsonl calibrates the bundles
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    for row in random.Random(4711).sample(rows, min(count, len(rows))):
        yield Mixed(row["input"]["text"], name, row["answer"])


def _kept_apart() -> Iterator[str]:
    """Sentences and questions of the texts that no training and no calibration sees."""
    folder = ROOT / "converters" / "texts" / "heldout"
    for name in ("prose.txt", "documentation.txt"):
        pieces = re.split(r"(?<=[.!?])\s+|\n\n", (folder / name).read_text(encoding="utf-8"))
        yield from (" ".join(piece.split()) for piece in pieces if len(piece.split()) > 3)
