"""From a task file to trained weights: the steps, each of which is kept in a folder beside the bundle.

    cases.jsonl       what is trained, calibrated and tested on; it may be read and corrected before training goes on
    vocabulary.model  the SentencePiece model
    tokens.npz        the cases that are trained on, as arrays
    weights.npz       the state of the training, saved every half minute
    settings.json     what all of this was made with; another task, seed or size begins again

A run that was interrupted goes on from there and ends with the same weights.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from sentencepiece import SentencePieceProcessor, set_random_generator_seed

from device_runtime import __version__
from device_runtime.errors import ConfigurationError
from device_runtime.tasks.examples import Example, parse_examples, read_examples
from device_runtime.tasks.file import Task
from toolkit.train.cases import Cases, Part, by_part, tokenized
from toolkit.train.optimize import Schedule, optimize
from toolkit.train.readings import generated
from toolkit.train.vocabulary import train_vocabulary

__all__ = ["Progress", "Settings", "Trained", "cases_of", "train_weights", "work_folder"]

Progress = Callable[[str, float], None]  # (what is being done, share of it that is done)
_DROPS = 0.1  # of the merges of every second text, in training
_FEWEST = 10  # cases of each part


@dataclass(frozen=True)
class Settings:
    """What a user may decide about a training."""

    seed: int = 0
    steps: int = 4000
    batch: int = 128
    cases: int | None = None  # None: what the task file says
    profile: Literal["micro", "pi"] = "micro"


def work_folder(bundle: Path) -> Path:
    """Where the steps of a training are kept."""
    return bundle.with_name(bundle.name + ".training")


@dataclass(frozen=True)
class Trained:
    """What a training leaves."""

    weights: Mapping[str, npt.NDArray[np.float32]]  # see network.py
    vocabulary: bytes
    longest: int  # tokens of a case
    parts: Mapping[Part, Sequence[Example]]


def train_weights(
    task: Task, work: Path, settings: Settings, progress: Progress = lambda step, share: None
) -> Trained:
    """Train, from where an earlier run stopped if `work` holds one of the same task and settings.

    Raises:
        ConfigurationError: the task has too few examples, or its generator fails.
    """
    _begin(work, task, settings)
    progress("cases", 0.0)
    parts = by_part(task, _kept_cases(task, settings, work, progress))
    for part, found in parts.items():
        if len(found) < _FEWEST:
            raise ConfigurationError(
                f"{task.name} has {len(found)} cases to {part} with; expected at least {_FEWEST}. Give more examples, "
                "or let it `generate` some."
            )
    vocabulary = _vocabulary(task, parts["train"], work)
    tokenizer = SentencePieceProcessor(model_proto=vocabulary)
    cases = _kept_tokens(task, parts["train"], tokenizer, settings, work)
    text = task.inputs.text is not None
    weights = optimize(
        task.network,
        tokenizer.vocab_size(),
        cases,
        Schedule(settings.steps, settings.batch, drop=text),
        settings.seed,
        work / "weights.npz",
        lambda step, loss: progress(f"training, loss {loss:.3f}", step / settings.steps),
    )
    return Trained(weights, vocabulary, cases.tokens.shape[1], parts)


def cases_of(task: Task, settings: Settings) -> Iterator[Example]:
    """The examples of the task's files, then those that are generated.

    Raises:
        ConfigurationError: a file or the generator has a fault.
    """
    for name in task.examples:
        yield from read_examples(task.folder / name, task.inputs, task.answer)
    count = settings.cases if settings.cases is not None else task.generate.cases
    if task.generate.program is not None:
        yield from _printed(task, count, settings.seed)
    elif task.truth:
        yield from (Example(case["input"], case["answer"]) for case in generated(task, count, settings.seed))


def _printed(task: Task, count: int, seed: int) -> list[Example]:
    """What the task's own program prints."""
    program = task.folder / str(task.generate.program)
    if not program.is_file():
        raise ConfigurationError(f"{program} is not there; `generate: program` names a file beside the task file.")
    command = [sys.executable, str(program), "--seed", str(seed), "--cases", str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1]
        raise ConfigurationError(f"{program} failed with exit code {done.returncode}: {last}")
    return parse_examples(done.stdout.decode("utf-8"), f"the output of {program.name}", task.answer)


def _begin(work: Path, task: Task, settings: Settings) -> None:
    """Keep what earlier runs left if they were of the same task and settings; else begin again."""
    files = [task.folder / name for name in task.examples]
    files += [task.folder / task.generate.program] if task.generate.program else []
    what = [task.name, task.kind, task.inputs.to_json(), task.answer, [asdict(rule) for rule in task.truth]]
    what += [asdict(task.generate), asdict(task.network)]
    usual = {name: field.usual for name, field in (task.inputs.fields or {}).items()}
    shown = {
        "task": hashlib.sha256(json.dumps([*what, usual], sort_keys=True).encode()).hexdigest(),
        "files": {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()},
        **{name: value for name, value in asdict(settings).items() if name != "profile"},
        "stonechat": __version__,
    }
    text = json.dumps(shown, indent=1) + "\n"
    kept = work / "settings.json"
    if kept.is_file() and kept.read_text(encoding="utf-8") == text:
        return
    work.mkdir(parents=True, exist_ok=True)
    for name in ("settings.json", "cases.jsonl", "vocabulary.model", "tokens.npz", "weights.npz"):
        (work / name).unlink(missing_ok=True)
    kept.write_text(text, encoding="utf-8")


def _kept_cases(task: Task, settings: Settings, work: Path, progress: Progress) -> list[Example]:
    path = work / "cases.jsonl"
    if not path.is_file():
        count = settings.cases if settings.cases is not None else task.generate.cases
        part = path.with_suffix(".part")
        with part.open("w", encoding="utf-8") as stream:
            for number, example in enumerate(cases_of(task, settings)):
                line = {"input": example.input, "answer": example.answer}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                if number % 1000 == 0:
                    progress("cases", min(1.0, number / count))
        part.replace(path)
    return read_examples(path, task.inputs, task.answer)


def _vocabulary(task: Task, examples: Sequence[Example], work: Path) -> bytes:
    path = work / "vocabulary.model"
    if not path.is_file():
        content = train_vocabulary(task, (task.inputs.prompt(example.input).text for example in examples))
        part = path.with_suffix(".part")
        part.write_bytes(content)
        part.replace(path)
    return path.read_bytes()


def _kept_tokens(
    task: Task, examples: Sequence[Example], tokenizer: SentencePieceProcessor, settings: Settings, work: Path
) -> Cases:
    path = work / "tokens.npz"
    if path.is_file():
        try:
            with np.load(path) as arrays:
                return Cases(arrays["tokens"].astype(np.int32), arrays["learnt"].astype(np.float32))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            path.unlink()
    set_random_generator_seed(settings.seed)
    cases = tokenized(task, examples, tokenizer, drops=_DROPS if task.inputs.text is not None else 0.0)
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, tokens=cases.tokens.astype(np.uint16), learnt=cases.learnt.astype(np.float32))
    part.replace(path)
    return cases
