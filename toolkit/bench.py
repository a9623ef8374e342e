"""Measure a bundle: each run is a process of its own, because loading and peak memory are part of the question.

Such a process loads what an answer needs, and what measuring needs afterwards.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.errors import ConfigurationError, StonechatError

if TYPE_CHECKING:
    from device_runtime.machine.power import Power

__all__ = ["FIGURES", "Run", "cost_of_an_answer", "measure", "measure_once", "spread"]


@dataclass(frozen=True)
class Run:
    """One run's figures."""

    load_ms: float  # opening the bundle: hashes, tokenizer, graph
    prefill_tokens_per_s: float  # the prompt's tokens over the time to its logits
    ttft_ms: float  # from the start of the process to the first token
    decode_tokens_per_s: float  # the tokens after the first
    peak_rss_mb: float
    energy_j: float | None = None  # of the prompt and the new tokens; None: this machine does not say it
    energy_how: str | None = None  # measured or computed


# figure -> what it is called, and in which unit
FIGURES = {
    "load_ms": ("load", "ms"),
    "ttft_ms": ("start to first token", "ms"),
    "prefill_tokens_per_s": ("prefill", "tok/s"),
    "decode_tokens_per_s": ("decode", "tok/s"),
    "peak_rss_mb": ("peak memory", "MB"),
}


def measure(
    bundle: Path,
    *,
    runs: int,
    prompt_tokens: int,
    new_tokens: int,
    threads: int | None,
    backend: str | None,
    progress: Callable[[str, float], None] = lambda step, share: None,
) -> Iterator[Run]:
    """Run the bundle `runs` times, after one run that warms the caches and is not counted."""
    import subprocess

    command = [
        sys.executable, "-m", "toolkit.bench", str(bundle), str(prompt_tokens), str(new_tokens),
        str(threads or 0), backend or "",
    ]  # fmt: skip
    for i in range(runs + 1):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise StonechatError(
                (done.stderr.strip().splitlines() or ["the measuring process died without a word"])[-1]
            )
        progress("measuring", (i + 1) / (runs + 1))
        if i > 0:
            yield Run(**json.loads(done.stdout))


def spread(runs: list[Run]) -> dict[str, dict[str, float]]:
    """figure -> median, min and max over the runs."""
    import statistics

    table = {}
    for figure in FIGURES:
        values = [getattr(run, figure) for run in runs]
        table[figure] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return table


def measure_once(bundle: Path, prompt_tokens: int, new_tokens: int, threads: int | None, backend: str | None) -> Run:
    """One run in this process, which should be a new one."""
    import os

    from device_runtime.engine.opening import open_language_model
    from device_runtime.update.active import open_bundle

    if open_bundle(bundle).manifest.task != "generate":
        return _measure_encoder(bundle, prompt_tokens, new_tokens, threads)
    started_s = time.perf_counter()
    with open_language_model(bundle, backend=backend, threads=threads) as model:
        # Any tokens will do: a step costs the same whatever it says.
        prompt = [i * 37 % (model.manifest.graph.vocabulary - 1) + 1 for i in range(prompt_tokens)]
        loaded_s = time.perf_counter()
        opened_ms = (time.clock_gettime(time.CLOCK_BOOTTIME) - _process_start_s(os.getpid())) * 1e3
        from device_runtime.machine.machine import peak_rss_mb
        from device_runtime.machine.power import find_meter

        meter = find_meter(_power_here())
        begin_j = meter.joules() if meter is not None else 0.0
        result = model.measure(prompt, new_tokens)
        return Run(
            energy_j=meter.joules() - begin_j if meter is not None else None,
            energy_how=meter.how if meter is not None else None,
            load_ms=(loaded_s - started_s) * 1e3,
            prefill_tokens_per_s=(result.prompt_tokens - result.cached_tokens) / (result.ttft_ms / 1e3),
            ttft_ms=opened_ms + result.ttft_ms,
            decode_tokens_per_s=result.tokens_per_s,
            peak_rss_mb=peak_rss_mb(),
        )


def cost_of_an_answer(bundle: Path, task: str, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What an answer of a trained bundle takes here, on average: `ms`, and the fields of `energy_fields` where they are
    known.

    Args:
        task: whose, of a bundle of several.
        inputs: to be asked, one at least.

    Raises:
        ConfigurationError: the bundle was trained for something else.
    """
    from device_runtime.machine.power import energy_fields, find_meter
    from device_runtime.tasks.answering import Answerer
    from device_runtime.tasks.purpose import Purpose
    from device_runtime.update.active import open_bundle

    opened = open_bundle(bundle)
    purpose = Purpose.of_manifest(opened.manifest, task)
    if purpose is None:
        raise ConfigurationError(f"{bundle} was not trained for {task}.")
    answerer, meter = Answerer(opened, purpose), find_meter(_power_here())
    try:
        answerer.answer(inputs[0])  # the first one opens what all need
        begun_s, begun_j = time.monotonic(), meter.joules() if meter is not None else 0.0
        for given in inputs:
            answerer.answer(given)
        took_ms = (time.monotonic() - begun_s) * 1000 / len(inputs)
        spent = {} if meter is None else energy_fields((meter.joules() - begun_j) / len(inputs), meter.how)
    finally:
        answerer.close()
    return {"ms": round(took_ms, 3), **spent}


def _power_here() -> Power | None:
    from boards.detect import detect_here

    board = detect_here()
    return None if board is None else board.power


def _measure_encoder(bundle: Path, prompt_tokens: int, new_tokens: int, threads: int | None) -> Run:
    """The same of an encoder or a translator; the second text counts, since LiteRT sets things up in the first."""
    import os
    import time

    from device_runtime.engine.encoder.encoder_model import EncoderModel
    from device_runtime.engine.encoder.translator import Translator
    from device_runtime.engine.generation import Completion
    from device_runtime.engine.opening import open_model
    from device_runtime.machine.machine import peak_rss_mb

    started_s = time.perf_counter()
    with open_model(bundle, threads=threads) as model:
        loaded_s = time.perf_counter()
        opened_ms = (time.clock_gettime(time.CLOCK_BOOTTIME) - _process_start_s(os.getpid())) * 1e3

        def measured() -> Completion:
            if isinstance(model, Translator):
                return model.measure(prompt_tokens, new_tokens)
            assert isinstance(model, EncoderModel)
            return model.measure(prompt_tokens)

        first = measured()
        result = measured()
        return Run(
            load_ms=(loaded_s - started_s) * 1e3,
            prefill_tokens_per_s=result.prompt_tokens / (result.ttft_ms / 1e3),
            ttft_ms=opened_ms + first.ttft_ms,
            decode_tokens_per_s=result.tokens_per_s,
            peak_rss_mb=peak_rss_mb(),
        )


def _process_start_s(pid: int) -> float:
    """When a process began, in seconds since boot (proc(5), field 22 of stat)."""
    import os

    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _main() -> None:
    from device_runtime.machine.machine import numpy_without_threads

    numpy_without_threads()
    bundle, prompt_tokens, new_tokens, threads, backend = sys.argv[1:]
    try:
        run = measure_once(Path(bundle), int(prompt_tokens), int(new_tokens), int(threads) or None, backend or None)
    except StonechatError as error:
        sys.exit(str(error))
    print(json.dumps(asdict(run)))


if __name__ == "__main__":
    _main()
