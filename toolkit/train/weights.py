"""From a task file to trained weights: the steps, each of which is kept in a folder beside the bundle.

    train.jsonl, calibrate.jsonl, test.jsonl  cases, by what they are for
    vocabulary.model  the SentencePiece model
    words.npy         a sentence encoder's vector for each of its pieces, where the task names one
    teacher.jsonl     what a teacher says of the first cases, where it is learnt from
    tokens.npz        the cases that are trained on, as arrays
    weights.npz       the state of the training, saved every half minute
    settings.json     what all of this was made with; another task, seed or size begins again
    finished          an empty file: the bundle was made

A run that was interrupted goes on from there and ends with the same weights. One that is refused changes nothing of
what an earlier one left.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from sentencepiece import SentencePieceProcessor, set_random_generator_seed

from device_runtime import __version__
from device_runtime.bundle.work_place import made_folders, work_file
from device_runtime.errors import ConfigurationError
from device_runtime.records.printable import counted
from device_runtime.tasks.examples import Example
from device_runtime.tasks.file import Task
from device_runtime.update import durable
from toolkit.examples.sources import all_examples
from toolkit.progress import say
from toolkit.train.arrays import UNREADABLE
from toolkit.train.cases import PARTS, Cases, Part, part_of, tokenized
from toolkit.train.distil import ask_teacher, described_teacher, softened
from toolkit.train.optimize import Schedule, optimize
from toolkit.train.vocabulary import SAMPLE, symbols, train_vocabulary
from toolkit.train.words import open_words, piece_vectors, word_vocabulary

__all__ = [
    "SETTINGS",
    "TRAINED",
    "Beginning",
    "Progress",
    "Settings",
    "Trained",
    "begin",
    "described",
    "finish",
    "is_finished",
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


SETTINGS = "settings.json"  # what a training was made with, in its folder
TRAINED = "trained.npz"  # the state of a tuning, there
ENOUGH = 0.9995  # of the decisions about readings; texts are trained to the end, for wording that nobody generated
NOISE = 0.02  # of the tokens of a text, in training
STRANGE = 0.05  # the same where words are known by an encoder's vectors
_DROPS = 0.1  # of the merges of every second text, in training
_READ = (".py", ".yaml", ".yml", ".json", ".csv", ".tsv", ".txt")  # of the files beside a program, those it may read
_FEWEST = 10  # cases of each part
_COSTLY = ("teacher.jsonl", "weights.npz", "below.npz", TRAINED)  # of any kind: what takes minutes to days
_STEPS = ("vocabulary.model", "words.npy", "tokens.npz", *_COSTLY)
_FINISHED = "finished"
_NAMED = {  # what is no number or word in the settings
    "task": "the task file",
    "tasks": "the task files",
    "encoder": "the encoder that knows its words",
    "checkpoint": "the checkpoint",
    "further": "the training it goes on from",
    "distil": "the teacher",
    "cases_of": "the cases of each task",
}


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


def train_weights(
    task: Task, work: Path, settings: Settings, progress: Progress = silent, *, afresh: bool = False
) -> Trained:
    """Train, from where an earlier run stopped if `work` holds one of the same task and settings.

    Args:
        afresh: throw away what an earlier training left there, also an unfinished one of other settings.

    Raises:
        ConfigurationError: the task has too few examples, its generator fails, or `work` holds an unfinished training
            of other settings.
    """
    made_with = {name: value for name, value in asdict(settings).items() if name not in ("profile", "baseline")}
    if settings.distil:
        made_with["distil"] = described_teacher(task)
    expected = settings.cases if settings.cases is not None else task.generate.cases
    with begin(work, {**described(task), **made_with}, afresh=afresh) as begun:
        begun.make_cases(task, expected, settings.seed, progress)
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
        files += sorted(path for path in task.folder.iterdir() if path.suffix.lower() in _READ)
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


@contextmanager
def begin(work: Path, shown: Mapping[str, Any], *, afresh: bool = False) -> Iterator[Beginning]:
    """Keep what earlier runs left in `work` if they were of the same task and settings; else begin again.

    What they left is as it was until this context ends without an error: cases are made within it, and may be refused.

    Args:
        shown: all that the result depends on.
        afresh: begin again in any case.

    Raises:
        ConfigurationError: an unfinished training of other settings is there, whose work would be lost.
    """
    with ExitStack() as stack:
        begun = Beginning(work, shown, afresh, stack)
        begun.require_free()
        yield begun
        begun.settle()


class Beginning:
    """A training that begins, of which nothing is kept yet."""

    def __init__(self, work: Path, shown: Mapping[str, Any], afresh: bool, stack: ExitStack) -> None:
        self._work, self._afresh, self._stack = work, afresh, stack
        self._settings = {work: _settings(shown)}  # of each folder
        self._parts: list[Path] = []
        stack.enter_context(made_folders(work))

    def make_cases(
        self,
        task: Task,
        expected: int,
        seed: int,
        progress: Progress,
        held: float | None = None,
        own: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the three files of cases, unless they are there.

        Args:
            held: share of the cases that confidence is calibrated on, and that is tested on; None: a small one.
            own: what they depend on, where there are several tasks and each has a folder of its own.

        Raises:
            ConfigurationError: the task has too few examples, or its generator fails.
        """
        folder = self._work
        if own is not None:
            folder = folder / task.name
            self._settings[folder] = _settings(own)
        if self._same(folder) and all((folder / f"{part}.jsonl").is_file() for part in PARTS):
            return
        progress("cases", 0.0)
        self._stack.enter_context(made_folders(folder))
        paths = {part: folder / f"{part}.part" for part in PARTS}
        for path in paths.values():
            self._stack.callback(path.unlink, missing_ok=True)
        counts = dict.fromkeys(PARTS, 0)
        with ExitStack() as files:
            streams = {part: files.enter_context(path.open("w", encoding="utf-8")) for part, path in paths.items()}
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
                    f"{task.name} has {counted(count, 'case')} to {part} with; expected at least {_FEWEST}. Give more "
                    "examples, or let it `generate` some."
                )
        self._parts += paths.values()

    def require_free(self) -> None:
        """Refuse to throw work away that nobody said may go; say it where there is less to lose."""
        kept = self._work / SETTINGS
        if self._afresh or self._same(self._work) or not kept.is_file():
            return
        changes = _changes(kept.read_text(encoding="utf-8", errors="replace"), self._settings[self._work])
        costly = any((self._work / name).is_file() for name in _COSTLY)
        if costly and not is_finished(self._work):
            raise ConfigurationError(
                f"{self._work} has an unfinished training of other settings ({changes}), whose work would be lost. "
                "Give its settings to go on with it, choose another folder with -o, or throw it away with --afresh."
            )
        say(f"stonechat: {self._work} is of a training of other settings ({changes}); this one begins afresh")

    def settle(self) -> None:
        """Throw away what is of other settings, and keep the cases that were made."""
        for folder, text in self._settings.items():
            if not self._same(folder):
                for name in (SETTINGS, _FINISHED, *_STEPS, *(f"{part}.jsonl" for part in PARTS)):
                    (folder / name).unlink(missing_ok=True)
                (folder / SETTINGS).write_text(text, encoding="utf-8")
        for part in self._parts:
            part.replace(part.with_suffix(".jsonl"))

    def _same(self, folder: Path) -> bool:
        kept = folder / SETTINGS
        found = kept.read_text(encoding="utf-8", errors="replace") if kept.is_file() else None
        return found == self._settings[folder] and not self._afresh


def finish(work: Path) -> None:
    """The bundle is made: from now on another training may begin in `work` without a word."""
    (work / _FINISHED).touch()


def is_finished(work: Path) -> bool:
    """Whether the training in `work` came to its bundle."""
    return (work / _FINISHED).is_file()


def _settings(shown: Mapping[str, Any]) -> str:
    return json.dumps({**shown, "stonechat": __version__}, indent=1) + "\n"


def _changes(kept: str, text: str) -> str:
    """What differs between two files of settings, in words."""
    now = json.loads(text)
    try:
        before = dict(json.loads(kept))
    except (ValueError, TypeError):
        return "its settings.json cannot be read"
    at_will = {"encoder", "further", "keep"}
    if before.keys() - at_will != now.keys() - at_will:
        return "another kind of training"
    return ", ".join(_difference(name, before.get(name), now.get(name)) for name in _differing(before, now))


def _difference(name: str, before: Any, now: Any) -> str:
    if name == "files":
        return ", ".join(_differing(before or {}, now or {}))
    return _NAMED.get(name) or f"{name} {before}, now {now}"


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def _vocabulary(task: Task, work: Path) -> bytes:
    path = work / "vocabulary.model"
    if not path.is_file():
        prompts = (task.inputs.prompt(example.input).text for example in read_cases(work, "train", SAMPLE))
        if task.network.embeddings:
            size, encoder = task.network.vocabulary, open_words(task.folder / task.network.embeddings)
            content = word_vocabulary(symbols(task), prompts, size, encoder)
        else:
            content = train_vocabulary(task, prompts)
        durable.replace_file(path, content)
    return path.read_bytes()


def _kept_vectors(task: Task, vocabulary: bytes, work: Path, progress: Progress) -> npt.NDArray[np.float32]:
    """What the pieces are known by, (pieces, size)."""
    path = work / "words.npy"
    if not path.is_file():
        encoder = open_words(task.folder / task.network.embeddings)
        vectors = piece_vectors(vocabulary, encoder, lambda share: progress("reading words", share))
        with work_file(path) as part:
            with part.open("wb") as file:
                np.save(file, vectors.astype(np.float16))
            part.replace(path)
    kept: npt.NDArray[np.float16] = np.load(path)
    return kept.astype(np.float32)


def _kept_tokens(task: Task, tokenizer: SentencePieceProcessor, settings: Settings, work: Path) -> Cases:
    path = work / "tokens.npz"
    if path.is_file():
        try:
            with np.load(path) as arrays:
                return Cases.of(arrays)
        except UNREADABLE:
            path.unlink()
    set_random_generator_seed(settings.seed)
    examples = read_cases(work, "train")
    parts = task.inputs.text is not None and not task.network.embeddings  # whose words are known as they are
    cases = tokenized(task, examples, tokenizer, drops=_DROPS if parts else 0.0)
    with work_file(path) as part:
        with part.open("wb") as file:
            np.savez_compressed(file, **cases.arrays())
        part.replace(path)
    return cases
