"""What a model takes of memory and storage, computed from the counts of its graph before anything is run.

Each formula names what it adds up. What it multiplies is either derived (from a layout in a header, or from what the
converter writes) or fitted: least squares over processes and arenas of networks between two and thirty layers.
`benchmarks/fit_constants.py` fits them again and prints them beside those here; `benchmarks/fit.py` prints prediction
beside measurement, and tests hold the difference.

`pi`, in LiteRT's CompiledModel: the resident memory of the process at its peak, with the context full. Packed weights
and the graph are pages of files, which the kernel may drop; they count, because a model whose weights do not stay
resident reads them from the card for every token.

`micro`, in TFLite Micro: the arena. It has a head, where activations take turns, and a tail, which holds the kv_cache
and a record for each tensor, operator and row of weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from device_runtime.bundle.manifest import Arena, EngineMemory, GraphCounts, GraphShape

__all__ = [
    "PREFILL_TOKENS",
    "SEVERAL_TOKENS",
    "Footprint",
    "arena",
    "at_context",
    "at_pointer_size",
    "cache_windows",
    "engine_at_context",
    "engine_memory",
    "memory",
    "model_bytes",
]

PREFILL_TOKENS = 64  # measured best of 32, 64 and 128: per token, and in the memory of one pass
SEVERAL_TOKENS = 4  # with int8 weights as quick as one on AVX2; eight take twice as long
_SMALLEST_WINDOW = 256  # below this, attention is a small part of a step

# Fitted. Of a process, x86_64, Python 3.11, LiteRT 2.3; a 32-bit process takes less.
_PROCESS = {"pi": 40_100 << 10, "micro": 44_700 << 10}  # the interpreter, numpy, LiteRT: code and data
_TOKENIZER_FACTOR = 13.0  # a tokenizer and its library in memory, as a multiple of its file
_TABLE_FACTOR = 1.5  # the same, where the engine reads a table instead (TABLE in manifest.py)
_LITERT_MODEL = 1_450 << 10  # an opened graph, whatever its size
_SIGNATURE_OPERATOR = 2_700  # an operator and its tensors in one signature
_SIGNATURE_ROW = 36  # scale, zero point and bookkeeping of one row of weights in one signature
_INTERPRETER_OPERATOR = 1_400  # of a `micro` graph in the interpreter; SmolLM2 bears it out, small ones do not show it
_INTERPRETER_ROW = 100  # of weights there
_GRAPH_OPERATOR = 400  # of the FlatBuffer of a `pi` graph, an operator and its tensors in one signature
_GRAPH_ROW = 10  # scale and zero point of a row of weights, which all signatures share

# Derived. XNNPACK's row is a float scale, an int32 sum and a float bias, beside the packed weights.
_PACKED_ROW = 12

# Derived. Of TFLite Micro: bytes of a record where pointers have 8 bytes, and where they have 4.
_TENSOR_RECORD = {8: 24, 4: 12}  # TfLiteEvalTensor: two pointers and a type
_OPERATOR_RECORD = {8: 64, 4: 32}  # NodeAndRegistration: pointers but for one size
_ROW_DATA = 8  # multiplier and shift of one row of weights: two int32
# Fitted. Parsed options and what a kernel keeps; almost all of it numbers.
_OPERATOR_DATA = 44


def cache_windows(context: int) -> tuple[int, ...]:
    """256, 512, 1,024 … up to the context, which is always the last."""
    windows = []
    window = _SMALLEST_WINDOW
    while window < context:
        windows.append(window)
        window *= 2
    return (*windows, context)


@dataclass(frozen=True)
class Footprint:
    """Resident memory of a process at its peak, bytes, by what it is for."""

    process: int  # Python and the libraries
    tokenizer: int
    weights: int
    graph: int  # records of tensors and operators
    workspace: int  # activations
    kv_cache: int  # of the last window, which takes over the one before it layer by layer
    original: int = 0  # weights as the graph has them, in memory beside those that are packed of them; 0: none are

    @property
    def total(self) -> int:
        """The peak of a start whose packed weights are kept in a file. The first one, which writes it, has about the
        same: it opens the graph again, and has not filled the cache before."""
        return self.process + self.tokenizer + self.weights + self.graph + self.workspace + self.kv_cache

    @property
    def unkept(self) -> int:
        """The peak of a start that has no place for that file: it packs them in memory, each time."""
        return max(self.total, self.process + self.tokenizer + self.weights + self.graph + self.original)


def model_bytes(counts: GraphCounts, profile: str, context: int) -> int:
    """The size of model.tflite."""
    weights = counts.matmul_bytes + counts.embedding_bytes
    if profile == "pi":
        tables = counts.constant_bytes_per_position * context
        return weights + tables + counts.rows * _GRAPH_ROW + counts.operators * _GRAPH_OPERATOR
    return weights + counts.constant_bytes_per_position * context + 12 * counts.rows + 160 * counts.operators


def memory(
    shape: GraphShape,
    counts: GraphCounts,
    profile: str,
    context: int,
    tokenizer_bytes: int,
    graph_bytes: int,
    table: bool = False,
) -> Footprint:
    """The peak of a process that answers until its context is full.

    Args:
        graph_bytes: the size of model.tflite, measured or from `model_bytes`.
        tokenizer_bytes: the size of the tokenizer's file.
        table: whether the engine reads a table instead of it.
    """
    tokenizer = int(tokenizer_bytes * (_TABLE_FACTOR if table else _TOKENIZER_FACTOR))
    if profile == "micro":
        wide = arena(counts, context, 8)
        # The interpreter keeps no records as dense as TFLite Micro's, and maps the whole graph.
        graph = _LITERT_MODEL + _INTERPRETER_OPERATOR * counts.operators + _INTERPRETER_ROW * counts.rows
        return Footprint(
            _PROCESS["micro"],
            tokenizer,
            graph_bytes,
            graph,
            wide.head_bytes,
            wide.kv_cache_bytes + 8 * shape.vocabulary,
        )
    records = counts.operators * _SIGNATURE_OPERATOR + int(_SIGNATURE_ROW * counts.signatures * counts.rows)
    in_file = counts.matmul_bytes + counts.embedding_bytes
    return Footprint(
        process=_PROCESS["pi"],
        tokenizer=tokenizer,
        weights=counts.matmul_bytes + _PACKED_ROW * counts.rows,
        graph=_LITERT_MODEL + records + max(0, graph_bytes - in_file),
        workspace=counts.activation_bytes(context),
        kv_cache=counts.kv_cache_bytes_per_position * context,
        original=counts.matmul_bytes,
    )


def arena(counts: GraphCounts, context: int, pointer_bytes: int) -> Arena:
    """The arena of a `micro` graph in TFLite Micro, where addresses have 4 or 8 bytes."""
    records = (
        counts.operators * (_OPERATOR_RECORD[pointer_bytes] + _OPERATOR_DATA)
        + counts.tensors * _TENSOR_RECORD[pointer_bytes]
        + counts.rows * _ROW_DATA
    )
    kv_cache = counts.kv_cache_bytes_per_position * context
    head = counts.activation_bytes(context)
    return Arena(head + records + kv_cache, head, records + kv_cache, kv_cache, pointer_bytes)


def at_pointer_size(measured: Arena, counts: GraphCounts, pointer_bytes: int) -> Arena:
    """A measured arena as it is where addresses have `pointer_bytes`.

    The records of tensors and operators shrink. What kernels keep is counted as it was measured, so the result is an
    upper bound.
    """
    if pointer_bytes == measured.pointer_bytes:
        return measured
    per_tensor = _TENSOR_RECORD[measured.pointer_bytes] - _TENSOR_RECORD[pointer_bytes]
    per_operator = _OPERATOR_RECORD[measured.pointer_bytes] - _OPERATOR_RECORD[pointer_bytes]
    less = counts.tensors * per_tensor + counts.operators * per_operator
    less = min(less, measured.tail_bytes - measured.kv_cache_bytes)
    return Arena(
        measured.total_bytes - less,
        measured.head_bytes,
        measured.tail_bytes - less,
        measured.kv_cache_bytes,
        pointer_bytes,
    )


def at_context(measured: Arena, counts: GraphCounts, before: int, after: int) -> Arena:
    """An arena that was measured with one context, as it is with another, both in positions.

    The kv_cache follows the context, the records do not depend on it, and the activations change as computed.
    """
    kv_cache = measured.kv_cache_bytes * after // before
    records = measured.tail_bytes - measured.kv_cache_bytes
    head = -(-measured.head_bytes * counts.activation_bytes(after) // counts.activation_bytes(before))
    tail = records + kv_cache
    return Arena(head + tail, head, tail, kv_cache, measured.pointer_bytes)


def engine_memory(counts: GraphCounts, context: int) -> EngineMemory:
    """What the C engine takes of a graph that is not made yet, at most: it keeps fewer activations than TFLite Micro,
    because what lies between two matmuls is never in memory."""
    return EngineMemory(counts.activation_bytes(context), counts.kv_cache_bytes_per_position * (-(-context // 16) * 16))


def engine_at_context(measured: EngineMemory, before: int, after: int) -> EngineMemory:
    """What the C engine takes with another context, both in positions: at most four bytes of a scratch a position more,
    and the kv_cache, whose values are in rows of a multiple of 16 positions."""
    rows = -(-after // 16) * 16
    arena_bytes = measured.arena_bytes + max(0, 4 * (rows - before))
    return EngineMemory(arena_bytes, -(-measured.kv_cache_bytes * rows // before))
