"""A task that no example has, from its task file with fifty examples and rules to a bundle that is checked.

    python benchmarks/train_budget.py [--steps N] [--cases N] [--keep FOLDER]

It does what docs/guides/train.md says, with the commands that a user types, on two threads: `task generate` of fifty
examples, `task check`, `train`, `eval` on a thousand readings that the generator did not make. Printed are wall time,
CPU time of all processes (a busy machine stretches wall time, CPU time hardly), the peak of memory, and the typed
fields that are right. The targets are 15 minutes on two cores, so 1,800 s of CPU, and 3 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TASK = """task: 1
name: cold-room
about: Says whether a cold room needs somebody, and why.
kind: tiny
input:
  fields:
    temp_c: {unit: °C, from: -40, to: 40, step: 0.1, usual: [-30, -10]}
    humidity: {unit: "%", from: 0, to: 100, step: 1, usual: [60, 95]}
    door: {one_of: [open, shut]}
    compressor_a: {unit: A, from: 0, to: 40, step: 0.1, usual: [0, 20]}
  window: 5
  features:
    rise: {value: "temp_c - window[0].temp_c if window else null", from: -20, to: 20, step: 0.1}
answer:
  type: object
  additionalProperties: false
  required: [level, cause, advice]
  properties:
    level: {enum: [ok, warn, alarm]}
    cause: {enum: [none, door, compressor, warm, ice]}
    advice: {type: string, maxLength: 80}
none: {level: ok, cause: none}
truth:
  - when: temp_c > -5 and compressor_a < 1
    answer: {level: alarm, cause: compressor, advice: Call the refrigeration service; the compressor has no current.}
  - when: temp_c > -5 or (window and rise >= 6)
    answer: {level: alarm, cause: warm, advice: Move the goods to another room.}
  - when: door == 'open' and temp_c > -15
    answer: {level: warn, cause: door, advice: Shut the door.}
  - when: compressor_a > 25
    answer: {level: warn, cause: compressor, advice: Have the compressor checked; it draws too much.}
  - when: humidity >= 95 and temp_c < -25
    answer: {level: warn, cause: ice, advice: Defrost the evaporator.}
  - answer: {level: ok, cause: none, advice: Nothing to do.}
examples: examples.jsonl
"""


def truth(temp_c: float, humidity: float, door: str, compressor_a: float, rise: float | None) -> tuple[str, str]:
    """The rules once more, as plain code: level and cause."""
    if temp_c > -5 and compressor_a < 1:
        return "alarm", "compressor"
    if temp_c > -5 or (rise is not None and rise >= 6):
        return "alarm", "warm"
    if door == "open" and temp_c > -15:
        return "warn", "door"
    if compressor_a > 25:
        return "warn", "compressor"
    if humidity >= 95 and temp_c < -25:
        return "warn", "ice"
    return "ok", "none"


def readings(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Readings of other draws than the generator's: quiet days, and all that the rules look at."""
    rng = random.Random(seed)
    for _ in range(count):
        temp_c = round(rng.choice([rng.gauss(-20, 4), rng.gauss(-5, 1), rng.gauss(-15, 1), rng.uniform(-35, 20)]), 1)
        given: dict[str, Any] = {
            "temp_c": max(-40.0, temp_c),
            "humidity": rng.choice([rng.randint(50, 94), 94, 95, 97]),
        }
        given["door"] = rng.choice(["open", "shut", "shut"])
        given["compressor_a"] = round(rng.choice([rng.uniform(2, 18), 0.0, rng.gauss(1, 0.3), rng.gauss(25, 2)]), 1)
        given["compressor_a"] = max(0.0, given["compressor_a"])
        before = rng.choice([None, 0.2, 1, 3, 5.9, 6.0, 6.1, 9, -4])
        if before is not None:
            first = round(min(40.0, max(-40.0, given["temp_c"] - before)), 1)
            given["window"] = [{**given, "temp_c": first}]
            before = given["temp_c"] - first
        level, cause = truth(given["temp_c"], given["humidity"], given["door"], given["compressor_a"], before)
        yield {"input": given, "answer": {"level": level, "cause": cause, "advice": ""}}


def main() -> None:
    """Train, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, help="(default: the command's own)")
    parser.add_argument("--cases", type=int, help="(default: the task's)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the task and its bundle stay")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "task.yaml").write_text(TASK, encoding="utf-8")
        lines = [json.dumps(case) for case in readings(1000, 4711)]
        (folder / "unseen.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / "examples.jsonl").unlink(missing_ok=True)  # of an earlier run
        begin_s = time.perf_counter()
        stonechat("task", "generate", str(folder), "--cases", "50", "-o", str(folder / "examples.jsonl"))
        stonechat("task", "check", str(folder))
        given = {"--steps": args.steps, "--cases": args.cases}
        more = [text for flag, value in given.items() if value is not None for text in (flag, str(value))]
        stonechat("train", str(folder), "-o", str(folder / "bundle"), *more)
        trained_s = time.perf_counter() - begin_s
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        asked = ["--task", str(folder), "--examples", str(folder / "unseen.jsonl"), "--json"]
        fields = json.loads(stonechat("eval", str(folder / "bundle"), *asked))["fields"]
    found: dict[str, Any] = {"wall_s": round(trained_s, 1), "cpu_s": round(used.ru_utime + used.ru_stime, 1)}
    found |= {"peak_mib": round(used.ru_maxrss / 1024), "right": {n: fields[n]["accuracy"] for n in ("level", "cause")}}
    print(json.dumps(found))


def stonechat(*arguments: str) -> str:
    """What a command prints; the largest of its processes counts for the peak of memory."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "toolkit", *arguments]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
