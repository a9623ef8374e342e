"""Tries whether a schema can be compiled for a tokenizer, in a process of its own: `serve_trials`' side, as
`python -m device_runtime.engine.schema.trial [TOKENIZER VOCABULARY EOS…]`. Without a tokenizer, for one of bytes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from device_runtime.engine.trial_process import TrialProcess, serve_trials

__all__ = ["is_simple", "schema_trial"]

_CPU_S, _MEMORY_MIB = 5, 192
_MODULE = "device_runtime.engine.schema.trial"
_LENGTHS = ("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties")
_COMPUTED = (
    "allOf", "exclusiveMaximum", "exclusiveMinimum", "format", "maximum", "minimum", "multipleOf", "pattern",
    "patternProperties", "x-guidance",
)  # fmt: skip  # what becomes a regular expression that has to be computed with
_LONG, _MANY = 2000, 300


def schema_trial(tokenizer: Path | None = None, vocabulary: int = 0, eos: tuple[int, ...] = ()) -> TrialProcess:
    """A process that tries grammars; started at the first."""
    arguments = [] if tokenizer is None else [str(tokenizer), str(vocabulary), *map(str, eos)]
    return TrialProcess(_MODULE, arguments)


def is_simple(schema: Any) -> bool:
    """Whether there is nothing in a schema that could keep the library busy: no trial is needed."""
    left = [schema]
    for count, node in enumerate(left):
        if count > _MANY:
            return False
        if isinstance(node, Mapping):
            if any(key in node for key in _COMPUTED):
                return False
            if any(isinstance(node.get(key), int) and node[key] > _LONG for key in _LENGTHS):
                return False
            left.extend(node.values())
        elif isinstance(node, list):
            left.extend(node)
        elif isinstance(node, str) and len(node) > _LONG:
            return False
    return True


def _main() -> None:
    from llguidance import LLMatcher, LLTokenizer

    from device_runtime.engine.schema.grammar_tokenizer import GrammarTokenizer
    from device_runtime.engine.schema.shortest_end import NARROW, shortest_end

    if len(sys.argv) > 1:
        tokenizer = GrammarTokenizer(Path(sys.argv[1]), int(sys.argv[2]), [int(number) for number in sys.argv[3:]])
        library = tokenizer.library
    else:
        tokenizer, library = None, LLTokenizer("byte")

    def trial(grammar: str) -> str:
        matcher = LLMatcher(library, grammar, log_level=0)
        if matcher.is_error():
            return " ".join(str(matcher.get_error()).split())[:300] or "unknown error"
        if tokenizer is not None:
            shortest_end(tokenizer, matcher, 64, NARROW)
        return ""

    serve_trials(trial, cpu_s=_CPU_S, memory_mib=_MEMORY_MIB)


if __name__ == "__main__":
    _main()
