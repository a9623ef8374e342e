"""Readings answered a minute: two links in turn, answers of four fields, beside an earlier stonechat and llama.cpp.

    python benchmarks/readings.py BUNDLE [--against TREE --against-bundle BUNDLE] [--llama Q8_0.gguf] [--readings 12]
        [--rounds 3] [--sentence] [--vary SHARE] [--json]

Each link has an instruction of about fifty tokens; their readings come in turn, so that each displaces the other's
prompt. Every round is a process of its own for each contestant, one thread, and they take turns, so that the machine's
moods reach all of them; what counts is the ratio, of the clock's time and of the processor's, which is the one to read
on a busy machine. TREE is a checkout of an earlier commit (`git worktree add`), which opens a bundle that it has made
of the same checkpoint. llama.cpp answers through llama-cpp-python's `response_format`, with its prompt cache; `make
peers` builds it and makes the file. With --sentence each answer has a free sentence of about 40 tokens as well, and the
figure is the time for each of its tokens, the prompt's time included.

The more a link's answers are alike, the more of them comes as it was drafted. With --vary so many of a hundred labels
are arbitrary ones in place of the model's own, in both stonechats: 0 changes none, at 100 nothing can be foretold.
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

from bytecode import with_bytecode

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
SENTENCE = {"type": "string", "minLength": 130, "maxLength": 170}  # about 40 tokens


def schema(sentence: bool) -> dict[str, Any]:
    """Of the answers."""
    properties: dict[str, Any] = {name: {"enum": values} for name, values in FIELDS.items()}
    if sentence:
        properties["advice"] = SENTENCE
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def prompts(count: int) -> list[tuple[str, str]]:
    """System message and reading, the two links in turn."""
    found = []
    for i in range(count):
        values = f"{60 + i * 7 % 45} °C, {1 + i * 13 % 30 / 10:.1f} bar, {i * 5 % 20} l/min"
        found.append((SYSTEMS[i % 2], f"Unit {1 + i % 5} reads {values}."))
    return found


# Answers a reading after a system message; counts a text's tokens.
Contestant = tuple[Callable[[str, str], str], Callable[[str], int]]


def ours(bundle: str, form: dict[str, Any], vary: int) -> Contestant:
    """Whatever stonechat PYTHONPATH has."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as its commands that answer have it
    if vary:
        choose_arbitrarily(vary)
    from device_runtime.engine import LanguageModel

    model = LanguageModel.open(bundle, threads=1)
    options: dict[str, Any] = {"head": ""} if "head" in inspect.signature(model.generate).parameters else {}

    def answer(system: str, reading: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": reading}]
        return "".join(model.generate(messages, schema=form, max_new=180, **options))

    return answer, lambda text: len(model.encode(text)) - len(model.manifest.prefix_tokens)


def choose_arbitrarily(percent: int) -> None:
    """Take another label than the likeliest in so many of a hundred cases."""
    import numpy as np

    from device_runtime.engine.typed import generation

    names, random = vars(generation), np.random.default_rng(1)  # the names by which it finds functions
    scores_of = names["score_labels"]

    def scored(cache: Any, logits: Any, paths: Any, *more: Any) -> Any:
        scores = scores_of(cache, logits, paths, *more)
        if 100 * random.random() < percent:
            scores = np.where(np.arange(len(scores)) == random.integers(len(scores)), 0.0, -9.0)
        return scores

    names["score_labels"] = scored


def llama(model_path: str, form: dict[str, Any]) -> Contestant:
    """llama.cpp."""
    from llama_cpp import Llama, LlamaRAMCache

    model = Llama(model_path, n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
    model.set_cache(LlamaRAMCache(256 << 20))
    held = {"type": "json_object", "schema": form}

    def answer(system: str, reading: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": reading}]
        done = model.create_chat_completion(messages, response_format=held, max_tokens=180, temperature=0)
        return str(done["choices"][0]["message"]["content"])

    return answer, lambda text: len(model.tokenize(text.encode(), add_bos=False))


def work(kind: str, model: str, count: int, sentence: bool, vary: int) -> None:
    """One contestant, in a process of its own: prints one line of JSON."""
    form = schema(sentence)
    answer, tokens = ours(model, form, vary) if kind == "stonechat" else llama(model, form)
    asked = prompts(count + 2)
    for system, reading in asked[:2]:  # each link once: what is kept from here on is what a device keeps
        answer(system, reading)
    started_s, cpu_s = time.perf_counter(), time.process_time()
    texts = [answer(system, reading) for system, reading in asked[2:]]
    seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    for text in texts:
        assert list(json.loads(text)) == list(form["properties"]), text
    if sentence:
        written = sum(map(tokens, texts))
        print(json.dumps({"ms_a_token": 1e3 * seconds / written, "cpu_ms_a_token": 1e3 * cpu_s / written}))
    else:
        print(json.dumps({"per_minute": 60 * count / seconds, "per_cpu_minute": 60 * count / cpu_s}))


def main() -> None:
    """Let them take turns, and print medians and ratios."""
    parser = argparse.ArgumentParser(description="readings answered a minute, two links in turn")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--against", metavar="TREE", type=Path)
    parser.add_argument("--against-bundle", metavar="BUNDLE", type=Path, help="which that tree opens; else the same")
    parser.add_argument("--llama", metavar="GGUF", type=Path)
    parser.add_argument("--llama-python", metavar="PYTHON", type=Path, default=ROOT / ".venv-peers" / "bin" / "python")
    parser.add_argument("--readings", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sentence", action="store_true", help="with a free sentence of about 40 tokens")
    parser.add_argument(
        "--vary", metavar="SHARE", type=int, default=0, help="so many labels of a hundred are arbitrary"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    script, count, bundle = str(Path(__file__).resolve()), str(args.readings), str(args.bundle.resolve())
    more = [str(int(args.sentence)), str(args.vary)]
    worker = [sys.executable, script, "--work", "stonechat", bundle, count, *more]
    contestants = {"stonechat": (worker, ROOT)}
    if args.against is not None:
        other = str((args.against_bundle or args.bundle).resolve())
        before = [part if part != bundle else other for part in worker]
        contestants["stonechat before"] = (before, args.against.resolve())
    if args.llama is not None:
        command = [str(args.llama_python), script, "--work", "llama.cpp", str(args.llama.resolve()), count, *more]
        contestants["llama.cpp"] = (command, ROOT)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, (command, tree) in contestants.items():
            environment = with_bytecode() | {"PYTHONPATH": str(tree)}
            done = subprocess.run(command, capture_output=True, text=True, cwd=tree, env=environment)
            if done.returncode != 0:
                sys.exit(f"{name} failed: {done.stderr.strip()[-500:]}")
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    if args.json:
        print(json.dumps(runs, indent=1))
        return
    figures = {"per_minute": "readings a minute", "per_cpu_minute": "readings a minute of processor time"}
    if args.sentence:
        figures = {"ms_a_token": "ms a token", "cpu_ms_a_token": "ms of processor time a token"}
    for figure, label in figures.items():
        mine = [run[figure] for run in runs["stonechat"]]
        for name, found in runs.items():
            rates = [run[figure] for run in found]
            ratio = statistics.median(a / b for a, b in zip(mine, rates, strict=True))
            spread = f"{min(rates):.1f} to {max(rates):.1f}"
            print(f"{name:<18}{statistics.median(rates):>6.1f} {label} ({spread}), ratio {ratio:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5] == "1", int(sys.argv[6]))
    else:
        main()
