"""How far readers agree about the labels of log-triage's held-out lines, which is what a model can reach at most.

    python benchmarks/agreement.py [BUNDLE ...]

Three who had read only what the README of examples/log-triage says is true gave each line of heldout-2 to heldout-8 a
category and a priority, without its author's labels (second-labels.csv). Printed are how often they agree with the
author and with each other, and for each bundle the fields that it has right: of all, and of those on which all four
agree.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from mixed_inputs import ROOT

from device_runtime.engine.opening import open_model

TASK = ROOT / "examples" / "log-triage"
FIELDS = ("category", "priority")

Answer = Mapping[str, str]


def labelled() -> list[tuple[str, Sequence[Answer]]]:
    """Each line with four answers: its author's, then those of the three."""
    lines = {file.name: file.read_text(encoding="utf-8").splitlines() for file in TASK.glob("heldout-*.jsonl")}
    found: list[tuple[str, Sequence[Answer]]] = []
    for row in csv.DictReader((TASK / "second-labels.csv").read_text(encoding="utf-8").splitlines()):
        case = json.loads(lines[row["file"]][int(row["line"]) - 1])
        others = [dict(zip(FIELDS, row[who].split(), strict=True)) for who in ("first", "second", "third")]
        found.append((case["input"]["text"], [case["answer"], *others]))
    return found


def is_agreed(four: Sequence[Answer], field: str) -> bool:
    """Whether all four say the same of a field."""
    return len({answer[field] for answer in four}) == 1


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description="agreement about the held-out lines of log-triage")
    parser.add_argument("bundles", nargs="*", type=Path)
    args = parser.parse_args()
    given = labelled()
    for field in FIELDS:
        answers = [[answer[field] for answer in four] for _, four in given]

        def agree(a: int, b: int, answers: Sequence[Sequence[str]] = answers) -> str:
            return f"{sum(four[a] == four[b] for four in answers) / len(answers):.1%}"

        print(f"{field}: with the author {', '.join(agree(0, who) for who in (1, 2, 3))}; ", end="")
        print(f"with each other {', '.join(agree(a, b) for a, b in combinations((1, 2, 3), 2))}; ", end="")
        print(f"all four {sum(is_agreed(four, field) for _, four in given) / len(answers):.1%} of {len(answers)} lines")
    for bundle in args.bundles:
        model = open_model(bundle, threads=1)
        right, same, same_right = 0, 0, 0
        for text, four in given:
            said = json.loads("".join(model.generate(text)))
            for field in FIELDS:
                is_right, is_same = said[field] == four[0][field], is_agreed(four, field)
                right, same, same_right = right + is_right, same + is_same, same_right + (is_right and is_same)
        fields = len(given) * len(FIELDS)
        print(f"{bundle}: {right / fields:.1%} of {fields} fields, {same_right / same:.1%} of the {same} agreed ones")


if __name__ == "__main__":
    main()
