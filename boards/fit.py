"""Does a model fit a board? Every figure with where it is from, the verdict, and what would make it fit.

A figure is `measured` (on a bundle, or in TFLite Micro's interpreter), `computed` (device_runtime/machine/memory.py) or
`quoted` (from the board file, whose `source` names the document).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

from boards.board import Board
from boards.catalogue import board_ids, load_board
from boards.proportions import parameters_of, parameters_text, scaled, two_digits
from device_runtime.bundle.manifest import IMAGE, MODEL, TABLE, Arena, EngineMemory, GraphCounts, GraphShape, Manifest
from device_runtime.errors import DoesNotFitError
from device_runtime.machine.instruction_sets import missing_instructions
from device_runtime.machine.memory import (
    arena,
    at_context,
    at_pointer_size,
    cache_windows,
    engine_at_context,
    engine_memory,
    memory,
    model_bytes,
)

__all__ = [
    "Figure",
    "Fit",
    "Subject",
    "advised_context",
    "explain",
    "fit",
    "largest_context",
    "largest_parameters",
    "require_fit",
]

Kind = Literal["measured", "computed", "quoted"]
SHORTEST_CONTEXT = 16
_PARAMETER_STEPS = 4096  # that a share of the parameters is looked for in
SPARE = 0.05  # of the memory, left free by what is advised: as far as a computed arena may be off


@dataclass(frozen=True)
class Subject:
    """A bundle, or what a checkpoint would become."""

    name: str
    profile: Literal["pi", "micro"]
    context: int
    graph: GraphShape
    counts: Mapping[str, GraphCounts]  # by profile
    tokenizer_bytes: int
    model_bytes: int | None = None  # None: not made yet
    other_bytes: int = 0  # manifest, prefix
    arena: Arena | None = None  # as TFLite Micro reported it
    image_bytes: int | None = None  # of the model image, which is all that a microcontroller keeps of a bundle
    engine: EngineMemory | None = None  # of the model image
    boards: tuple[str, ...] = ()  # that it is meant for; empty: any
    task: str = "generate"
    weight_bits: int = 8  # of one weight of a matmul
    tokenizer_table: bool = False  # whether the engine reads a table instead of the tokenizer's file

    @property
    def reads_at_once(self) -> bool:
        """Whether one pass over the weights reads a whole text, and nothing is written."""
        return self.task in ("embed", "classify")

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> Subject:
        """A bundle."""
        sizes = {name: entry.size_bytes for name, entry in manifest.files.items()}
        tokenizer = sizes[manifest.tokenizer.file]
        other = sum(sizes.values()) - tokenizer - sizes[MODEL] + len(manifest.to_json().encode())
        return cls(
            manifest.name, manifest.profile, manifest.context, manifest.graph, manifest.counts, tokenizer,
            sizes[MODEL], other, manifest.arena, sizes.get(IMAGE), manifest.engine, manifest.boards, manifest.task,
            manifest.weight_bits, TABLE in sizes,
        )  # fmt: skip

    def with_context(self, context: int) -> Subject:
        """The same network, converted for another context: what was measured stays, and its change is computed."""
        if context == self.context:
            return self
        windows = cache_windows(context) if self.profile == "pi" else (context,)
        graph, size, taken = replace(self.graph, windows=windows), self.model_bytes, self.arena
        image, engine = self.image_bytes, self.engine
        before, after = (model_bytes(self.counts[self.profile], self.profile, n) for n in (self.context, context))
        size = size if size is None else size + after - before
        image = image if image is None else image + after - before
        if engine is not None:
            engine = engine_at_context(engine, self.context, context)
        if taken is not None:
            taken = at_context(taken, self.counts[self.profile], self.context, context)
        return replace(
            self, context=context, graph=graph, model_bytes=size, arena=taken, image_bytes=image, engine=engine
        )

    @property
    def graph_bytes(self) -> int:
        """The size of model.tflite."""
        if self.model_bytes is not None:
            return self.model_bytes
        return model_bytes(self.counts[self.profile], self.profile, self.context)


@dataclass(frozen=True)
class Figure:
    """One number."""

    label: str
    value: float
    unit: str  # bytes, positions, tok/s
    kind: Kind
    cost: bool = False  # a baseline watches it: more is worse


@dataclass(frozen=True)
class Fit:
    """The verdict of one model on one board."""

    board: Board
    subject: Subject
    figures: Mapping[str, Figure]
    problems: tuple[str, ...]  # what does not fit; empty: it fits
    largest_context: int  # that fits; 0: none
    remedies: tuple[str, ...] = field(default=())  # what would make it fit
    largest_parameters: int = 0  # of a model in the same proportions that fits; 0: none, or it was not looked for
    warnings: tuple[str, ...] = ()  # under which condition it fits

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return not self.problems


def fit(board: Board, subject: Subject, *, remedies: bool = True) -> Fit:
    """Hold a model against a board.

    Args:
        remedies: look for what would make it fit, other boards among them.
    """
    figures = _figures(board, subject)
    problems = _problems(board, subject, figures)
    longest = largest_context(board, subject)
    label = f"largest context that fits, up to {_longest_asked(board, subject):,}"
    figures["largest_context"] = Figure(label, longest, "positions", "computed")
    if not (problems and remedies):
        return Fit(board, subject, figures, problems, longest, warnings=() if problems else _warnings(figures))
    parameters = largest_parameters(board, subject)
    return Fit(board, subject, figures, problems, longest, _remedies(board, subject, parameters), parameters)


def require_fit(board: Board, subject: Subject) -> Fit:
    """Raise a `DoesNotFitError` that says what does not fit and what would."""
    result = fit(board, subject)
    if not result.fits:
        raise DoesNotFitError(explain(result))
    return result


def explain(result: Fit) -> str:
    """What does not fit and what would make it fit, a line each."""
    head = f"{result.subject.name} ({result.subject.profile}, context {result.subject.context})"
    lines = [f"{head} does not fit {result.board.id}:"]
    lines += [f"  {problem}" for problem in result.problems]
    lines += ["What would fit:", *(f"  {remedy}" for remedy in result.remedies)] if result.remedies else []
    return "\n".join(lines)


def largest_context(board: Board, subject: Subject) -> int:
    """The longest context, in positions, with which the model fits; 0 if none does.

    It is no longer than the board file's longest, or than the model's own if that is longer.
    """
    low, high = SHORTEST_CONTEXT - 1, _longest_asked(board, subject)
    while low < high:  # memory grows with the context, so half of what is left can be ruled out each time
        middle = (low + high + 1) // 2
        changed = subject.with_context(middle)
        if _problems(board, changed, _figures(board, changed)):
            high = middle - 1
        else:
            low = middle
    return low if low >= SHORTEST_CONTEXT else 0


def advised_context(board: Board, subject: Subject) -> int:
    """The longest context to convert with, so that the bundle fits although its size was only computed; 0 if none does.

    A twentieth of the memory stays free, or less where the model fits only without that.
    """
    share = int(board.memory.model_budget_kib * (1 - SPARE))
    smaller = replace(board, memory=replace(board.memory, model_budget_kib=share))
    return largest_context(smaller, subject) or largest_context(board, subject)


def largest_parameters(board: Board, subject: Subject) -> int:
    """How many parameters a model in the same proportions may have to fit; 0 if none does.

    A twentieth of the board stays free, because this is computed. The context is the subject's, or the board's longest.
    """
    profile = subject.profile if board.profile == "pi" or "micro" not in subject.counts else "micro"
    smaller = replace(
        board,
        memory=replace(board.memory, model_budget_kib=int(board.memory.model_budget_kib * (1 - SPARE))),
        storage=replace(board.storage, model_kib=int(board.storage.model_kib * (1 - SPARE))),
    )
    context = min(subject.context, board.max_context)
    asked = replace(
        subject, profile=profile, model_bytes=None, arena=None, image_bytes=None, engine=None, boards=()
    ).with_context(context)
    low, high = 0, _PARAMETER_STEPS
    while low < high:
        middle = (low + high + 1) // 2
        if _fits(smaller, scaled(asked, middle / _PARAMETER_STEPS)):
            low = middle
        else:
            high = middle - 1
    return two_digits(parameters_of(subject) * low // _PARAMETER_STEPS)


def _longest_asked(board: Board, subject: Subject) -> int:
    if subject.task != "generate":  # such a network has no more positions than it was made with
        return subject.context
    return max(board.max_context, subject.context)


def _figures(board: Board, subject: Subject) -> dict[str, Figure]:
    made: Kind = "computed" if subject.model_bytes is None else "measured"
    stored, what = subject.graph_bytes + subject.tokenizer_bytes + subject.other_bytes, "one bundle"
    if board.kind == "mcu" and subject.image_bytes is not None:
        stored, what = subject.image_bytes, "one model image"
    figures = {
        "storage": Figure(f"storage, {what}", stored, "bytes", made, cost=True),
        "storage_there": Figure(
            f"  of a slot ({board.storage.slots} on the board)", board.storage.model_kib << 10, "bytes", "quoted"
        ),
    }
    if board.kind == "linux":
        counts = subject.counts[subject.profile]
        peak = memory(
            subject.graph, counts, subject.profile, subject.context, subject.tokenizer_bytes, subject.graph_bytes,
            subject.tokenizer_table,
        )  # fmt: skip
        parts = {
            "memory": ("memory, peak", peak.total),
            "weights": ("  weights", peak.weights),
            "kv_cache": ("  kv_cache", peak.kv_cache),
            "graph": ("  records of the graph", peak.graph),
            "workspace": ("  activations", peak.workspace),
            "tokenizer": ("  tokenizer", peak.tokenizer),
            "runtime": ("  Python and libraries", peak.process),
        }
        if peak.original:
            parts |= {
                "memory_unkept": ("memory, peak, packed weights not kept", peak.unkept),
                "packed_weights": ("  file of packed weights, beside the bundle", peak.weights),
            }
        figures |= {k: Figure(label, value, "bytes", "computed", cost=True) for k, (label, value) in parts.items()}
    else:
        figures |= _microcontroller(board, subject)
    figures["memory_there"] = Figure("  of the model's share", board.model_budget_kib << 10, "bytes", "quoted")
    if board.kind == "linux" and subject.task == "generate":
        kept = board.memory.prompt_states_bytes
        figures["kept_states"] = Figure("  beside it, for states that are kept", kept, "bytes", "quoted")
    if board.memory.weights == "flash":  # the kv_cache is read from RAM, beside it
        per_token, read = subject.graph.weight_bytes, "weights read for each token"
    elif subject.reads_at_once:
        per_token, read = subject.graph.weight_bytes, "weights read for each text"
    else:
        per_token = subject.graph.bytes_per_token(subject.context)
        read = "read for each token, context full"
    unit = "texts/s" if subject.reads_at_once else "tok/s"
    speed = board.memory.bandwidth_mb_s * 1e6 / per_token
    figures["bytes_per_token"] = Figure(read, per_token, "bytes", "computed", True)
    figures["bandwidth"] = Figure("memory bandwidth", board.memory.bandwidth_mb_s * 1e6, "bytes/s", "quoted")
    figures["ceiling"] = Figure("ceiling on speed, never reached", speed, unit, "computed")
    return figures


def _microcontroller(board: Board, subject: Subject) -> dict[str, Figure]:
    counts = subject.counts.get("micro", subject.counts[subject.profile])  # of the only graph that runs there
    if subject.engine is not None:
        return _engine(board, subject, subject.engine, "measured")
    if subject.arena is None and subject.task == "generate":
        return _engine(board, subject, engine_memory(counts, subject.context), "computed")
    pointer = board.soc.pointer_bytes
    if subject.arena is not None:
        taken = at_pointer_size(subject.arena, counts, pointer)
        kind: Kind = "measured" if pointer == subject.arena.pointer_bytes else "computed"
    else:
        taken, kind = arena(counts, subject.context, pointer), "computed"
    weights = subject.graph_bytes if board.memory.weights == "ram" else 0
    return {
        "memory": Figure("memory", taken.total_bytes + weights, "bytes", kind, cost=True),
        "arena": Figure("  arena", taken.total_bytes, "bytes", kind, cost=True),
        "kv_cache": Figure("    kv_cache", taken.kv_cache_bytes, "bytes", kind, cost=True),
        "records": Figure(
            "    records of the graph", taken.tail_bytes - taken.kv_cache_bytes, "bytes", kind, cost=True
        ),
        "activations": Figure("    activations", taken.head_bytes, "bytes", kind, cost=True),
        "weights": Figure(f"  weights (they run from {board.memory.weights})", weights, "bytes", "computed", cost=True),
    }


def _engine(board: Board, subject: Subject, engine: EngineMemory, kind: Kind) -> dict[str, Figure]:
    """What the C engine takes: its call list is read where it lies, so there are no records."""
    weights = (subject.image_bytes or subject.graph_bytes) if board.memory.weights == "ram" else 0
    taken = engine.arena_bytes + engine.kv_cache_bytes
    return {
        "memory": Figure("memory", taken + weights, "bytes", kind, cost=True),
        "kv_cache": Figure("  kv_cache", engine.kv_cache_bytes, "bytes", kind, cost=True),
        "activations": Figure("  activations", engine.arena_bytes, "bytes", kind, cost=True),
        "weights": Figure(f"  weights (they run from {board.memory.weights})", weights, "bytes", "computed", cost=True),
    }


def _problems(board: Board, subject: Subject, figures: Mapping[str, Figure]) -> tuple[str, ...]:
    if board.refused is not None:
        return (f"stonechat does not run on this board: {board.refused.strip()}",)
    found = []
    if subject.boards and board.id not in subject.boards:
        found.append(f"the bundle is meant for {', '.join(subject.boards)}")
    if subject.profile == "pi" and board.profile != "pi":  # whose sizes would say nothing of this board
        return (*found, f"its profile is pi, which needs 64-bit Linux; the board has {board.arch}")
    soc = board.soc
    if lacking := missing_instructions(soc.arch, subject.profile, soc.features, soc.core):
        found.append(f"{lacking} (soc.features)")
    for need, have in (("storage", "a slot has"), ("memory", "a model may take")):
        needed, there = figures[need].value, figures[f"{need}_there"].value
        if needed > there:
            found.append(f"it needs {_kib(needed)} of {need}, and {have} {_kib(there)}")
    return tuple(found)


def _warnings(figures: Mapping[str, Figure]) -> tuple[str, ...]:
    there = figures["memory_there"].value
    if "memory_unkept" not in figures or figures["memory_unkept"].value <= there:
        return ()
    return (
        f"a start that cannot keep the packed weights needs {_kib(figures['memory_unkept'].value)} of memory, and a "
        f"model may take {_kib(there)}: leave {_kib(figures['packed_weights'].value)} of storage free for them in "
        "$STONECHAT_CACHE (default ~/.cache/stonechat), in a folder that the service may write to",
    )


def _remedies(board: Board, subject: Subject, parameters: int) -> tuple[str, ...]:
    found = []
    context = advised_context(board, subject)
    if 0 < context < subject.context:
        found.append(f"a shorter context: convert with --profile {subject.profile} --context {context}")
    if subject.profile == "pi" and "micro" in subject.counts:  # micro takes less memory, and runs on every board
        other = replace(subject, profile="micro", model_bytes=None, arena=None, image_bytes=None, engine=None)
        if context := min(advised_context(board, other), subject.context, board.max_context):
            found.append(f"the other profile: convert with --profile micro --context {context}")
    fitting = [b for b in _known_boards() if b.id != board.id and _fits(b, subject)]
    fitting.sort(key=lambda b: (b.kind != board.kind, b.memory.model_budget_kib, b.id))
    if fitting:
        found.append(f"another board: {', '.join(b.id for b in fitting[:3])}")
    if parameters:
        found.append(
            f"a smaller model: about {parameters_text(parameters)} parameters in the same proportions, not "
            f"{parameters_text(parameters_of(subject))}"
        )
    if not found:
        found.append("a smaller model; no board in the list holds this one")
    return tuple(found)


@cache
def _known_boards() -> tuple[Board, ...]:
    return tuple(map(load_board, board_ids()))


def _fits(board: Board, subject: Subject) -> bool:
    return not _problems(board, subject, _figures(board, subject))


def _kib(size: float) -> str:
    return f"{size / 1024:,.0f} KiB"
