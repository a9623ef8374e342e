"""Readings answered a minute: two links in turn, answers of four fields, beside an earlier stonechat and llama.cpp.

    python benchmarks/readings.py BUNDLE [--against TREE] [--llama Q8_0.gguf] [--readings 12] [--rounds 3] [--json]

Each link has an instruction of about fifty tokens; their readings come in turn, so that each displaces the other's
prompt. Every round is a process of its own for each contestant, one thread, and they take turns, so that the machine's
moods reach all of them; what counts is the ratio, of the clock's time and of the processor's, which is the one to read
on a busy machine. TREE is a checkout of an earlier commit (`git worktree add`), which opens the same bundle. llama.cpp
answers through llama-cpp-python's `response_format`, with its prompt cache; `make peers` builds it and makes the file.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = (
    "You watch the boilers of a laundry. Say how severe a reading is, what causes it, what to do and how soon. "
    "Pressures above three bar and temperatures above ninety five degrees are dangerous; flow must never stop.",
    "You watch the pumps of a greenhouse. Say how severe a reading is, what causes it, what to do and how soon. "
    "A pump that runs hot or loses pressure has to be looked at before the plants run dry; noise alone is harmless.",
)
FIELDS = {
    "severity": ["ok", "warn", "alarm"],
    "cause": ["none", "overheat", "overpressure", "low_pressure", "no_flow", "sensor_fault"],
    "action": ["nothing", "inspect", "stop", "call"],
    "priority": ["low", "normal", "high"],
}
SCHEMA = {
    "type": "object",
    "properties": {name: {"enum": values} for name, values in FIELDS.items()},
    "required": list(FIELDS),
    "additionalProperties": False,
}


def prompts(count: int) -> list[tuple[str, str]]:
    """System message and reading, the two links in turn."""
    found = []
    for i in range(count):
        values = f"{60 + i * 7 % 45} °C, {1 + i * 13 % 30 / 10:.1f} bar, {i * 5 % 20} l/min"
        found.append((SYSTEMS[i % 2], f"Unit {1 + i % 5} reads {values}."))
    return found


def ours(bundle: str) -> Callable[[str, str], str]:
    """Answers by whatever stonechat PYTHONPATH has."""
    from device_runtime.engine import LanguageModel

    model = LanguageModel.open(bundle, threads=1)
    options: dict[str, Any] = {"head": ""} if "head" in inspect.signature(model.generate).parameters else {}

    def answer(system: str, reading: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": reading}]
        return "".join(model.generate(messages, schema=SCHEMA, max_new=120, **options))

    return answer


def llama(model_path: str) -> Callable[[str, str], str]:
    """Answers by llama.cpp."""
    from llama_cpp import Llama, LlamaRAMCache

    model = Llama(model_path, n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
    model.set_cache(LlamaRAMCache(256 << 20))
    held = {"type": "json_object", "schema": SCHEMA}

    def answer(system: str, reading: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": reading}]
        done = model.create_chat_completion(messages, response_format=held, max_tokens=120, temperature=0)
        return str(done["choices"][0]["message"]["content"])

    return answer


def work(kind: str, model: str, count: int) -> None:
    """One contestant, in a process of its own: prints one line of JSON."""
    answer = ours(model) if kind == "stonechat" else llama(model)
    asked = prompts(count + 2)
    for system, reading in asked[:2]:  # each link once: what is kept from here on is what a device keeps
        answer(system, reading)
    started_s, cpu_s = time.perf_counter(), time.process_time()
    texts = [answer(system, reading) for system, reading in asked[2:]]
    seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    for text in texts:
        assert list(json.loads(text)) == list(FIELDS), text
    print(json.dumps({"per_minute": 60 * count / seconds, "per_cpu_minute": 60 * count / cpu_s}))


def main() -> None:
    """Let them take turns, and print medians and ratios."""
    parser = argparse.ArgumentParser(description="readings answered a minute, two links in turn")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--against", metavar="TREE", type=Path)
    parser.add_argument("--llama", metavar="GGUF", type=Path)
    parser.add_argument("--llama-python", metavar="PYTHON", type=Path, default=ROOT / ".venv-peers" / "bin" / "python")
    parser.add_argument("--readings", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    script, count, bundle = str(Path(__file__).resolve()), str(args.readings), str(args.bundle.resolve())
    worker = [sys.executable, script, "--work", "stonechat", bundle, count]
    contestants = {"stonechat": (worker, ROOT)}
    if args.against is not None:
        contestants["stonechat before"] = (worker, args.against.resolve())
    if args.llama is not None:
        command = [str(args.llama_python), script, "--work", "llama.cpp", str(args.llama.resolve()), count]
        contestants["llama.cpp"] = (command, ROOT)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, (command, tree) in contestants.items():
            environment = os.environ | {"PYTHONPATH": str(tree)}
            done = subprocess.run(command, capture_output=True, text=True, cwd=tree, env=environment)
            if done.returncode != 0:
                sys.exit(f"{name} failed: {done.stderr.strip()[-500:]}")
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    if args.json:
        print(json.dumps(runs, indent=1))
        return
    for figure, label in (("per_minute", "a minute"), ("per_cpu_minute", "a minute of processor time")):
        mine = [run[figure] for run in runs["stonechat"]]
        for name, found in runs.items():
            rates = [run[figure] for run in found]
            ratio = statistics.median(a / b for a, b in zip(mine, rates, strict=True))
            spread = f"{min(rates):.1f} to {max(rates):.1f}"
            print(f"{name:<18}{statistics.median(rates):>6.1f} readings {label} ({spread}), ratio {ratio:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
