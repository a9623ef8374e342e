"""What holding an answer to a JSON schema costs in each token.

    python benchmarks/schema.py BUNDLE [--tokens 64] [--runs 5]

Free answers and answers held to a schema whose string leaves the model as free as it can be, one after the other in one
process; medians of the rate after the first token. Then the grammar alone: the time that one token's mask takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.language_model import LanguageModel
from device_runtime.engine.sampler import Sampler, Sampling
from device_runtime.engine.structured import SchemaCompiler
from device_runtime.update.active import open_bundle

PROMPT = [{"role": "user", "content": "Describe a greenhouse on a hot day."}]
SCHEMAS = {
    "one long string": {"type": "string", "minLength": 200},
    "severity and advice": {
        "type": "object",
        "properties": {
            "severity": {"enum": ["ok", "warn", "alarm"]},
            "advice": {"type": "string", "maxLength": 120},
        },
        "required": ["severity", "advice"],
        "additionalProperties": False,
    },
    "a list of readings": {
        "type": "array",
        "maxItems": 20,
        "items": {
            "type": "object",
            "properties": {"name": {"type": "string", "pattern": "[a-z]{1,8}"}, "value": {"type": "number"}},
            "required": ["name", "value"],
            "additionalProperties": False,
        },
    },
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="what a schema costs in each token")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    rates: dict[str, list[float]] = {"free": [], "held": []}
    with LanguageModel.open(args.bundle, threads=1) as model:
        for _ in range(args.runs):
            for name, schema in (("free", None), ("held", SCHEMAS["one long string"])):
                # Far above what is taken, so that the end of the answer does not come near.
                generation = model.generate(
                    PROMPT, max_new=4 * args.tokens, sampling=Sampling(1.0, seed=1), schema=schema
                )
                pieces = 0
                started_s = None
                for _piece in generation:
                    pieces += 1
                    started_s = started_s or time.perf_counter()
                    if pieces == args.tokens:
                        break
                assert started_s is not None
                rates[name].append((pieces - 1) / (time.perf_counter() - started_s))
    free, held = (statistics.median(rates[name]) for name in ("free", "held"))
    print(f"decode: {held:.1f} instead of {free:.1f} tok/s ({held / free:.2f})")
    bundle = open_bundle(args.bundle)
    started_s = time.perf_counter()
    compiler = SchemaCompiler(bundle)
    compiler.constraint(SCHEMAS["one long string"], 1000)
    print(f"the tokenizer, once: {(time.perf_counter() - started_s) * 1e3:.0f} ms")
    for name, schema in SCHEMAS.items():
        alone(compiler, bundle, name, schema)


def alone(compiler: SchemaCompiler, bundle: Bundle, name: str, schema: dict[str, Any]) -> None:
    """Random logits through one schema."""
    random, sampler = np.random.default_rng(1), Sampler(Sampling())
    started_s = time.perf_counter()
    constraint = compiler.constraint(schema, 400)
    compile_ms = (time.perf_counter() - started_s) * 1e3
    times_us, tokens = [], []
    for left in range(400, 0, -1):
        logits = random.standard_normal(bundle.manifest.graph.vocabulary).astype(np.float32)
        started_s = time.perf_counter()
        token = constraint.choose(logits, left, sampler.choose)
        times_us.append((time.perf_counter() - started_s) * 1e6)
        if token in bundle.manifest.tokenizer.eos_ids:
            break
        tokens.append(token)
        if constraint.complete:
            break
    json.loads(constraint._tokenizer.text_of(tokens))
    print(
        f"{name}: compiled in {compile_ms:.1f} ms; {len(tokens)} tokens, each {statistics.median(times_us):.0f} µs "
        f"(at most {max(times_us):.0f})"
    )


if __name__ == "__main__":
    main()
