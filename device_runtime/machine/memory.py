"""What a model takes: memory, storage and memory traffic, computed from its shape before anything is run.

Each formula names what it adds up. What it multiplies is either derived (from a layout in a header, or from what the
converter writes) or fitted: least squares over processes and arenas of networks between two and thirty layers.
`benchmarks/fit_constants.py` fits them anew and prints them beside those here; `benchmarks/fit.py` prints prediction
beside measurement, and tests hold the difference.

`pi`, in LiteRT's CompiledModel: the resident memory of the process at its peak, with the context full. Packed weights
and the graph are pages of files, which the kernel may drop; they count, because a model whose weights do not stay
resident reads them from the card for every token.

`micro`, in TFLite Micro: the arena. It has a head, where activations take turns, and a tail, which holds the kv_cache
and a record for each tensor, operator and row of weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from device_runtime.bundle.manifest import Arena, GraphShape

__all__ = ["PREFILL_TOKENS", "Footprint", "arena", "cache_windows", "memory", "model_bytes", "narrowed", "stretched"]

PREFILL_TOKENS = 64  # measured best of 32, 64 and 128: per token, and in the memory of one pass
_SMALLEST_WINDOW = 256  # below this, attention is a small part of a step
_FLOAT = 4

# Fitted. Of a process, x86_64, Python 3.11, LiteRT 2.3; a 32-bit process takes less.
_PROCESS = {"pi": 54_200 << 10, "micro": 52_500 << 10}  # the interpreter, numpy, LiteRT, tokenizers: code and data
_TOKENIZER_FACTOR = 13.0  # a tokenizer in memory, as a multiple of its file
_LITERT_MODEL = 1_450 << 10  # an opened graph, whatever its size
_SIGNATURE_LAYER = 159 << 10  # tensors and operators of one layer in one signature
_SIGNATURE_ROW = 12.9  # scale, zero point and bookkeeping of one row of weights in one signature
_INTERPRETER_OPERATOR = 1_400  # of a `micro` graph in the interpreter; SmolLM2 bears it out, small ones cannot tell
_INTERPRETER_ROW = 100  # of weights there
_GRAPH_LAYER = 22_000  # of the FlatBuffer, one layer of one signature

# Derived. XNNPACK's row is a float scale, an int32 sum and a float bias, beside the packed weights.
_PACKED_ROW = 12

# Derived. Of TFLite Micro: bytes of a record where pointers have 8 bytes, and where they have 4.
_TENSOR_RECORD = {8: 24, 4: 12}  # TfLiteEvalTensor: two pointers and a type
_OPERATOR_RECORD = {8: 64, 4: 32}  # NodeAndRegistration: pointers but for one size
_ROW_DATA = 8  # multiplier and shift of one row of weights: two int32
_ARENA_ALIGNMENT = 16
# Fitted. Parsed options and what a kernel keeps; almost all of it numbers.
_OPERATOR_DATA = 44
# What a search for grids adds to a layer of a `micro` graph: factors and centers before and after its matmuls. The
# first two are counted in graphs that the converter wrote, the last is fitted.
_GRID_OPERATORS, _GRID_TENSORS, _GRID_DATA = 6, 16, 300


def cache_windows(context: int) -> tuple[int, ...]:
    """256, 1,024, 4,096 … up to the context, which is always the last."""
    windows = []
    window = _SMALLEST_WINDOW
    while window < context:
        windows.append(window)
        window *= 4
    return (*windows, context)


@dataclass(frozen=True)
class Footprint:
    """Resident memory of a process at its peak, bytes, by what it is for."""

    process: int  # Python and the libraries
    tokenizer: int
    weights: int
    graph: int  # records of tensors and operators
    workspace: int  # activations
    kv_cache: int  # of the last window, and of the one before it while the rows move
    first_start: int  # more, at the start that packs the weights; later ones do without

    @property
    def later(self) -> int:
        """The peak of every start but the first."""
        return self.total - self.first_start

    @property
    def total(self) -> int:
        """The peak of the first start, the highest there is."""
        return (
            self.process + self.tokenizer + self.weights + self.graph + self.workspace + self.kv_cache
            + self.first_start
        )  # fmt: skip


def model_bytes(shape: GraphShape, profile: str, context: int) -> int:
    """The size of model.tflite."""
    weights = shape.weight_bytes + (0 if shape.tied_head else shape.vocabulary * shape.width)
    tables = 2 * _FLOAT * (context + (PREFILL_TOKENS if profile == "pi" else 0)) * shape.head_dim
    scales = _FLOAT * shape.vocabulary
    if profile == "pi":
        signatures = 2 * len(cache_windows(context))
        mapped = _FLOAT * shape.width**2 if shape.tied_head else 0
        return (
            weights + mapped + tables + scales + signatures * (_FLOAT * _rows(shape, 5) + shape.layers * _GRAPH_LAYER)
        )
    mapped = 2 * shape.width**2 if shape.tied_head else 0
    slots = _FLOAT * context
    return weights + mapped + tables + scales + slots + 12 * _rows(shape, 2) + 160 * _operators(shape)


def memory(shape: GraphShape, profile: str, context: int, tokenizer_bytes: int, graph_bytes: int) -> Footprint:
    """The peak of a process that answers until its context is full.

    Args:
        graph_bytes: the size of model.tflite, measured or from `model_bytes`.
        tokenizer_bytes: the size of the tokenizer's file.
    """
    tokenizer = int(tokenizer_bytes * _TOKENIZER_FACTOR)
    if profile == "micro":
        wide = arena(shape, context, 8)
        # The interpreter keeps no records as dense as TFLite Micro's, and maps the whole graph.
        graph = _LITERT_MODEL + _INTERPRETER_OPERATOR * _operators(shape) + _INTERPRETER_ROW * _rows(shape, 2)
        return Footprint(
            _PROCESS["micro"],
            tokenizer,
            graph_bytes,
            graph,
            wide.head_bytes,
            wide.kv_cache_bytes + 8 * shape.vocabulary,
            0,
        )
    windows = cache_windows(context)
    rows = _rows(shape, 5)
    mapped = _FLOAT * shape.width**2 if shape.tied_head else 0
    packed = shape.weight_bytes + mapped + _PACKED_ROW * rows
    in_file = shape.weight_bytes + mapped + (0 if shape.tied_head else shape.vocabulary * shape.width)
    records = 2 * len(windows) * (shape.layers * _SIGNATURE_LAYER + int(_SIGNATURE_ROW * rows))
    last_two = sum(_float_cache(shape, window) for window in windows[-2:])
    # Packing reads the largest weights into memory of its own.
    largest = max(shape.vocabulary, 2 * shape.ffn_width) * shape.width
    return Footprint(
        process=_PROCESS["pi"],
        tokenizer=tokenizer,
        weights=packed,
        graph=_LITERT_MODEL + records + max(0, graph_bytes - in_file),
        workspace=sum(_prefill_workspace(shape, window) for window in windows),
        kv_cache=last_two,
        first_start=largest,
    )


def arena(shape: GraphShape, context: int, pointer_bytes: int, *, thorough: bool = True) -> Arena:
    """The arena of a `micro` graph in TFLite Micro, where addresses have 4 or 8 bytes.

    Args:
        thorough: converted without `--fast`, which leaves the search for grids out.
    """
    operators, tensors = _operators(shape), _tensors(shape)
    if thorough:
        operators += _GRID_OPERATORS * shape.layers
        tensors += _GRID_TENSORS * shape.layers
    records = (
        operators * (_OPERATOR_RECORD[pointer_bytes] + _OPERATOR_DATA)
        + tensors * _TENSOR_RECORD[pointer_bytes]
        + _rows(shape, 2) * _ROW_DATA
        + (_GRID_DATA * shape.layers if thorough else 0)
    )
    kv_cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * context
    head = _arena_head(shape, context)
    return Arena(head + records + kv_cache, head, records + kv_cache, kv_cache, pointer_bytes)


def narrowed(measured: Arena, shape: GraphShape, pointer_bytes: int) -> Arena:
    """A measured arena as it is where addresses have `pointer_bytes`.

    The records of tensors and operators shrink. What kernels keep, and what a search for grids added, is counted as it
    was measured, so the result is an upper bound.
    """
    if pointer_bytes == measured.pointer_bytes:
        return measured
    per_tensor = _TENSOR_RECORD[measured.pointer_bytes] - _TENSOR_RECORD[pointer_bytes]
    per_operator = _OPERATOR_RECORD[measured.pointer_bytes] - _OPERATOR_RECORD[pointer_bytes]
    less = _tensors(shape) * per_tensor + _operators(shape) * per_operator
    less = min(less, measured.tail_bytes - measured.kv_cache_bytes)
    return Arena(
        measured.total_bytes - less,
        measured.head_bytes,
        measured.tail_bytes - less,
        measured.kv_cache_bytes,
        pointer_bytes,
    )


def stretched(measured: Arena, shape: GraphShape, before: int, after: int) -> Arena:
    """An arena that was measured with one context, as it is with another, both in positions.

    The kv_cache follows the context, the records do not depend on it, and the activations change as computed.
    """
    kv_cache = measured.kv_cache_bytes * after // before
    records = measured.tail_bytes - measured.kv_cache_bytes
    head = -(-measured.head_bytes * _arena_head(shape, after) // _arena_head(shape, before))
    tail = records + kv_cache
    return Arena(head + tail, head, tail, kv_cache, measured.pointer_bytes)


def _arena_head(shape: GraphShape, context: int) -> int:
    """The largest set of activations that are alive at once."""
    width, q, kv = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    group = shape.heads // shape.kv_heads
    throughout = 4 * context + 8 * shape.head_dim + 2 * _ARENA_ALIGNMENT  # the mask, cos and sin
    feed_forward = 4 * (width + 4 * shape.ffn_width)  # residual, gate, up, sigmoid, product
    rope = 4 * width + 16 * q + 8 * kv  # residual, a query in four forms, key and value
    attention = 4 * width + 4 * q + 2 * kv + 8 * group * context  # residual, queries, scores before and after softmax
    logits = 2 * width + 2 * shape.vocabulary  # int16
    return _aligned(max(throughout + max(feed_forward, rope, attention), logits))


def _operators(shape: GraphShape) -> int:
    """Of a `micro` graph with a prefix."""
    heads = shape.kv_heads
    layer = 60 + 6 * (_ranges(shape, 2) > 1) + heads * (15 if shape.heads > heads else 14) - 6 * (heads == 1)
    return shape.layers * layer + (30 if shape.tied_head else 24)


def _tensors(shape: GraphShape) -> int:
    """Of a `micro` graph: one for each operator's result, and constants."""
    return _operators(shape) + 15 * shape.layers + 36


def _rows(shape: GraphShape, ranges: int) -> int:
    """Rows of all matmuls; `down` has its rows once for each range of its columns."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = q + 2 * kv + shape.width + 2 * shape.ffn_width + shape.width * _ranges(shape, ranges)
    return shape.layers * layer + shape.vocabulary + 2 * shape.width


def _ranges(shape: GraphShape, most: int) -> int:
    return most if shape.ffn_width >= 256 else 1


def _float_cache(shape: GraphShape, window: int) -> int:
    return 2 * _FLOAT * shape.layers * shape.kv_heads * shape.head_dim * window


def _prefill_workspace(shape: GraphShape, window: int) -> int:
    """Activations of the chunk and of the single step; XNNPACK keeps them for each window."""
    tokens = min(PREFILL_TOKENS, window)
    scores = shape.heads * tokens * (window + tokens)
    fresh = 2 * shape.layers * shape.kv_heads * shape.head_dim * tokens  # keys and values until the end of the graph
    feed_forward = 2 * shape.ffn_width * tokens * 6 // 5
    return _FLOAT * (2 * scores + fresh + feed_forward + 2 * shape.vocabulary)


def _aligned(size: int) -> int:
    return -(-size // _ARENA_ALIGNMENT) * _ARENA_ALIGNMENT
