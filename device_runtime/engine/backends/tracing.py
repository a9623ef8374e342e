"""Reads tensors from inside a graph: LiteRT's Interpreter, set to keep every tensor.

It uses the built-in kernels. In the `pi` profile these quantize activations a little differently from XNNPACK's,
so its layers agree with the running backend's closely but not to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.prefix import read_prefix
from device_runtime.engine.backends.native_log import captured_stderr
from device_runtime.errors import BackendError, BackendMissingError
from device_runtime.machine.kernels import LITERT_PACKAGE

__all__ = ["trace_tensors"]


def trace_tensors(bundle: Bundle, tokens: Sequence[int], names: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
    """Run `tokens` after the bundle's prefix and collect tensors.

    Args:
        names: tensors of the graph's first signature, float32 of shape (1, width) each for one token.

    Returns:
        name -> (tokens, width).
    """
    bundle.manifest.require_present_graph()
    with captured_stderr() as log:
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError:
            raise BackendMissingError(f"Tracing layers needs LiteRT; run `pip install '{LITERT_PACKAGE}'`.") from None
        try:
            interpreter: Any = Interpreter(
                str(bundle.model_path),
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                experimental_preserve_all_tensors=True,
                num_threads=1,
            )
            for given in interpreter.get_input_details():
                if given["name"] in ("tokens", "positions"):  # of any number
                    interpreter.resize_tensor_input(given["index"], [1])
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise BackendError(f"LiteRT refused {bundle.model_path}: {error}\n{log()}".rstrip()) from None
        window = bundle.manifest.graph.windows[0]
        prefix = len(bundle.manifest.prefix_tokens)
        if prefix + len(tokens) > window:
            room = max(0, window - prefix)
            raise BackendError(
                f"Layers can be traced for at most {room} tokens, after a prefix of {prefix} in a cache window of "
                f"{window}; found {len(tokens)}."
            )
        where = {d["name"]: d["index"] for d in interpreter.get_tensor_details()}
        collected = _run(interpreter, bundle, tokens, [where[name] for name in names])
    return {name: np.concatenate(rows) for name, rows in zip(names, collected, strict=True)}


def _run(interpreter: Any, bundle: Bundle, tokens: Sequence[int], wanted: list[int]) -> list[list[Any]]:
    inputs = {d["name"]: d for d in interpreter.get_input_details()}
    outputs = {d["name"]: d["index"] for d in interpreter.get_output_details()}
    cached = [name for name in inputs if name.startswith(("k_", "v_"))]  # none in a graph that keeps its own cache
    cache = {name: np.zeros(inputs[name]["shape"], inputs[name]["dtype"]) for name in cached}
    prefix = len(bundle.manifest.prefix_tokens)
    if cached and prefix:
        keys, values = read_prefix(bundle)
        for name in cached:
            rows = (keys if name[0] == "k" else values)[int(name[2:])]  # (positions, kv_heads, head_dim)
            cache[name][0, :, :prefix] = rows.swapaxes(0, 1)
    collected: list[list[Any]] = [[] for _ in wanted]
    if "rows" in inputs:
        interpreter.set_tensor(inputs["rows"]["index"], np.array([0], np.int32))
        slots = np.arange(1, inputs["slots"]["shape"][0] + 1, dtype=np.float32)
        interpreter.set_tensor(inputs["slots"]["index"], slots)
    token_input, position_input = ("tokens", "positions") if "tokens" in inputs else ("token", "position")
    for position, token in enumerate(tokens, prefix):
        interpreter.set_tensor(inputs[token_input]["index"], np.array([token], np.int32))
        interpreter.set_tensor(inputs[position_input]["index"], np.array([position], np.int32))
        for name in cached:
            interpreter.set_tensor(inputs[name]["index"], cache[name])
        interpreter.invoke()
        for name in cached:
            cache[name] = interpreter.get_tensor(outputs[name])
        for rows, index in zip(collected, wanted, strict=True):
            rows.append(interpreter.get_tensor(index).copy())
    return collected
