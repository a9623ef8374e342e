"""How close a graph is to the float network, on the same windows of the same text.

Every window starts right after the bundle's prefix, in both readings. The float network reads all windows at once;
the graph reads them token by token, as it answers, in as many processes as there are cores. What is kept of a position
is a few numbers, not its logits.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from converters.checkpoints import Checkpoint
from converters.measure.trace import layer_names, trace_bundle
from converters.network.config import NetworkConfig
from converters.network.decoder import head, head_input, hidden
from converters.network.weights import CanonicalWeights, FloatArray
from converters.ops.numpy import KvCache, NumpyOps
from converters.quantize.prefix import prefix_cache
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.work_place import work_folder
from device_runtime.engine.backends import Backend, open_backend
from device_runtime.errors import BackendError, ConfigurationError, StonechatError
from device_runtime.machine.machine import usable_cores

__all__ = [
    "Comparison",
    "LayerError",
    "Positions",
    "by_kind",
    "can_trace_layers",
    "compare_logits",
    "compare_windows",
    "layer_errors",
    "logits_by_rows",
    "pooled",
    "worst_layers",
]

_HEAD_ROWS = 256  # positions whose float logits are held at once
_TRACED_TOKENS = 128  # of a window, for the error of each layer

Windows = npt.NDArray[np.integer]  # (windows, length) tokens


@dataclass(frozen=True)
class Positions:
    """What is known of each position whose next token is known: arrays of one length."""

    graph_loss: npt.NDArray[np.float64]  # -log p of the next token
    float_loss: npt.NDArray[np.float64]  # NaN when there is no float network to compare with
    divergence: npt.NDArray[np.float64]  # Kullback-Leibler, float from graph, nats
    same_top: npt.NDArray[np.float64]  # 1 where both find the same token the most likely


@dataclass(frozen=True)
class Comparison:
    """A graph beside the float network. Without a float network only the first two are numbers."""

    tokens: int
    graph_perplexity: float
    float_perplexity: float | None = None
    ratio: float | None = None  # graph / float
    ratio_error: float | None = None  # standard error of the ratio
    kl_divergence: float | None = None  # nats per token
    top1_agreement: float | None = None  # share of the positions

    def to_json(self) -> dict[str, Any]:
        """Rounded to what is meaningful; without what is not known."""
        return {k: round(v, 5) if isinstance(v, float) else v for k, v in asdict(self).items() if v is not None}


def pooled(parts: Iterable[Positions]) -> Comparison:
    """The comparison over all positions of all parts."""
    rows = list(parts)
    graph, reference, divergence, same = (
        np.concatenate([getattr(part, name) for part in rows])
        for name in ("graph_loss", "float_loss", "divergence", "same_top")
    )
    perplexity = float(np.exp(graph.mean()))
    if np.isnan(reference).any():
        return Comparison(graph.size, perplexity)
    difference = graph - reference
    ratio = float(np.exp(difference.mean()))
    return Comparison(
        tokens=graph.size,
        graph_perplexity=perplexity,
        float_perplexity=float(np.exp(reference.mean())),
        ratio=ratio,
        ratio_error=ratio * float(difference.std()) / graph.size**0.5,
        kl_divergence=float(divergence.mean()),
        top1_agreement=float(same.mean()),
    )


def compare_logits(reference: FloatArray | None, graph: FloatArray, following: npt.NDArray[np.integer]) -> Positions:
    """Compare (rows, vocabulary) logits of both; `following` is each row's next token."""
    rows = np.arange(len(following))
    log_graph = _log_softmax(graph)
    loss = -log_graph[rows, following].astype(np.float64)
    if reference is None:
        nothing = np.full(len(rows), np.nan)
        return Positions(loss, nothing, nothing, nothing)
    log_float = _log_softmax(reference)
    divergence = np.einsum("tv,tv->t", np.exp(log_float), log_float - log_graph).astype(np.float64)
    same = (reference.argmax(axis=1) == graph.argmax(axis=1)).astype(np.float64)
    return Positions(loss, -log_float[rows, following].astype(np.float64), divergence, same)


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def logits_by_rows(config: NetworkConfig, ops: NumpyOps) -> Callable[[int, int], FloatArray]:
    """Read the network with `ops`; returns a function that computes the logits of rows start … stop.

    It asks for `head.weight` at every call: see `keeping`.
    """
    x = hidden(ops, config)  # (windows * length, width)
    return lambda start, stop: head(ops, config, x[start:stop])


def compare_windows(
    bundle: Bundle,
    windows: Windows,
    checkpoint: Checkpoint | None,
    *,
    backend: str | None = None,
    workers: int | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Positions]:
    """Run a bundle's graph over windows, and the float network beside it.

    Args:
        windows: (windows, length); prefix and window together fit the context.
        checkpoint: what the bundle was made of; None gives the graph's losses alone.
        backend: a name in `device_runtime.engine.backends.BACKENDS`; None takes the usual one.
        workers: processes; None takes one for each core. The result is the same for any number.
        progress: called with the share that is done.

    Returns:
        One result for each window.
    """
    if windows.shape[1] < 2:
        raise ConfigurationError(f"A window has {windows.shape[1]} token; at least 2 are needed to predict one.")
    progress(0.0)
    with work_folder(Path(tempfile.gettempdir()) / "measure") as folder:
        if checkpoint is not None:
            _save_reference(folder, bundle, windows, checkpoint)
        progress(0.1)
        count = min(workers or usable_cores(), len(windows))
        arguments = (str(bundle.path), backend, str(folder) if checkpoint is not None else None)
        # Spawned, not forked: a runtime that this process has opened does not survive a fork.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(count, context, _Worker.start, arguments)
        try:
            results = []
            for result in pool.map(_Worker.compare, range(len(windows)), windows):
                results.append(result)
                progress(0.1 + 0.9 * len(results) / len(windows))
            return results
        except BrokenProcessPool:
            raise BackendError(
                f"A process that was reading windows ended; the memory may be too small for {count} of them."
            ) from None
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _save_reference(folder: Path, bundle: Bundle, windows: Windows, checkpoint: Checkpoint) -> None:
    """Leave what workers need of the float network: the rows that its head reads, and the head."""
    config = checkpoint.config.for_context(bundle.manifest.context)
    read = CanonicalWeights(config, checkpoint.read)
    ops = NumpyOps(config, read, windows, prefix_cache(read, bundle.manifest.prefix_tokens))
    x = head_input(ops, config, hidden(ops, config))
    np.save(folder / "rows.npy", x.reshape(*windows.shape, -1))
    np.save(folder / "head.npy", read("head.weight"))
    bias = read("head.bias") if config.head.bias else np.zeros(config.vocabulary, np.float32)
    np.save(folder / "bias.npy", bias)
    (folder / "head.json").write_text(json.dumps({"scale": config.head.scale, "softcap": config.head.softcap}))


class _Worker:
    """One process's graph. Its state is the class's: a process pool can hand over only functions."""

    backend: Backend
    refusal: StonechatError | None = None  # why the graph could not be opened
    rows: FloatArray | None
    head: FloatArray  # (vocabulary, width)
    bias: FloatArray  # (vocabulary,)
    shaping: dict[str, float | None]  # `scale` and `softcap` of `network.config.Head`

    @classmethod
    def start(cls, bundle: str, backend: str | None, folder: str | None) -> None:
        """Open the graph."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the workers
        try:
            cls.backend = open_backend(Bundle.open(Path(bundle)), backend, 1)
        except StonechatError as error:  # raised here it would end the process, and nobody would learn why
            cls.refusal = error
        cls.rows = None if folder is None else np.load(Path(folder) / "rows.npy", mmap_mode="r")
        if folder is not None:
            cls.head = np.load(Path(folder) / "head.npy", mmap_mode="r")
            cls.bias = np.load(Path(folder) / "bias.npy")
            cls.shaping = json.loads((Path(folder) / "head.json").read_text())

    @classmethod
    def compare(cls, number: int, window: npt.NDArray[np.integer]) -> Positions:
        """One window, in blocks of rows."""
        if cls.refusal is not None:
            raise cls.refusal
        cls.backend.rewind(0)
        parts = []
        for start in range(0, len(window) - 1, _HEAD_ROWS):
            block = window[start : start + _HEAD_ROWS + 1]
            graph = np.stack([cls.backend.decode(int(token)).copy() for token in block[:-1]])
            reference = None
            if cls.rows is not None:
                reference = cls._logits(cls.rows[number, start : start + len(graph)])
            parts.append(compare_logits(reference, graph, block[1:]))
        names = ("graph_loss", "float_loss", "divergence", "same_top")
        return Positions(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @classmethod
    def _logits(cls, rows: FloatArray) -> FloatArray:
        """The float network's, of what its head reads: (rows, vocabulary)."""
        logits = rows @ cls.head.T
        if cls.bias.any():
            logits = logits + cls.bias
        if cls.shaping["scale"] not in (None, 1):
            logits = logits * np.float32(cls.shaping["scale"])
        if (cap := cls.shaping["softcap"]) is not None:
            logits = np.float32(cap) * np.tanh(logits / np.float32(cap))
        return np.asarray(logits)


@dataclass(frozen=True)
class LayerError:
    """Signal-to-noise ratio of the residual sum after a block, dB: each token weighs the same."""

    name: str  # `layers.3.attention_out`, `layers.3.out`
    snr_db: float
    lost_db: float  # less than after the block before


def can_trace_layers(bundle: Bundle) -> bool:
    """Whether `layer_errors` can read the graph: LiteRT shows the inner tensors of no graph with int4 in blocks, other
    than with a kernel that takes seconds a token."""
    return bundle.manifest.weight_bits != 4


def layer_errors(bundle: Bundle, checkpoint: Checkpoint, windows: Windows) -> list[LayerError]:
    """How far the graph's residual sums are from the float network's, from the start of each window.

    Empty if the prefix fills the graph's first cache window, the one that can be traced.
    """
    config = checkpoint.config.for_context(bundle.manifest.context)
    prefix_tokens = list(bundle.manifest.prefix_tokens)
    room = bundle.manifest.graph.windows[0] - len(prefix_tokens)  # only the first cache window can be traced
    if room < 1:
        return []
    windows = windows[:, : min(_TRACED_TOKENS, room)]
    names = layer_names(config.layers)
    seen: dict[str, FloatArray] = {}

    def keep(name: str, values: FloatArray) -> None:
        if name in names:
            seen[name] = values

    read = CanonicalWeights(config, checkpoint.read)
    past: KvCache = prefix_cache(read, prefix_tokens)
    hidden(NumpyOps(config, read, windows, past, keep), config)
    traces = [trace_bundle(bundle.path, [*prefix_tokens, *map(int, window)], layers=True) for window in windows]
    errors: list[LayerError] = []
    for name in names:
        graph = np.concatenate([trace[name][len(prefix_tokens) :] for trace in traces])
        noise = np.square(seen[name] - graph).sum(axis=1) / np.maximum(np.square(seen[name]).sum(axis=1), 1e-12)
        snr_db = float(-10 * np.log10(max(float(noise.mean()), 1e-12)))
        errors.append(LayerError(name, snr_db, errors[-1].snr_db - snr_db if errors else 0.0))
    return errors


def worst_layers(errors: Sequence[LayerError], count: int = 3) -> list[LayerError]:
    """The blocks in which most is lost."""
    return sorted(errors, key=lambda error: -error.lost_db)[:count]


def by_kind(
    kinds: Mapping[str, Windows], compare: Callable[[Windows], Sequence[Positions]]
) -> tuple[dict[str, Comparison], Comparison]:
    """Compare several texts, whose windows have one length, in one go: each alone, and all of them together."""
    results = list(compare(np.concatenate(list(kinds.values()))))
    comparisons, start = {}, 0
    for kind, windows in kinds.items():
        comparisons[kind] = pooled(results[start : start + len(windows)])
        start += len(windows)
    return comparisons, pooled(results)
