"""The four trained bundles beside a general model that is shown examples and whose labels are scored.

    python benchmarks/specialised.py GENERAL_BUNDLE [--cases 60] [--shown 8]

Both answer the same held-out inputs of each example, one after the other, on one thread. Printed are the typed fields
that each has wrong, and answers a second of CPU time (a busy machine stretches wall time, CPU time hardly). The general
model sees what the task is and examples as turns; a prompt's beginning that comes again is not computed again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from device_runtime.tasks.answering import Answerer  # noqa: E402
from device_runtime.tasks.examples import Example, read_examples  # noqa: E402
from device_runtime.tasks.file import Task, load  # noqa: E402
from device_runtime.tasks.purpose import Purpose  # noqa: E402
from device_runtime.tasks.score import score  # noqa: E402
from device_runtime.update.active import open_bundle  # noqa: E402
from tests.support.heldout_readings import HELD_OUT  # noqa: E402
from toolkit.examples.sources import all_examples  # noqa: E402

TASKS = ("boiler-advisor", "fall-alert", "home-commands", "log-triage")
SEED = 20_000  # of the examples that the general model is shown


def heldout(task: Task, count: int) -> list[Example]:
    """Inputs that the task's generator did not make."""
    if task.name in HELD_OUT:
        return [Example(case["input"], case["answer"]) for case in HELD_OUT[task.name](count, 4711)]
    found = read_examples(task.folder / "heldout-2.jsonl", task.inputs, task.answer)
    return random.Random(0).sample(found, min(count, len(found)))


def asked(answerer: Answerer, examples: Sequence[Example]) -> tuple[int, int, float]:
    """Typed fields that are wrong, of how many, and answers a second of CPU; the first answer is not timed."""
    answerer.answer(examples[0].input)
    begin_s = time.process_time()
    answers = [answerer.answer(example.input) for example in examples]
    seconds = time.process_time() - begin_s
    found = score(answerer.purpose, examples, answers)
    return found.typed_count - found.typed_right, found.typed_count, len(examples) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("general", type=Path)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--shown", type=int, default=8)
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in args.tasks:
        task = load(ROOT / "examples" / name)
        examples = heldout(task, args.cases)
        special = Answerer.open(task.folder / "bundle", threads=1)
        shown = list(islice(all_examples(task, args.shown, SEED), args.shown))
        general = Answerer(open_bundle(args.general), Purpose.of_task(task), shown=shown, threads=1)
        wrong, of, per_s = asked(special, examples)
        general_wrong, _, general_per_s = asked(general, examples)
        special.close()
        general.close()
        row = {"task": name, "inputs": len(examples), "fields": of, "wrong": wrong, "general_wrong": general_wrong}
        row |= {"share_of_errors": round(wrong / max(general_wrong, 1), 3), "per_cpu_s": round(per_s, 1)}
        row |= {"general_per_cpu_s": round(general_per_s, 2), "times": round(per_s / general_per_s, 1)}
        rows.append(row)
        print(
            f"{name:16} {wrong:3} of {of} fields wrong, the general model {general_wrong:3} "
            f"({row['share_of_errors']:.1%} of its errors); {per_s:6.1f} and {general_per_s:5.2f} answers "
            f"a second of CPU ({row['times']:.0f} times)",
            flush=True,
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
