"""Sentences that somebody wrote (later.jsonl), as many again from generate.py, in JSON lines.

python later.py --seed 0 --cases 1000
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import generate

from toolkit.examples.wording import misspelt

WRITTEN = Path(__file__).parent / "later.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    args = parser.parse_args()
    rng = random.Random(f"home-commands later {args.seed}")
    rows = [json.loads(line) for line in WRITTEN.read_text(encoding="utf-8").splitlines()]
    order: list[dict[str, object]] = []
    for number in range(args.cases):
        if number % 2:
            print(json.dumps(generate.put_together(rng), ensure_ascii=False))
            continue
        if not order:  # each of them once before one comes again
            order = rng.sample(rows, len(rows))
        row = order.pop()
        text = row["input"]["text"]
        if rng.random() < 0.1:
            text = misspelt(rng, text)
        print(json.dumps({"input": {"text": text}, "answer": row["answer"]}, ensure_ascii=False))


if __name__ == "__main__":
    main()
