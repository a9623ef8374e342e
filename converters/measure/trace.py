"""Every position's logits, and every layer's output, of a checkpoint or of a bundle.

The tool for finding out where two readings of one network part: trace the checkpoint and the bundle with the
same tokens and compare the arrays name by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.bundle.work_place import whole_stream
from device_runtime.engine.backends import open_backend
from device_runtime.errors import ConfigurationError
from device_runtime.update.active import open_bundle

__all__ = ["distances", "layer_names", "trace_bundle", "trace_checkpoint"]

Arrays = dict[str, npt.NDArray[np.float32]]


def layer_names(layers: int) -> list[str]:
    """Canonical names of the residual stream after each attention and after each feed-forward block."""
    return [f"layers.{i}.{part}" for i in range(layers) for part in ("attention_out", "out")]


def trace_checkpoint(path: Path, tokens: Sequence[int], layers: bool, context: int | None = None) -> Arrays:
    """Trace the float reference.

    Args:
        context: of the bundle that it is compared with, where LongRoPE makes a difference; None: as many as the tokens.

    Returns:
        `logits` (tokens, vocabulary), and with `layers` each of `layer_names` as (tokens, width).
    """
    from converters.checkpoints import open_checkpoint
    from converters.network.decoder import decoder
    from converters.network.tensors import residual_names
    from converters.network.weights import CanonicalWeights
    from converters.ops.numpy import NumpyOps

    checkpoint = open_checkpoint(path)
    config = checkpoint.config.for_context(context or len(tokens))
    _check(tokens, checkpoint.config.vocabulary, checkpoint.config.max_context)
    wanted = set(residual_names(config)) if layers else set()
    arrays: Arrays = {}

    def keep(name: str, values: npt.NDArray[np.float32]) -> None:
        if name in wanted:
            arrays[name] = values

    read = CanonicalWeights(config, checkpoint.read)
    arrays["logits"] = decoder(NumpyOps(config, read, np.array([tokens]), observe=keep), config)
    return arrays


def trace_bundle(path: Path, tokens: Sequence[int], layers: bool, backend_name: str | None = None) -> Arrays:
    """Trace a graph, token by token, as it answers.

    Where `tokens` begin with the bundle's prefix, the rows of the prefix are those that the float network had
    at conversion (only of its last token; the others are NaN). Else the prefix comes before `tokens` and has
    no rows.

    Returns:
        As `trace_checkpoint`. Layers come from LiteRT's Interpreter, which keeps every tensor.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    prefix = list(manifest.prefix_tokens)
    inside = len(prefix) if list(tokens[: len(prefix)]) == prefix else 0
    _check(tokens, manifest.graph.vocabulary, manifest.context - len(prefix) + inside)
    logits = np.full((len(tokens), manifest.graph.vocabulary), np.nan, np.float32)
    if inside:
        logits[inside - 1] = np.load(bundle.prefix_path)["logits"]
    rest = tokens[inside:]
    backend = open_backend(bundle, backend_name)
    try:
        for row, token in enumerate(rest, inside):
            logits[row] = backend.decode(token)
    finally:
        backend.close()
    arrays: Arrays = {"logits": logits}
    if layers:
        from device_runtime.engine.backends.tracing import trace_tensors

        for name, values in trace_tensors(bundle, rest, layer_names(manifest.graph.layers)).items():
            if manifest.graph.rotated:  # back to the checkpoint's basis
                from converters.quantize.rotation import rotation_matrix

                values = values @ rotation_matrix(values.shape[1]).T
            missing = np.full((inside, values.shape[1]), np.nan, np.float32)
            arrays[name] = np.concatenate([missing, values])
    return arrays


def distances(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """How near two traces are, by name and in the order of the network: signal to noise in dB, up to 150.

    Rows that one of them does not have (NaN) are left out.

    Raises:
        ConfigurationError: they have no name in common, or one with arrays of different shapes.
    """
    common = sorted((name for name in ours if name in theirs and name != "tokens"), key=_place)
    if not common:
        raise ConfigurationError("The two traces have no array of one name; trace both with --layers.")
    found = {}
    for name in common:
        if ours[name].shape != theirs[name].shape:
            raise ConfigurationError(
                f"{name} is {ours[name].shape} in one trace and {theirs[name].shape} in the other; trace the same "
                "model with the same tokens."
            )
        there = ~(np.isnan(ours[name]) | np.isnan(theirs[name]))
        signal, noise = np.square(theirs[name][there]).sum(), np.square((ours[name] - theirs[name])[there]).sum()
        found[name] = float(min(150.0, 10 * np.log10(max(float(signal), 1e-30) / max(float(noise), 1e-30))))
    return found


def _place(name: str) -> tuple[float, str]:
    parts = name.split(".")
    return (float(parts[1]) if parts[0] == "layers" else np.inf, name)


def _check(tokens: Sequence[int], vocabulary: int, positions: int) -> None:
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise ConfigurationError(f"Token {token} is not in the vocabulary; it must be from 0 to {vocabulary - 1}.")
    if len(tokens) > positions:
        raise ConfigurationError(f"{len(tokens)} tokens do not fit; there is room for {positions}.")


def save(path: Path, arrays: dict[str, Any]) -> None:
    """Write an .npz that appears whole."""
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder; name a file with -o.")
    with whole_stream(path) as stream:
        np.savez(stream, **arrays)
