"""What a larger model is worth on the lines of log-triage of which the small bundle is unsure.

    python benchmarks/two_models.py FAR [FAR ...] [--below 0.8]

All 826 held-out lines are answered by examples/log-triage/bundle and by each other bundle FAR. Those of which the first
is unsure, or that are unfamiliar to it, would leave a device (docs/guides/escalation.md). Printed are their fields that
are wrong by the small bundle, by the other's answer alone, and by both together as `escalate` has it; and the same of
the fields on which the line's author and three other readers agree (second-labels.csv).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agreement import FIELDS, TASK, Answer, is_agreed, labelled

from device_runtime.brain.far.side import FarAnswer
from device_runtime.brain.two_answers import joined
from device_runtime.engine.generation import Certainty
from device_runtime.engine.opening import open_model


class Said(NamedTuple):
    """A model's answer."""

    text: str
    certainty: Certainty
    unfamiliar: str

    def leaves(self, below: float) -> bool:
        """Whether the question is passed on."""
        return bool(self.unfamiliar) or min((self.certainty.confidence or {}).values(), default=0.0) < below


def answers(bundle: Path, texts: Sequence[str]) -> list[Said]:
    """What a bundle says of each text."""
    model, found = open_model(bundle, threads=1), []
    for text in texts:
        generation = model.generate(text)
        whole = "".join(generation)
        done = generation.result
        found.append(Said(whole, Certainty(done.confidence, done.probabilities), "; ".join(done.unfamiliar)))
    return found


def together(mine: Said, other: Said, below: float) -> str:
    """As a device has it that passes its unsure questions on."""
    confidence, probabilities = other.certainty
    far = FarAnswer(other.text, "far", confidence=confidence, probabilities=probabilities)
    return far.text if mine.unfamiliar else joined(mine.text, mine.certainty, far, below, at_once=True).text


def wrong(text: str, right: Answer, fields: Sequence[str]) -> int:
    """How many of these fields differ from the author's."""
    answer: Any = json.loads(text) or {}
    return sum(answer.get(field) != right[field] for field in fields)


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description="a small bundle and a larger one on the lines that leave")
    parser.add_argument("bundles", nargs="+", type=Path, metavar="FAR")
    parser.add_argument("--below", type=float, default=0.8, help="from which confidence on an answer is sure")
    args = parser.parse_args()
    given = labelled()
    texts = [text for text, _ in given]
    mine = answers(TASK / "bundle", texts)
    left = [i for i, said in enumerate(mine) if said.leaves(args.below)]
    print(f"{len(left)} of {len(given)} lines leave")
    for bundle in args.bundles:
        other = answers(bundle, texts)
        for name, agreed in (("all fields", False), ("those on which four readers agree", True)):
            counted = [0, 0, 0]
            for i in left:
                four = given[i][1]
                fields = [field for field in FIELDS if not agreed or is_agreed(four, field)]
                for place, text in enumerate((mine[i].text, other[i].text, together(mine[i], other[i], args.below))):
                    counted[place] += wrong(text, four[0], fields)
            print(f"{bundle}, {name}: {counted[0]} wrong, its answer alone {counted[1]}, both together {counted[2]}")


if __name__ == "__main__":
    main()
