"""manifest.json: what a bundle says of itself, every field checked when it is read.

That the files are those that it lists is checked by `folder.Bundle`.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from device_runtime.errors import BundleError, ConfigurationError, OutdatedBundleError
from device_runtime.records import typed_json

__all__ = [
    "DECODER",
    "FORMAT",
    "IMAGE",
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "MODEL",
    "PREFIX",
    "TABLE",
    "ActivationPeak",
    "Arena",
    "EncoderInfo",
    "FileEntry",
    "GraphCounts",
    "GraphShape",
    "Manifest",
    "TokenizerInfo",
    "TranslatorInfo",
    "Trial",
    "TrialScore",
    "utc_time",
]

FORMAT = 1  # of the manifest; raised when an older runtime could misread a newer bundle
MANIFEST = "manifest.json"
MODEL = "model.tflite"
PREFIX = "prefix.npz"
TABLE = "tokenizer.table"  # of a tokenizer.json, where the engine can do without that
DECODER = "decoder"  # the signature of a `pi` graph
IMAGE = "model.image"  # of a micro graph, for the C engine
MAX_MANIFEST_BYTES = 2**20
_COMMANDS = {  # task -> the command that asks such a bundle, and what it does
    "generate": ("run BUNDLE PROMPT", "it writes text"),
    "embed": ("embed BUNDLE TEXT", "it turns texts into vectors and writes nothing"),
    "classify": ("classify BUNDLE TEXT", "it chooses labels and writes nothing"),
    "translate": ("translate BUNDLE TEXT", "it translates texts"),
}
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says of one file."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class GraphShape:
    """What a backend has to know of the graph beyond what the .tflite file says itself."""

    layers: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    windows: tuple[int, ...]  # sizes that the kv_cache grows to, ascending; the last is the context
    prefill: int  # tokens that one run takes in at most; 0: one
    kv_cache_element_bytes: int  # 4: float32, 1: int8
    weight_bytes: int  # weights that one decode step reads
    rotated: bool  # the residual stream is in the basis of converters/quantize/rotation.py
    several: int = 0  # tokens of a run that gives the logits after each, unless the processor likes more; 0: one

    @property
    def cache_type(self) -> Literal["int8", "float32"]:
        """What the kv_cache's elements are; float32 where no `pi` graph has int8 yet."""
        return "int8" if self.kv_cache_element_bytes == 1 else "float32"

    def bytes_per_token(self, positions: int) -> int:
        """Bytes that one decode step reads when the cache holds `positions`: weights, and the cache's window."""
        window = next((w for w in self.windows if w >= positions), self.windows[-1])
        cache = 2 * self.layers * self.kv_heads * self.head_dim * window * self.kv_cache_element_bytes
        return self.weight_bytes + cache


@dataclass(frozen=True)
class ActivationPeak:
    """Bytes of activations that are alive at once: a line over the positions of the kv_cache window."""

    bytes: int
    bytes_per_position: int


@dataclass(frozen=True)
class GraphCounts:
    """What the graph consists of, as its emitter counted it; `machine/memory.py` computes from this.

    Where there are several kv_cache windows, each signature serves all of them.
    """

    signatures: int
    operators: int  # of all signatures
    tensors: int  # likewise, constants included
    rows: int  # of constant weights of matmuls, each row with a scale; where columns are cut, once for each range
    matmul_bytes: int  # constant weights that matmuls read, those of an embedding map included
    largest_matmul_bytes: int
    embedding_bytes: int  # tables of rows that are looked up and that no matmul reads, and the scales of rows
    constant_bytes_per_position: int  # RoPE's tables, masks
    kv_cache_bytes_per_position: int
    activations: tuple[tuple[ActivationPeak, ...], ...]  # of each signature: its peak is the highest of the lines

    def activation_bytes(self, positions: int) -> int:
        """The peaks of all signatures of a window of this size, together."""
        return sum(
            max(peak.bytes + peak.bytes_per_position * positions for peak in peaks) for peaks in self.activations
        )


@dataclass(frozen=True)
class TokenizerInfo:
    """How text becomes tokens."""

    file: Literal["tokenizer.json", "tokenizer.model"]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    adds_bos: bool
    special_tokens: dict[str, str]  # bos_token, eos_token … as the chat template wants them
    spaced: bool = True  # of tokenizer.model: a space goes after each control token, as before a text
    own_space: bool = False  # of tokenizer.model: a text that begins with a space gets no other one before it


@dataclass(frozen=True)
class Arena:
    """What a `micro` graph took of the arena in TFLite Micro's interpreter; its weights stay in flash."""

    total_bytes: int
    head_bytes: int  # activations, which give their place to others when they have been read
    tail_bytes: int  # what stays: the kv_cache, and records of tensors, operators and scales
    kv_cache_bytes: int  # of the tail
    pointer_bytes: int  # on the machine that measured; where they are shorter the records are smaller


@dataclass(frozen=True)
class EngineMemory:
    """What the C engine takes of a microcontroller's RAM for the model image, besides its firmware."""

    arena_bytes: int  # activations
    kv_cache_bytes: int


@dataclass(frozen=True)
class Trial:
    """A question whose answer a device must know before it keeps the bundle."""

    prompt: str  # a user's message; plain text where the bundle has no chat template
    expect: str  # must be in the answer, greedy
    max_new: int  # tokens


@dataclass(frozen=True)
class EncoderInfo:
    """How a text goes into an encoder or a translator, and what comes out."""

    start_ids: tuple[int, ...]  # before every text: [CLS]
    end_ids: tuple[int, ...]  # after it: [SEP], </s>
    pad_id: int  # after that, up to a signature's length; what it is changes nothing
    values: int  # of the result: an embedding's, or the logits of all labels
    prompts: dict[str, str]  # what goes before a text, by what the text is for: {"query": "query: "}
    default_prompt: str | None = None  # the name of the one that goes before every text


@dataclass(frozen=True)
class TranslatorInfo:
    """How a translation is written."""

    start_id: int  # the first token, which is no part of the answer
    end_ids: tuple[int, ...]  # any of these ends it
    banned_ids: tuple[int, ...]  # never chosen


@dataclass(frozen=True)
class TrialScore:
    """Examples of its task, of which a device must find enough right before it keeps the bundle."""

    at_least: float  # share of the typed fields
    examples: tuple[dict[str, Any], ...]  # {"input": …, "answer": …}


@dataclass(frozen=True)
class Manifest:
    """manifest.json."""

    format: int
    name: str
    version: str
    task: Literal["generate", "embed", "classify", "translate"]  # what comes out: text, a vector, labels, text
    architecture: str  # the model family
    weight_bits: int  # of one weight of a matmul; 8: int8, a scale for each row; 4: int4 in blocks
    profile: Literal["pi", "micro"]
    context: int  # positions
    graph: GraphShape
    counts: dict[str, GraphCounts]  # of this graph, by its profile; and of what the checkpoint would be in the others
    tokenizer: TokenizerInfo
    chat_template: str | None  # jinja2 source
    prefix_tokens: tuple[int, ...]  # already in the kv_cache when the model starts
    quality: dict[str, Any]  # the quantization report
    source: dict[str, str]  # checkpoint: name, sha256
    converter: str  # version of stonechat that made the bundle
    security_counter: int  # a device refuses to go back to a smaller one
    files: dict[str, FileEntry]
    # that run the graph, where not all of its profile do: int4 in `micro` runs in the C engine, not in TFLite Micro
    backends: tuple[str, ...] = ()
    instruction: str | None = None  # what the prefix says: the system message, or the beginning of every plain prompt
    arena: Arena | None = None  # of a `micro` graph, if TFLite Micro could be run at conversion
    engine: EngineMemory | None = None  # of a bundle with a model image
    boards: tuple[str, ...] = ()  # ids of the boards it is meant for; empty: any that runs its profile
    issued: str | None = None  # when `expires` was set; a clock that is earlier is wrong. ISO date-time, UTC
    expires: str | None = None  # until when a device may install it. ISO date-time, UTC
    trial: Trial | None = None  # the golden prompt
    trial_score: TrialScore | None = None  # of a bundle that was trained for a task
    encoder: EncoderInfo | None = None  # of every task but `generate`
    translator: TranslatorInfo | None = None  # of the task `translate`
    purpose: dict[str, Any] | None = None  # what it was trained for; see device_runtime/tasks/purpose.py

    def to_json(self) -> str:
        """As it is in the bundle."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse.

        Raises:
            BundleError: it is not JSON, or a field holds something else.
            OutdatedBundleError: it is of another format, or lacks a field, as earlier ones do.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{MANIFEST} is not JSON ({error}); the bundle is damaged, copy it again.") from None
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            kind = OutdatedBundleError if type(found) is int else BundleError
            raise kind(
                f"{MANIFEST} has format {typed_json.shortened(found)}; this stonechat reads format {FORMAT}. "
                "Install the stonechat that made the bundle, or convert the checkpoint again."
            )
        try:
            typed_json.check_texts(data)
            manifest: Manifest = typed_json.read(cls, data)
        except ValueError as error:
            kind = OutdatedBundleError if str(error).endswith(" is missing") else BundleError
            raise kind(f"{MANIFEST}: {error}; convert the checkpoint again.") from None
        manifest._check()
        return manifest

    def require_task(self, *tasks: str) -> None:
        """Raise a `ConfigurationError` that names the command for this bundle, if its task is none of these."""
        if self.task not in tasks:
            command, what = _COMMANDS[self.task]
            raise ConfigurationError(
                f"{self.name} is a bundle of the task {self.task}: {what}. "
                f"Use `stonechat {command}`, or a bundle of the task {' or '.join(tasks)} here."
            )

    def require_present_graph(self) -> None:
        """Raise an `OutdatedBundleError` if only an earlier stonechat runs such a graph.

        Not when a manifest is read: what lies in a device's other slot may be of before an upgrade.
        """
        counts = self.counts.get(self.profile)
        if self.task == "generate" and self.profile == "pi" and counts is not None and counts.signatures > 1:
            raise OutdatedBundleError(
                f"{self.name} {self.version} was made by an earlier stonechat: its graph has {counts.signatures} "
                f"signatures for each size of the kv_cache, and this one runs graphs with a single {DECODER!r}. "
                "Convert the checkpoint again; a device that was upgraded takes the new bundle with `stonechat deploy`."
            )

    def _check(self) -> None:
        needed = {MODEL, self.tokenizer.file, *([PREFIX] if self.prefix_tokens else [])}
        if missing := needed - self.files.keys():
            raise BundleError(f"{MANIFEST} does not list {min(missing)}; convert the checkpoint again.")
        parts = {"encoder": self.task != "generate", "translator": self.task == "translate"}
        parts["purpose"] = self.task == "classify" or (self.task == "generate" and self.purpose is not None)
        for part, wanted in parts.items():
            if (getattr(self, part) is not None) != wanted:
                has = "lacks" if wanted else "has"
                raise BundleError(f"{MANIFEST} {has} {part} for the task {self.task}; convert the checkpoint again.")
        for name in self.files:
            if not _FILE_NAME.fullmatch(name):
                raise BundleError(f"{MANIFEST} names a file outside of the bundle: {name!r}. Do not use this bundle.")
        for field in ("issued", "expires"):
            text = getattr(self, field)
            try:
                utc_time("2025-01-01T00:00:00Z" if text is None else text)
            except (ValueError, OverflowError):
                raise BundleError(
                    f"{MANIFEST}: {field} is {typed_json.shortened(getattr(self, field))}; expected a date-time in "
                    "UTC such as 2027-01-31T00:00:00Z. Pack the bundle again."
                ) from None
        if self.arena is not None and self.arena.pointer_bytes not in (4, 8):
            raise BundleError(
                f"{MANIFEST}: arena.pointer_bytes is {self.arena.pointer_bytes}; expected 4 or 8, the size of a "
                "pointer on a machine that runs TFLite Micro. Convert the checkpoint again."
            )
        windows = self.graph.windows
        if list(windows) != sorted(set(windows)) or windows[-1:] != (self.context,):
            raise BundleError(
                f"{MANIFEST}: graph.windows is {list(windows)[:9]}; expected ascending sizes that end with "
                f"the context, {self.context}. Convert the checkpoint again."
            )


def utc_time(text: str) -> datetime:
    """An ISO 8601 date-time in UTC, such as 2027-01-31T00:00:00Z.

    Raises:
        ValueError: it is none, or of another time zone.
    """
    time = datetime.fromisoformat(text)
    offset = time.utcoffset()
    if offset is None or offset.total_seconds() != 0:
        raise ValueError(f"{text!r} is not in UTC")
    return time.astimezone(UTC)
