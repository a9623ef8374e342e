"""TFLite Micro's rules: every graph that convert writes keeps them, and each breach is found by the tensor's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.emit.lint import RULES, check_graph, measured_arena, require_clean
from converters.emit.tflite_write import GraphWriter, Quantization, Subgraph, Tensor
from device_runtime.bundle.folder import Bundle
from device_runtime.errors import ConfigurationError, GraphError
from tests.support.micro_bundles import random_network

Op = schema.BuiltinOperator
GRID = Quantization.per_tensor(0.1)
OTHER = Quantization.per_tensor(0.2)


def written(path: Path, emit: Callable[[Subgraph], Tensor], *, external: bool = False) -> Path:
    with GraphWriter(path.parent, external=external) as writer:
        graph = writer.subgraph("decode")
        graph.output("y", emit(graph))
        writer.write(path, "test")
    return path


def op(graph: Subgraph, code: int, inputs, shape=(1, 8), dtype=np.float32, grid=None, options=None, name="y") -> Tensor:
    (result,) = graph.operator(code, inputs, [(name, shape, dtype, grid)], options)
    return result


def fully_connected(graph: Subgraph, x: Tensor, weight: Tensor, result: Quantization | None = GRID) -> Tensor:
    options = schema.FullyConnectedOptionsT()
    return op(graph, Op.FULLY_CONNECTED, [x, weight, None], (1, 4), np.int8, result, options)


def x8(graph: Subgraph, grid: Quantization | None = GRID) -> Tensor:
    return graph.input("x", (1, 8), np.int8, grid)


def weights(graph: Subgraph, grid: Quantization) -> Tensor:
    return graph.constant("w", np.ones((4, 8), np.int8), grid)


def dense(graph: Subgraph, **changes: Quantization) -> Tensor:
    w = weights(graph, changes.get("w", Quantization.per_channel(np.full(4, 0.1, np.float32))))
    return fully_connected(graph, x8(graph, changes.get("x", GRID)), w, changes.get("y", GRID))


def floats(graph: Subgraph, *shape: int, name: str = "x") -> Tensor:
    return graph.input(name, shape, np.float32)


def concatenation(graph: Subgraph, parts: list[Tensor], grid: Quantization) -> Tensor:
    options = schema.ConcatenationOptionsT()
    options.axis = 1
    shape = (1, sum(part.shape[1] for part in parts))
    return op(graph, Op.CONCATENATION, parts, shape, np.int8, grid, options)


def stale_cache(graph: Subgraph) -> Tensor:
    """A DYNAMIC_UPDATE_SLICE that writes into another tensor than it reads."""
    cache = graph.variable("cache", (4, 8), np.int8, GRID)
    copy = graph.variable("copy", (4, 8), np.int8, GRID)
    start = graph.constant("start", np.zeros(2, np.int32))
    options = schema.DynamicUpdateSliceOptionsT()
    graph.operator(Op.DYNAMIC_UPDATE_SLICE, [cache, x8(graph), start], [copy], options)
    return copy


def unwritten(graph: Subgraph) -> Tensor:
    """An operator reads what only a later one writes."""
    late = graph._tensor("late", (1, 8), np.float32)
    y = op(graph, Op.ADD, [floats(graph, 1, 8), late], options=schema.AddOptionsT())
    graph.operator(Op.EXP, [y], [late])
    return y


def unquantized_weights(graph: Subgraph) -> Tensor:
    return fully_connected(graph, x8(graph), graph.constant("w", np.ones((4, 8), np.int8)))


PER_CHANNEL = Quantization.per_channel(np.full(8, 0.1, np.float32), axis=1)

# what is wrong -> (the graph, the tensor that is named, words of the problem and of the remedy)
BREACHES: dict[str, tuple[Callable[[Subgraph], Tensor], str, str, str]] = {
    "an operator that has no kernel": (
        lambda g: op(g, Op.GELU, [floats(g, 1, 8)]), "y", "no rule", "build it from TANH or LOGISTIC"),
    "rows with scales in an EMBEDDING_LOOKUP": (
        lambda g: op(g, Op.EMBEDDING_LOOKUP, [g.input("x", (1,), np.int32), weights(g, GRID)]), "y", "no rule",
        "GATHER the rows and their scales and multiply"),
    "an operator nobody has looked at": (
        lambda g: op(g, Op.RFFT2D, [floats(g, 1, 8)]), "y", "no rule", "use one of ADD"),
    "a type that has no kernel": (
        lambda g: op(g, Op.SQRT, [x8(g)], dtype=np.int8, grid=GRID), "y", "no kernel for int8 > int8",
        "there are kernels for float32 > float32"),
    "float activations by int8 weights": (
        lambda g: op(g, Op.FULLY_CONNECTED, [floats(g, 1, 8), weights(g, GRID), None], (1, 4),
                     options=schema.FullyConnectedOptionsT()),
        "y", "no kernel for float32 int8 none > float32", "int8 int8 int32? > int8"),
    "too many operands": (
        lambda g: concatenation(g, [g.input(f"x{i}", (1, 8), np.int8, GRID) for i in range(11)], GRID), "y",
        "11 operands", "at most 10 at a time"),
    "too many dimensions": (
        lambda g: op(g, Op.SOFTMAX, [floats(g, 1, 1, 1, 1, 8)], (1, 1, 1, 1, 8), options=schema.SoftmaxOptionsT()),
        "x", "5 dimensions", "reshape it to 1 to 4 dimensions"),
    "an axis that is computed": (
        lambda g: op(g, Op.MEAN, [floats(g, 1, 8), g.input("axis", (1,), np.int32)], (1,),
                     options=schema.ReducerOptionsT()),
        "axis", "operand 1 is computed", "make it a constant"),
    "a grid that changes while integers are copied": (
        lambda g: concatenation(g, [x8(g), g.input("x1", (1, 8), np.int8, OTHER)], GRID), "x1", "grid (0.2",
        "give both one grid"),
    "a softmax on another grid than its kernel's": (
        lambda g: op(g, Op.SOFTMAX, [x8(g)], dtype=np.int8, grid=GRID, options=schema.SoftmaxOptionsT()), "y",
        "grid (0.1", "scale 1/256 and zero_point -128"),
    "weights with a zero_point": (
        lambda g: dense(g, w=Quantization.per_tensor(0.1, 3)), "w", "weights with a zero_point", "zero_point 0"),
    "weights with scales along the inputs": (
        lambda g: dense(g, w=PER_CHANNEL), "w", "8 scales along axis 1", "one scale for each row"),
    "weights without scales": (unquantized_weights, "w", "weights without scales", "one for each row"),
    "weights of another width": (
        lambda g: fully_connected(g, g.input("x", (1, 9), np.int8, GRID), weights(g, GRID)), "w",
        "shape [4, 8] for an input of [1, 9]", "weights are (results, inputs)"),
    "activations with many scales": (lambda g: dense(g, x=PER_CHANNEL), "x", "8 scales", "one scale per tensor"),
    "a grid with many scales in QUANTIZE": (
        lambda g: op(g, Op.QUANTIZE, [floats(g, 1, 8)], dtype=np.int8, grid=PER_CHANNEL,
                     options=schema.QuantizeOptionsT()),
        "y", "8 scales", "one scale per tensor"),
    "int16 with a zero_point": (
        lambda g: op(g, Op.QUANTIZE, [floats(g, 1, 8)], dtype=np.int16, grid=Quantization.per_tensor(0.1, 5),
                     options=schema.QuantizeOptionsT()),
        "y", "int16 with zero_point 5", "zero_point 0"),
    "a scale that is no number": (
        lambda g: dense(g, y=Quantization.per_tensor(float("nan"))), "y", "not finite", "calibrate it again"),
    "a shape that changes": (
        lambda g: op(g, Op.EXP, [floats(g, -1, 8)], (1, 8)), "x", "changes at run time", "fixed shape"),
    "a cache that is copied": (stale_cache, "copy", "not updated in place", "operand 0 it is too"),
    "a tensor that is read too early": (unwritten, "late", "read before anything writes it", "put its operator first"),
}  # fmt: skip


@pytest.mark.parametrize("what", BREACHES)
def test_a_breach_is_named_with_its_remedy(what: str, tmp_path: Path) -> None:
    emit, tensor, problem, remedy = BREACHES[what]
    found = [v for v in check_graph(written(tmp_path / "model.tflite", emit)) if v.tensor == tensor]
    assert any(problem in v.problem and remedy in v.remedy for v in found), found


def test_constants_behind_the_flatbuffer_are_a_breach(tmp_path: Path) -> None:
    """TFLite Micro knows nothing of them and would run with pointers to nowhere."""
    path = written(tmp_path / "model.tflite", dense, external=True)
    assert [v.tensor for v in check_graph(path) if "after the FlatBuffer" in v.problem] == ["w"]


def test_a_clean_graph_has_no_breach(tmp_path: Path) -> None:
    assert check_graph(written(tmp_path / "model.tflite", dense)) == []


def test_all_breaches_come_in_one_error(tmp_path: Path) -> None:
    path = written(tmp_path / "model.tflite", lambda g: dense(g, w=Quantization.per_tensor(0.1, 3), x=PER_CHANNEL))
    with pytest.raises(GraphError, match=r"cannot run .*\n  FULLY_CONNECTED, x: .*\n  FULLY_CONNECTED, w:"):
        require_clean(path)


@pytest.mark.parametrize(
    "what",
    [
        "an operator that has no kernel", "a type that has no kernel", "float activations by int8 weights",
        "too many operands", "a grid that changes while integers are copied",
        "a softmax on another grid than its kernel's",
        "a grid with many scales in QUANTIZE",
    ],
)  # fmt: skip
def test_the_real_tflite_micro_refuses_it_too(what: str, tmp_path: Path) -> None:
    """The rest it runs, and computes something else, or crashes."""
    pytest.importorskip("tflite_micro", reason="TFLite Micro's interpreter has packages for x86_64 only")
    from tflite_micro.python.tflite_micro import runtime

    from device_runtime.engine.backends.native_log import captured_stderr

    path = written(tmp_path / "model.tflite", BREACHES[what][0])
    with captured_stderr(), pytest.raises(Exception):  # noqa: B017  # it raises RuntimeError or what its parser hits
        interpreter = runtime.Interpreter.from_file(str(path), arena_size=100_000)
        interpreter.invoke()


class TestEveryEmittedGraph:
    @pytest.mark.parametrize("changes", [{}, {"tied_head": False}, {"ffn_width": 320}, {"attention_bias": True}])
    def test_is_clean(self, changes: dict, tmp_path: Path) -> None:
        random_network(**changes).write(tmp_path / "model.tflite", 32)
        assert check_graph(tmp_path / "model.tflite") == []

    def test_uses_only_operators_that_have_a_rule(self, tmp_path: Path) -> None:
        """So that the table cannot fall behind the graph unseen."""
        random_network().write(tmp_path / "model.tflite", 32)
        model = schema.Model.GetRootAs((tmp_path / "model.tflite").read_bytes(), 0)
        names = {v: k for k, v in vars(Op).items() if isinstance(v, int)}
        used = {names[model.OperatorCodes(i).BuiltinCode()] for i in range(model.OperatorCodesLength())}
        assert used <= RULES.keys()

    def test_has_its_arena_in_the_manifest(self, converted: Callable[..., Path]) -> None:
        pytest.importorskip("tflite_micro", reason="TFLite Micro's interpreter has packages for x86_64 only")
        bundle = Bundle.open(converted("gqa-tied", "micro"))
        assert bundle.manifest.arena == measured_arena(bundle)
        assert bundle.manifest.arena is not None and bundle.manifest.arena.kv_cache_bytes > 0

    def test_of_the_other_profile_has_none(self, pi_bundle: Path) -> None:
        assert Bundle.open(pi_bundle).manifest.arena is None


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small clean graph to do harm to."""
    path = tmp_path_factory.mktemp("lint") / "model.tflite"
    random_network(layers=1, width=16, heads=1, kv_heads=1, ffn_width=16).write(path, 16)
    return path.read_bytes()


class TestDamage:
    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"nothing\.tflite cannot be read: No such file"):
            check_graph(tmp_path / "nothing.tflite")

    @pytest.mark.parametrize("content, words", [(b"", "is empty"), (b"GGUF" * 8, "not a TFLite graph: bytes 4 to 8")])
    def test_another_file(self, content: bytes, words: str, tmp_path: Path) -> None:
        (tmp_path / "model.tflite").write_bytes(content)
        with pytest.raises(GraphError, match=words):
            check_graph(tmp_path / "model.tflite")

    @given(data=st.data())
    @settings(max_examples=150)
    def test_damage_gives_violations_or_one_error(self, graph: bytes, data: st.DataObject) -> None:
        """Whatever the offsets say: no other exception, and no endless reading."""
        damaged = bytearray(graph)
        if data.draw(st.booleans()):
            damaged = damaged[: data.draw(st.integers(9, len(graph)))]
        # The tables stand at the end of a FlatBuffer, the constants before them.
        places = st.integers(0, len(damaged) - 1) | st.integers(max(0, len(damaged) - 4096), len(damaged) - 1)
        for place in data.draw(st.lists(places, min_size=1, max_size=8)):
            damaged[place] = data.draw(st.integers(0, 255))
        damaged[4:8] = b"TFL3"
        with NamedTemporaryFile(suffix=".tflite") as file:
            file.write(damaged)
            file.flush()
            try:
                check_graph(Path(file.name))
            except GraphError as error:
                assert "is damaged" in str(error)
