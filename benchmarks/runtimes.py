"""Where TFLite Micro, LiteRT and tflite-runtime 2.14 differ on a `micro` graph: operator by operator, then in tokens.

    python benchmarks/runtimes.py [BUNDLE] [--python214 .venv-tflite214/bin/python]

Each operator of the graph whose kernels could round in their own way runs alone, in the shapes of SmolLM2-135M, on the
same random input in all three, and is compared with its exact result, computed in float64. With a bundle, each runtime
then continues some texts greedily for 200 tokens. tflite-runtime needs numpy 1, and so a Python of its own (`make test`
sets one up).
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.emit.tflite_write import GraphWriter, Quantization, Subgraph, Tensor
from device_runtime.engine.backends.native_log import captured_stderr

ROOT = Path(__file__).resolve().parents[1]
Op = schema.BuiltinOperator
NEW = 200  # tokens of each continuation
CHAT = (
    "What is the capital of France?",
    "Explain in one sentence why the sky is blue.",
    "List three uses of copper.",
    "Write a short story about a lighthouse.",
)
# Plain texts that leave a language model little choice.
SURE = (
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,",
    "10:00 boiler 1: 71 C, 2.1 bar, ok\n10:01 boiler 2: 72 C, 2.1 bar, ok\n10:02 boiler 3: 73 C, 2.1 bar, ok\n"
    "10:03 boiler 4: 74 C, 2.1 bar, ok\n10:04 boiler 5:",
    "January, February, March, April, May, June, July, August, September, October, November, December, January, "
    "February, March,",
    "def f0(x):\n    return x + 0\n\ndef f1(x):\n    return x + 1\n\ndef f2(x):\n    return x + 2\n\ndef f3(x):",
)
# Runs in either Python. `work` is a pickled list of operators, as (graph, bytes, dtype and shape of the input), or of
# prompts; arrays that numpy 2 has pickled are nothing to numpy 1.
CHILD = """
import pickle, sys
import numpy as np
kind, name, source, target, bundle = sys.argv[1:]
work = pickle.load(open(source, "rb"))
results = []
if kind == "operators":
    if name == "litert":
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    else:
        from tflite_runtime.interpreter import Interpreter, OpResolverType
    for graph, content, dtype, shape in work:
        i = Interpreter(model_content=graph, num_threads=1,
                        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
        i.allocate_tensors()
        i.set_tensor(i.get_input_details()[0]["index"], np.frombuffer(content, dtype).reshape(shape))
        i.invoke()
        results.append(i.get_tensor(i.get_output_details()[0]["index"]).tolist())
else:
    from device_runtime.engine.language_model import LanguageModel
    with LanguageModel.open(bundle, backend=name, threads=1) as model:
        for prompt, new in work:
            tokens, margins = model.encode(prompt), []
            model.backend.rewind(0)
            logits, answer = model.backend.prefill(tokens[len(model.manifest.prefix_tokens):]), []
            while True:
                best = np.partition(logits, -2)[-2:]
                margins.append(float(best[1] - best[0]))
                answer.append(int(logits.argmax()))
                if len(answer) == new:
                    break
                logits = model.backend.decode(answer[-1])
            results.append((answer, margins))
pickle.dump(results, open(target, "wb"))
"""


@dataclass(frozen=True)
class Case:
    """One operator alone."""

    name: str
    x: np.ndarray
    graph: bytes
    exact: np.ndarray  # float64; of an integer operator before it is rounded


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="where three runtimes differ on a micro graph")
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--python214", type=Path, default=ROOT / ".venv-tflite214" / "bin" / "python")
    args = parser.parse_args()
    operators(args.python214)
    if args.bundle is not None:
        greedy(args.bundle, args.python214)


def operators(python214: Path) -> None:
    """Each operator's results beside the exact ones."""
    cases = list(all_cases())
    work = [(case.graph, case.x.tobytes(), case.x.dtype.str, case.x.shape) for case in cases]
    in_micro = [in_tflm(case.graph, case.x) for case in cases]
    results = {"LiteRT": run_child("operators", "litert", work), "TFLite Micro": in_micro}
    if python214.exists():
        results["2.14"] = run_child("operators", "tflite-runtime", work, python=python214)
    print(f"{'':34}" + "".join(f"{name:>20}" for name in results))
    for i, case in enumerate(cases):
        line = ""
        for found in results.values():
            y = np.array(found[i], np.float64).reshape(case.exact.shape)
            if np.issubdtype(case.x.dtype, np.floating) and not case.name.startswith("QUANTIZE"):
                line += f"{np.abs(y / case.exact - 1).max() * 2**23:16.1f} ulp"
            else:
                wrong = np.abs(y - np.rint(case.exact)) > 0.5
                line += f"{wrong.mean():10.3%} {np.abs(y - case.exact).max():5.3f} st"
        print(f"{case.name:34}{line}")
    print("integers: share that is not the nearest step, largest distance from the exact result in steps;")
    print("float32: largest distance from the exact result in units of the last place")


def greedy(bundle: Path, python214: Path) -> None:
    """How long the runtimes agree."""
    work: list[Any] = [([{"role": "user", "content": text}], NEW) for text in CHAT] + [(text, NEW) for text in SURE]
    results = {"litert": run_child("greedy", "litert", work, bundle), "tflm": run_child("greedy", "tflm", work, bundle)}
    if python214.exists():
        results["tflite-runtime"] = run_child("greedy", "tflite-runtime", work, bundle, python214)
    print(f"\nthe same greedy tokens as LiteRT, of {NEW} (LiteRT's margin where they part, smallest margin of all)")
    for i, text in enumerate([*CHAT, *SURE]):
        expected, margins = results["litert"][i]
        line = ""
        for name in list(results)[1:]:
            found = results[name][i][0]
            parted = next((k for k in range(NEW) if found[k] != expected[k]), None)
            line += f"{name} {NEW}   " if parted is None else f"{name} {parted} ({margins[parted]:.2f})   "
        print(f"{text[:40]!r:45} {line} {min(margins):.2f}")


def all_cases() -> list[Case]:
    """In the shapes of SmolLM2-135M."""
    random = np.random.default_rng(1)

    def floats(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (random.standard_normal(shape) * scale).astype(np.float32)

    def integers(dtype: type, *shape: int) -> np.ndarray:
        limits = np.iinfo(dtype)
        return random.integers(limits.min // 2, limits.max // 2, shape).astype(dtype)

    def matmul(name: str, x: np.ndarray, rows: int, per_row: bool, zero_point: int, bias: bool) -> Case:
        weight = random.integers(-127, 128, (rows, x.shape[1])).astype(np.int8)
        scale = random.uniform(0.5, 1.5, rows if per_row else 1).astype(np.float32) * np.float32(0.01)
        limits = np.iinfo(x.dtype)
        sums = (x.astype(np.int64) - zero_point) @ weight.astype(np.int64).T
        step = float(np.float32(np.abs(sums * scale).max() * 0.1 / limits.max))
        on_x, on_y = Quantization.per_tensor(0.1, zero_point), Quantization.per_tensor(step)
        on_w = Quantization.per_channel(scale) if per_row else Quantization.per_tensor(float(scale[0]))

        def emit(graph: Subgraph, source: Tensor) -> Tensor:
            operands = [source, graph.constant("w", weight, on_w)]
            if bias:
                zeros = np.zeros(rows, np.int64)
                operands.append(graph.constant("b", zeros, Quantization.per_channel(scale * np.float32(0.1))))
            options = schema.FullyConnectedOptionsT()
            options.keepNumDims = True
            return graph.operator(Op.FULLY_CONNECTED, operands, [("y", sums.shape, x.dtype, on_y)], options, 9)[0]

        exact = sums * (np.float64(np.float32(0.1)) * scale.astype(np.float64) / step)
        return Case(name, x, one_operator(x, emit, on_x), np.clip(exact, limits.min, limits.max))

    def alone(
        name: str, code: int, x: np.ndarray, exact: np.ndarray, options: Any, constants: tuple[np.ndarray, ...] = ()
    ) -> Case:
        def emit(graph: Subgraph, source: Tensor) -> Tensor:
            operands = [source, *(graph.constant("c", c) for c in constants)]
            return graph.operator(code, operands, [("y", exact.shape, np.float32, None)], options)[0]

        return Case(name, x, one_operator(x, emit), exact)

    def quantize(name: str, dtype: type, version: int) -> Case:
        x, step = floats(1, 1536, scale=20), float(np.float32(60 / np.iinfo(dtype).max))

        def emit(graph: Subgraph, source: Tensor) -> Tensor:
            on_y = Quantization.per_tensor(step)
            options = schema.QuantizeOptionsT()
            return graph.operator(Op.QUANTIZE, [source], [("y", x.shape, dtype, on_y)], options, version)[0]

        exact = np.clip(x.astype(np.float64) / step, np.iinfo(dtype).min, np.iinfo(dtype).max)
        return Case(name, x, one_operator(x, emit), exact)

    softmax = schema.SoftmaxOptionsT()
    softmax.beta = 1.0
    mean = schema.ReducerOptionsT()
    mean.keepDims = True
    wide, gate, scores = floats(1, 576, scale=3) ** 2, floats(1, 1536, scale=3), floats(3, 512, scale=2)
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return [
        matmul("FULLY_CONNECTED int8 (q … up)", integers(np.int8, 1, 576), 1536, True, 3, bias=False),
        matmul("FULLY_CONNECTED int16 (down, head)", integers(np.int16, 1, 1472), 576, True, 0, bias=True),
        matmul("FULLY_CONNECTED int16 (kv_cache)", integers(np.int16, 3, 64), 512, False, 0, bias=False),
        quantize("QUANTIZE to int8", np.int8, 1),
        quantize("QUANTIZE to int16", np.int16, 2),
        alone("MEAN", Op.MEAN, wide, wide.mean(1, dtype=np.float64, keepdims=True), mean, (np.array([1], np.int32),)),
        alone("RSQRT", Op.RSQRT, wide[:, :64], 1 / np.sqrt(wide[:, :64].astype(np.float64)), None),
        alone("LOGISTIC", Op.LOGISTIC, gate, 1 / (1 + np.exp(-gate.astype(np.float64))), None),
        alone("SOFTMAX", Op.SOFTMAX, scores, powers / powers.sum(axis=1, keepdims=True), softmax),
    ]


def one_operator(
    x: np.ndarray, emit: Callable[[Subgraph, Tensor], Tensor], quantization: Quantization | None = None
) -> bytes:
    """A graph of one operator."""
    with tempfile.TemporaryDirectory() as folder, GraphWriter(Path(folder), external=False) as writer:
        graph = writer.subgraph("main")
        graph.output("y", emit(graph, graph.input("x", x.shape, x.dtype, quantization)))
        writer.write(Path(folder) / "model.tflite", "one operator")
        return (Path(folder) / "model.tflite").read_bytes()


def in_tflm(graph: bytes, x: np.ndarray) -> list[Any]:
    """One invocation in TFLite Micro."""
    with captured_stderr():
        from tflite_micro.python.tflite_micro import runtime

        interpreter = runtime.Interpreter.from_bytes(graph, arena_size=1 << 20)
        interpreter.set_input(x, 0)
        interpreter.invoke()
        found: list[Any] = np.array(interpreter.get_output(0)).tolist()
        return found


def run_child(
    kind: str, backend: str, work: list[Any], bundle: Path = Path(), python: Path = Path(sys.executable)
) -> list[Any]:
    """CHILD in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "work", Path(folder) / "results"
        source.write_bytes(pickle.dumps(work))
        command = [str(python), "-c", CHILD, kind, backend, str(source), str(target), str(bundle)]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{backend}: {done.stderr}")
        return list(pickle.loads(target.read_bytes()))


if __name__ == "__main__":
    main()
