"""What the memory of a process that answers consists of: `python benchmarks/resident.py BUNDLE [--tokens 192]`.

Resident bytes by mapping (proc(5), smaps), after each step of a start, after a prompt and an answer, and after runs of
each length, one thread; no states of prompts are kept.
`heap and anonymous` holds what no file has: Python's objects, LiteRT's records, activations, the kv_cache.
"""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from pathlib import Path

_HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+\s*(.*)")
_LEAST_KB = 1000  # smaller ones are counted together


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="resident memory by what it is")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, default=192, help="of prompt (64) and answer")
    args = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as machine.numpy_without_threads
    steps = {"Python": resident_kb()}
    import numpy  # noqa: F401  # what it costs is the question

    steps["numpy"] = resident_kb()
    from device_runtime.engine.language_model import LanguageModel

    steps["our modules"] = resident_kb()
    with LanguageModel.open(args.bundle, threads=1, keep_bytes=0) as model:
        steps["opened"] = resident_kb()
        prompt = [i * 37 % (model.manifest.graph.vocabulary - 1) + 1 for i in range(64)]
        model.measure(prompt, 1)
        steps["64 tokens"] = resident_kb()
        model.measure(prompt, max(1, args.tokens - 64))
        steps[f"{args.tokens} tokens"] = resident_kb()
        for count in range(1, 65):
            model.measure(prompt[:count], 1)
        for count in range(1, 2 * model.backend.several + 1):  # of an answer's draft
            model.backend.rewind(0)
            model.backend.decode_several(prompt, range(64 - count, 64))
        model.backend.look_ahead(prompt[:1], model.backend.position)
        steps["each length"] = resident_kb()
    names = {name for found in steps.values() for name, kb in found.items() if kb >= _LEAST_KB}
    print(f"{'kB':<44}" + "".join(f"{step:>13}" for step in steps))
    last = list(steps.values())[-1]
    for name in sorted(names, key=lambda name: -last[name]):
        print(f"{name:<44}" + "".join(f"{found[name]:>13,}" for found in steps.values()))
    rest = [sum(kb for name, kb in found.items() if name not in names) for found in steps.values()]
    print(f"{'smaller ones':<44}" + "".join(f"{kb:>13,}" for kb in rest))
    print(f"{'all':<44}" + "".join(f"{sum(found.values()):>13,}" for found in steps.values()))


def resident_kb() -> Counter[str]:
    """Resident memory by the file that is mapped."""
    found: Counter[str] = Counter()
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if header := _HEADER.match(line):
            path = header.group(1)
            name = Path(path).name if path.startswith("/") else "heap and anonymous"
        elif line.startswith("Rss:"):
            found[name] += int(line.split()[1])
    return found


if __name__ == "__main__":
    main()
