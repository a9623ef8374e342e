"""How often the router of examples/router finds the right model, or none: 20 % of the inputs are for none of them.

python benchmarks/routing.py [--each 130] [--file router.json]
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import replace

from mixed_inputs import ROOT, TASKS, mixed

from device_runtime.brain.router import Router
from device_runtime.fleet.file import load
from device_runtime.tasks.score import interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=130)
    parser.add_argument("--file", help="what `stonechat router train` wrote, in place of the example's router.json")
    parser.add_argument("--wrong", action="store_true", help="print the inputs that went wrong")
    args = parser.parse_args()
    fleet = load(ROOT / "examples" / "router" / "fleet.yaml")
    bundles = {name: entry.bundle for name, entry in fleet.models_of("house").items()}
    routing = fleet.routing("house")
    assert routing is not None
    if args.file is not None:
        routing = replace(routing, file=args.file)
    router = Router.of_bundles(routing, bundles)
    cases = mixed(args.each)
    right: Counter[str] = Counter()
    doubtful = 0
    begin_s = time.perf_counter()
    for case in cases:
        chosen = router.choose(case.prompt)
        found = None if chosen.stray or (chosen.doubtful and case.task is None) else chosen.model
        right[case.task or "none of them"] += found == case.task
        doubtful += chosen.doubtful
        if args.wrong and found != case.task:
            print(f"{case.task} -> {found}: {case.prompt[:100]}")
    took_ms = (time.perf_counter() - begin_s) * 1000 / len(cases)
    for name in (*TASKS, "none of them"):
        print(f"{name:15} {right[name]:4} of {args.each}")
    total = right.total()
    low, high = interval(total, len(cases))
    print(f"all             {total:4} of {len(cases)}: {total / len(cases):.1%} ({low:.1%} to {high:.1%})")
    print(f"of these, {doubtful} rather for none: what the model is not sure of goes on")
    print(f"{took_ms:.2f} ms an input")


if __name__ == "__main__":
    main()
