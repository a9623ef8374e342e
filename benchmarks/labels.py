"""Texts into a few kinds by a general model: as links did it, with examples, scored, and calibrated.

    python benchmarks/labels.py BUNDLE [--json]

Thirty notes of tenants, twelve more as examples, three kinds. Each row adds one thing: the answer written under the
schema after a bare prompt; twelve examples as turns of the conversation; the labels scored instead of written; and what
an input without content is answered taken off. Time is for all thirty, states of prompts kept.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from device_runtime.engine.language_model import LanguageModel
from device_runtime.engine.sampler import Sampling

KINDS = ("repair", "noise", "payment")
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": list(KINDS)}},
    "required": ["kind"],
    "additionalProperties": False,
}
SYSTEM = "You sort notes from tenants. The kind is repair, noise or payment."
EXAMPLES = {
    "repair": [
        "The kitchen tap drips day and night.",
        "Our window does not close any more since the storm.",
        "The lift is stuck on the third floor.",
        "There is no light on the stairs.",
    ],
    "noise": [
        "The people above us had a party until four.",
        "Somebody drills on Sundays, please stop that.",
        "The dog next door barks all afternoon.",
        "Loud music again, I cannot sleep.",
    ],
    "payment": [
        "I will transfer the rent on the fifth this month.",
        "Please send me the statement of heating costs.",
        "You have booked the deposit twice.",
        "My bank has changed, here is the new account.",
    ],
}
NOTES = {
    "repair": [
        "The radiator in the bedroom stays cold.",
        "Water comes through the ceiling of the bathroom.",
        "The front door's lock is jammed.",
        "The toilet does not flush properly.",
        "A tile has come loose in the hall.",
        "The bell does not ring, visitors have to call me.",
        "Our oven gets no power.",
        "The drain in the shower is blocked.",
        "The handle of the balcony door broke off.",
        "The mailbox cannot be locked.",
    ],
    "noise": [
        "The neighbour's child practises the drums at night.",
        "They shout in the yard night after night.",
        "The washing machine on the second floor runs after midnight.",
        "Please ask flat 7 to turn the television down.",
        "High heels on the parquet at five in the morning.",
        "The bar downstairs plays bass until two.",
        "Somebody slams the doors all night.",
        "Motorbikes rev under my window at dawn.",
        "The karaoke in flat 12 keeps my baby awake.",
        "Constant hammering from above, at lunch time too.",
    ],
    "payment": [
        "Can I pay the rent in two parts?",
        "The bill for water seems too high to me.",
        "I have not got my deposit back yet.",
        "Which account does the rent go to from January?",
        "Your reminder came although I have paid.",
        "Please confirm that you got the 640 euros.",
        "I would like a direct debit from now on.",
        "The invoice for the parking space has the wrong name.",
        "When is the service charge due?",
        "I was charged a late fee by mistake.",
    ],
}


def main() -> None:
    """Ask, and print."""
    parser = argparse.ArgumentParser(description="labels of a general model: written, shown, scored, calibrated")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    notes = [(text, kind) for kind, texts in NOTES.items() for text in texts]
    shown = [(EXAMPLES[kind][i], kind) for i in range(4) for kind in KINDS]
    found = {}
    with LanguageModel.open(args.bundle, threads=args.threads) as model:
        for name, turns, options in (
            ("as links did it", [], {"sampling": Sampling(1e-9, seed=1)}),  # greedy, and not scored
            ("with examples", shown, {"sampling": Sampling(1e-9, seed=1)}),
            ("scored", shown, {"nothing": None}),
            ("scored and calibrated", shown, {}),
        ):
            before = [{"role": "system", "content": SYSTEM}]
            for text, kind in turns:
                before += [
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": json.dumps({"kind": kind})},
                ]
            started_s, right, sure = time.perf_counter(), 0, []
            answered = dict.fromkeys(KINDS, 0)
            for text, kind in notes:
                asked = [*before, {"role": "user", "content": text}]
                generation = model.generate(asked, schema=SCHEMA, max_new=40, head="", **options)
                said = json.loads("".join(generation))["kind"]
                answered[said] += 1
                right += said == kind
                confidence = generation.result.confidence or {}
                sure.append((confidence.get("kind", 0.0), said == kind))
            seconds = time.perf_counter() - started_s
            gap = abs(sum(c for c, _ in sure) - right) / len(sure)
            found[name] = {
                "right": right,
                "of": len(notes),
                "answered": answered,
                "mean_confidence_less_accuracy": round(gap, 3),
                "seconds": round(seconds, 1),
            }
            if not args.json:
                kinds = ", ".join(f"{kind} {count}" for kind, count in answered.items())
                print(f"{name:<22} {right:>2} of {len(notes)} right; {kinds}; {seconds:.1f} s", flush=True)
    if args.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
