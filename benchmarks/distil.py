"""A student of half the size, with a teacher's distributions and without, from the same few cases.

    python benchmarks/distil.py [--example fall-alert] [--cases 2000] [--steps 1000] [--soft 0.5]

The teacher is the example's committed bundle. Both students are trained by the command that a user types, from the same
seed, and asked a thousand readings that the example's generator did not make. Printed are the typed fields that each
has right, and the calibration error of the worst field.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from train_budget import stonechat  # noqa: E402

from tests.support.heldout_readings import HELD_OUT  # noqa: E402

STUDENT = {"layers": 2, "width": 48, "heads": 4, "ffn": 128, "vocabulary": 400}


def main() -> None:
    """Train both, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--example", choices=sorted(HELD_OUT), default="fall-alert")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--soft", type=float, default=0.5)
    args = parser.parse_args()
    example = ROOT / "examples" / args.example
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        task = yaml.safe_load((example / "task.yaml").read_text(encoding="utf-8"))
        task["network"] = STUDENT
        task["distil"] = {"teacher": str(example / "bundle"), "soft": args.soft, "cases": args.cases}
        (folder / "task.yaml").write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
        lines = [json.dumps(case) for case in HELD_OUT[args.example](1000, 4711)]
        (folder / "unseen.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        sizes = ["--cases", str(args.cases), "--steps", str(args.steps), "--batch", "64"]
        for kind in ("alone", "distil"):
            more = ["--kind", "distil"] if kind == "distil" else []
            stonechat("train", temporary, "-o", str(folder / kind), *sizes, *more)
            asked = ["--task", temporary, "--examples", str(folder / "unseen.jsonl"), "--json"]
            found = json.loads(stonechat("eval", str(folder / kind), *asked))
            row = {"student": kind, "right": found["accuracy"], "calibration_error": found["calibration_error"]}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
