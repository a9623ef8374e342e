"""From a task file to trained weights: the steps, each of which is kept in a folder beside the bundle.

    train.jsonl, calibrate.jsonl, test.jsonl  cases, by what they are for
    vocabulary.model  the SentencePiece model
    words.npy         a sentence encoder's vector for each of its pieces, where the task names one
    teacher.jsonl     what a teacher says of the first cases, where it is learnt from
    tokens.npz        the cases that are trained on, as arrays
    weights.npz       the state of the training, saved every half minute
    settings.json     what all of this was made with; another task, seed or size begins again

A run that was interrupted goes on from there and ends with the same weights.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from sentencepiece import SentencePieceProcessor, set_random_generator_seed

from device_runtime import __version__
from device_runtime.errors import ConfigurationError
from device_runtime.tasks.examples import Example
from device_runtime.tasks.file import Task
from toolkit.examples.sources import all_examples
from toolkit.train.cases import PARTS, Cases, Part, part_of, tokenized
from toolkit.train.distil import ask_teacher, described_teacher, softened
from toolkit.train.optimize import Schedule, optimize
from toolkit.train.vocabulary import SAMPLE, symbols, train_vocabulary
from toolkit.train.words import open_words, piece_vectors, word_vocabulary

__all__ = [
    "Progress",
    "Settings",
    "Trained",
    "begin",
    "described",
    "keep_cases",
    "leaves_nothing",
    "read_cases",
    "silent",
    "train_weights",
    "work_folder",
]


class Progress(Protocol):
    """What is called while a training goes on."""

    def __call__(self, step: str, share: float, detail: str = "", /) -> None:
        """`share` (0 … 1) of `step` is done."""


def silent(step: str, share: float, detail: str = "", /) -> None:
    """No progress to show."""


ENOUGH = 0.9995  # of the decisions about readings; texts are trained to the end, for wording that nobody generated
NOISE = 0.02  # of the tokens of a text, in training
STRANGE = 0.05  # the same where words are known by an encoder's vectors
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
    baseline: Path | None = None  # a bundle that the report compares with
    distil: bool = False  # learn from a teacher's distributions, too


def work_folder(bundle: Path) -> Path:
    """Where the steps of a training are kept."""
    return bundle.with_name(bundle.name + ".training")


@dataclass(frozen=True)
class Trained:
    """What a training leaves."""

    weights: Mapping[str, npt.NDArray[np.float32]]  # see network.py
    vocabulary: bytes
    longest: int  # tokens of a case
    cases: int  # trained on


def train_weights(task: Task, work: Path, settings: Settings, progress: Progress = silent) -> Trained:
    """Train, from where an earlier run stopped if `work` holds one of the same task and settings.

    Raises:
        ConfigurationError: the task has too few examples, or its generator fails.
    """
    made_with = {name: value for name, value in asdict(settings).items() if name not in ("profile", "baseline")}
    if settings.distil:
        made_with["distil"] = described_teacher(task)
    steps = ("vocabulary.model", "words.npy", "tokens.npz", "teacher.jsonl", "weights.npz")
    expected = settings.cases if settings.cases is not None else task.generate.cases
    with leaves_nothing(work):
        begin(work, {**described(task), **made_with}, steps)
        keep_cases(task, expected, settings.seed, work, progress)
    vocabulary = _vocabulary(task, work)
    table = _kept_vectors(task, vocabulary, work, progress) if task.network.embeddings else None
    tokenizer = SentencePieceProcessor(model_proto=vocabulary)
    cases = _kept_tokens(task, tokenizer, settings, work)
    soft = None
    if settings.distil:
        examples = read_cases(work, "train")
        said = ask_teacher(task, examples, work / "teacher.jsonl", progress)
        cases, soft = softened(task, cases, examples, said, tokenizer)
    text = task.inputs.text is not None
    held = None if text else tokenized(task, read_cases(work, "calibrate", 1024), tokenizer)
    weights = optimize(
        task.network,
        tokenizer.vocab_size(),
        cases,
        Schedule(
            settings.steps,
            settings.batch,
            drop=text,
            noise=0.0 if not text else NOISE if table is None else STRANGE,
            enough=2.0 if text else ENOUGH,
        ),
        settings.seed,
        work / "weights.npz",
        lambda step, loss: progress("training", step / settings.steps, f"loss {loss:.3f}"),
        held,
        table,
        soft,
    )
    return Trained(weights, vocabulary, cases.tokens.shape[1], len(cases.tokens))


def read_cases(work: Path, part: Part, most: int | None = None) -> list[Example]:
    """The cases of one part, at most so many of them."""
    with (work / f"{part}.jsonl").open(encoding="utf-8") as stream:
        lines = (json.loads(line) for line in islice(stream, most))
        return [Example(line["input"], line["answer"]) for line in lines]


def described(task: Task, *, network: bool = True) -> dict[str, Any]:
    """What a training's result depends on of its task.

    Args:
        network: whether the network that the task names is what is trained, or a checkpoint's.
    """
    files = [task.folder / name for name in task.examples]
    if task.generate.program is not None:  # and what it may read
        files += sorted([*task.folder.glob("*.py"), *task.folder.glob("*.yaml")])
    what = [task.name, task.inputs.to_json(), task.answer, [asdict(rule) for rule in task.truth], asdict(task.generate)]
    what += [task.kind, asdict(task.network)] if network else []
    usual = {name: field.usual for name, field in (task.inputs.fields or {}).items()}
    embeddings = task.network.embeddings if network else None
    return {
        "task": hashlib.sha256(json.dumps([*what, usual], sort_keys=True).encode()).hexdigest(),
        "files": {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()},
        # Named before hours of work, if it is not there.
        **({"encoder": open_words(task.folder / embeddings).sha256} if embeddings else {}),
    }


def begin(work: Path, shown: Mapping[str, Any], names: Sequence[str]) -> None:
    """Keep what earlier runs left if they were of the same task and settings; else begin again.

    Args:
        shown: all that the result depends on.
        names: of files that depend on it, beside the cases.
    """
    shown = {**shown, "stonechat": __version__}
    text = json.dumps(shown, indent=1) + "\n"
    kept = work / "settings.json"
    if kept.is_file() and kept.read_text(encoding="utf-8") == text:
        return
    work.mkdir(parents=True, exist_ok=True)
    for name in ("settings.json", *names, *(f"{part}.jsonl" for part in PARTS)):
        (work / name).unlink(missing_ok=True)
    kept.write_text(text, encoding="utf-8")


@contextmanager
def leaves_nothing(work: Path) -> Iterator[None]:
    """Where a task is refused within this context, take away the folder in which no step was done, and those that were
    made for it."""
    missing = [path for path in work.parents if not path.exists()]
    try:
        yield
    except ConfigurationError:
        for folder in (*(path for path in work.iterdir() if path.is_dir()), work):
            for part in folder.glob("*.part"):
                part.unlink()
            if [path.name for path in folder.iterdir()] == ["settings.json"]:
                (folder / "settings.json").unlink()
                folder.rmdir()
        with suppress(OSError):  # there is something in it
            for path in missing:
                path.rmdir()
        raise


def keep_cases(task: Task, expected: int, seed: int, work: Path, progress: Progress, held: float | None = None) -> None:
    """Write the three files of cases, unless they are there.

    Args:
        held: share of the cases that confidence is calibrated on, and that is tested on; None: a small one.

    Raises:
        ConfigurationError: the task has too few examples, or its generator fails.
    """
    done = {part: work / f"{part}.jsonl" for part in PARTS}
    if all(path.is_file() for path in done.values()):
        return
    progress("cases", 0.0)
    counts = dict.fromkeys(PARTS, 0)
    with ExitStack() as stack:
        streams = {
            part: stack.enter_context(path.with_suffix(".part").open("w", encoding="utf-8"))
            for part, path in done.items()
        }
        for number, example in enumerate(all_examples(task, expected, seed)):
            part = part_of(example.input, task, held)
            line = {"input": example.input, "answer": example.answer}
            streams[part].write(json.dumps(line, ensure_ascii=False) + "\n")
            counts[part] += 1
            if number % 1000 == 0:
                progress("cases", min(1.0, number / expected))
    for part, count in counts.items():
        if count < _FEWEST:
            raise ConfigurationError(
                f"{task.name} has {count} cases to {part} with; expected at least {_FEWEST}. Give more examples, "
                "or let it `generate` some."
            )
    for path in done.values():
        path.with_suffix(".part").replace(path)


def _vocabulary(task: Task, work: Path) -> bytes:
    path = work / "vocabulary.model"
    if not path.is_file():
        prompts = (task.inputs.prompt(example.input).text for example in read_cases(work, "train", SAMPLE))
        if task.network.embeddings:
            size, encoder = task.network.vocabulary, open_words(task.folder / task.network.embeddings)
            content = word_vocabulary(symbols(task), prompts, size, encoder)
        else:
            content = train_vocabulary(task, prompts)
        part = path.with_suffix(".part")
        part.write_bytes(content)
        part.replace(path)
    return path.read_bytes()


def _kept_vectors(task: Task, vocabulary: bytes, work: Path, progress: Progress) -> npt.NDArray[np.float32]:
    """What the pieces are known by, (pieces, size)."""
    path = work / "words.npy"
    if not path.is_file():
        encoder = open_words(task.folder / task.network.embeddings)
        vectors = piece_vectors(vocabulary, encoder, lambda share: progress("reading words", share))
        part = path.with_suffix(".part.npy")
        np.save(part, vectors.astype(np.float16))
        part.replace(path)
    kept: npt.NDArray[np.float16] = np.load(path)
    return kept.astype(np.float32)


def _kept_tokens(task: Task, tokenizer: SentencePieceProcessor, settings: Settings, work: Path) -> Cases:
    path = work / "tokens.npz"
    if path.is_file():
        try:
            with np.load(path) as arrays:
                return Cases.of(arrays)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            path.unlink()
    set_random_generator_seed(settings.seed)
    examples = read_cases(work, "train")
    parts = task.inputs.text is not None and not task.network.embeddings  # whose words are known as they are
    cases = tokenized(task, examples, tokenizer, drops=_DROPS if parts else 0.0)
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, **cases.arrays())
    part.replace(path)
    return cases
