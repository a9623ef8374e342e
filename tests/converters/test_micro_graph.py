"""The micro graph computes what the float reference computes, with nothing but what TFLite Micro has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from converters.network.decoder import decoder, hidden
from converters.network.weights import CanonicalWeights
from converters.ops.numpy import NumpyOps
from converters.ops.simulated import SimulatedOps
from converters.profiles import PROFILES, GraphJob
from converters.quantize import rotation
from converters.quantize.calibrate import ActivationParams
from converters.quantize.rotation import RotatedWeights, rotation_matrix
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends.interpreter import LiteRtBackend
from device_runtime.engine.backends.tracing import trace_tensors
from tests.support.micro_bundles import NETWORKS, Network, micro_bundle, random_network, relative_error

TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, 160, 24)]
# Those of the TFLite Micro of 2026 that the graph needs. tests/system runs the graph in that interpreter.
NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
Type = schema.TensorType


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]


@pytest.fixture(scope="module")
def bundle(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return micro_bundle(tmp_path_factory.mktemp("micro") / "bundle", network)


@pytest.fixture(scope="module")
def chosen(network: Network, tmp_path_factory: pytest.TempPathFactory) -> ActivationParams:
    """Those of `bundle`: a conversion comes out the same every time."""
    return network.write(tmp_path_factory.mktemp("chosen") / "model.tflite", 40)


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Any:
    return read_model(bundle.model_path)


def read_model(path: Path) -> Any:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(path.read_bytes(), 0))


def operators(model: Any) -> list[tuple[str, Any, list[Any], list[Any]]]:
    """(name, operator, its operands, its results); an operand that is left out is None."""
    graph = model.subgraphs[0]
    return [
        (
            NAMES[model.operatorCodes[op.opcodeIndex].builtinCode],
            op,
            [graph.tensors[i] if i >= 0 else None for i in op.inputs],
            [graph.tensors[i] for i in op.outputs],
        )
        for op in graph.operators
    ]


def decoded(bundle: Bundle, tokens: list[int]) -> np.ndarray:
    backend = LiteRtBackend(bundle, 1)
    rows = np.stack([backend.decode(token).copy() for token in tokens])
    backend.close()
    return rows


# -- what it computes ----------------------------------------------------------------------------------


def test_logits_are_close_to_the_float_reference(network: Network, bundle: Bundle) -> None:
    """An int8 grid over a range of four standard deviations is a rounding error of 0.9 %; three layers have some
    forty of them in a row, which add in quadrature to 6 %: 2 to 5 % was measured."""
    expected = network.logits(TOKENS)
    found = decoded(bundle, TOKENS)
    assert relative_error(found, expected) < 0.08
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.998
    ranked = np.sort(expected, axis=1)
    sure = ranked[:, -1] - ranked[:, -2] > 0.25 * expected.std()
    assert sure.sum() >= 8
    assert (found.argmax(1) == expected.argmax(1))[sure].all()


def test_the_tolerance_would_notice_the_wrong_past(network: Network) -> None:
    """What comes of a cache that loses its prefix, or one earlier token, is far outside of it."""
    expected = network.logits(TOKENS)
    without = Network(network.config, network.read, ())
    if network.prefix_tokens:
        assert relative_error(without.logits(TOKENS), expected) > 0.15
    assert relative_error(network.logits(TOKENS[1:]), expected[1:]) > 0.1


def test_logits_have_no_ties(bundle: Bundle) -> None:
    """int8 logits of 160 words have at most 160 values of 256; int16 ones almost never meet."""
    for row in decoded(bundle, TOKENS):
        assert len(set(row.tolist())) > 150


def test_the_residual_stream_has_its_canonical_names(network: Network, bundle: Bundle) -> None:
    """And is as close as the logits; the names are what `stonechat trace` asks for."""
    expected: dict[str, np.ndarray] = {}
    ops = NumpyOps(network.config, network.read, np.array([TOKENS]), network.prefix, expected.__setitem__)
    decoder(ops, network.config)
    names = [f"layers.{i}.{part}" for i in range(3) for part in ("attention_out", "out")]
    basis = rotation_matrix(network.config.width)
    for name, found in trace_tensors(bundle, TOKENS, names).items():
        assert relative_error(found, expected[name] @ basis) < 0.08, name


def test_the_simulation_computes_what_the_graph_computes(
    network: Network, bundle: Bundle, chosen: ActivationParams
) -> None:
    """With float weights, so the rounding of the weights is what is left between them: two thirds of the graph's own
    error or less, and the direction of the error is the same."""
    weights = RotatedWeights(network.read, {})
    ops = SimulatedOps(weights.config, weights, np.array([TOKENS]), weights.rotate_cache(network.prefix), chosen.params)
    simulated = decoder(ops, weights.config)
    expected, found = network.logits(TOKENS), decoded(bundle, TOKENS)
    assert relative_error(simulated, expected) < 0.08
    assert relative_error(found, simulated) < relative_error(found, expected) * 1.1
    errors = np.corrcoef((simulated - expected).ravel(), (found - expected).ravel())[0, 1]
    assert errors > 0.3


# -- the cache and the prefix --------------------------------------------------------------------------


def cache_after(bundle: Bundle, tokens: list[int], layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Stored keys and values, (positions, kv_heads * head_dim) int8."""
    interpreter = Interpreter(
        str(bundle.model_path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    where = {d["name"]: d["index"] for d in interpreter.get_tensor_details()}
    for position, token in enumerate(tokens, len(bundle.manifest.prefix_tokens)):
        interpreter.set_tensor(where["token"], np.array([token], np.int32))
        interpreter.set_tensor(where["position"], np.array([position], np.int32))
        interpreter.invoke()
    heads = range(bundle.manifest.graph.kv_heads)
    keys = [interpreter.get_tensor(where[f"layers.{layer}.head_{h}.keys"]) for h in heads]
    values = [interpreter.get_tensor(where[f"layers.{layer}.head_{h}.values"]).T for h in heads]
    return np.hstack(keys), np.hstack(values)


@pytest.mark.parametrize("layer", [0, 2])
def test_the_prefix_in_the_cache_is_the_float_one_rounded(
    network: Network, bundle: Bundle, chosen: ActivationParams, layer: int
) -> None:
    positions = len(network.prefix_tokens)
    if not positions:
        pytest.skip("this network has no prefix")
    found = cache_after(bundle, TOKENS[:3], layer)
    expected = RotatedWeights(network.read, {}).rotate_cache(network.prefix).layers[layer]
    for kind, stored, floats in zip(("keys", "v"), found, expected, strict=True):
        rows = floats.reshape(positions, -1)
        assert (stored[:positions] == chosen.params[f"layers.{layer}.{kind}"].quantize(rows)).all()


def test_a_new_token_stands_behind_the_prefix_and_the_rest_is_empty(
    network: Network, bundle: Bundle, chosen: ActivationParams
) -> None:
    """In the first layer, k and v are one int8 matmul away from the float ones: half a step for its result, half a
    step for the cache, and the same again for the rounding of weights and input."""
    weights = RotatedWeights(network.read, {})
    ops = NumpyOps(weights.config, weights, np.array([TOKENS[:2]]), weights.rotate_cache(network.prefix))
    hidden(ops, weights.config)
    filled = len(network.prefix_tokens) + 2
    for kind, stored, floats in zip(
        ("keys", "v"), cache_after(bundle, TOKENS[:2], 0), ops.cache.layers[0], strict=True
    ):
        expected = chosen.params[f"layers.0.{kind}"].quantize(floats.reshape(filled, -1))
        assert np.abs(stored[:filled] - expected).max() < 5
        assert np.abs(stored[filled - 1]).max() > 20  # it was written
        assert not stored[filled:].any()


def test_the_cache_is_updated_in_place(network: Network, model: Any) -> None:
    updates = [(inputs, outputs) for name, _, inputs, outputs in operators(model) if name == "DYNAMIC_UPDATE_SLICE"]
    config = network.config
    assert len(updates) == config.layers * config.blocks[0].attention.kv_heads * (4 if network.prefix_tokens else 2)
    for (cache, rows, _), (result,) in updates:
        assert cache is result
        assert cache.isVariable
        assert cache.type == rows.type == Type.INT8


# -- what it is made of --------------------------------------------------------------------------------


def test_one_signature_takes_a_token_and_its_position(model: Any) -> None:
    (signature,) = model.signatureDefs
    assert signature.signatureKey == b"decode"
    tensors = model.subgraphs[0].tensors
    inputs = {m.name: tensors[m.tensorIndex] for m in signature.inputs}
    assert {name: (t.type, list(t.shape)) for name, t in inputs.items()} == {
        b"token": (Type.INT32, [1]),
        b"position": (Type.INT32, [1]),
    }
    assert [m.name for m in signature.outputs] == [b"logits"]


def test_every_matmul_is_static_and_on_integers(model: Any) -> None:
    """int8 weights everywhere; int16 in attention, `o`, `down`, the head and the way into a tied embedding."""
    for name, _, inputs, (result,) in operators(model):
        if name != "FULLY_CONNECTED":
            continue
        x, weight, bias = (*inputs, None)[:3]
        kind = result.name.decode().rsplit(".", 1)[-1]
        wide = (
            ".down." in result.name.decode()
            or kind in ("o", "head", "scores", "mixed")
            or result.name.startswith(b"embed.")
        )
        expected = Type.INT16 if wide else Type.INT8
        assert (x.type, weight.type, result.type) == (expected, Type.INT8, expected), result.name
        scales = 1 if kind in ("scores", "mixed") else weight.shape[0]
        assert weight.isVariable == (scales == 1)
        assert len(weight.quantization.scale) == scales
        assert not np.any(weight.quantization.zeroPoint)
        assert bias is None or bias.type in (Type.INT32, Type.INT64)


def test_constants_are_aligned_as_the_schema_demands(bundle: Bundle) -> None:
    """TFLite Micro reads them where they lie, and vector units load 16 bytes at once."""
    model = schema.Model.GetRootAs(bundle.model_path.read_bytes(), 0)
    tables = [model.Buffers(i) for i in range(model.BuffersLength())]
    places = [table._tab.Vector(table._tab.Offset(4)) for table in tables if table.DataLength()]
    assert len(places) > 20 and {place % 16 for place in places} == {0}


def test_a_tied_head_shares_its_rows_with_the_embedding(model: Any, network: Network) -> None:
    tensors = {t.name: t for t in model.subgraphs[0].tensors}
    assert (tensors[b"embed_rows"].type, tensors[b"head"].type) == (Type.INT8, Type.INT16)
    gathers = [inputs[0].buffer for name, _, inputs, _ in operators(model) if name == "GATHER"]
    assert (tensors[b"head.weight"].buffer in gathers) == network.config.head.tied


def test_a_head_whose_sums_pass_32_bits_gets_a_64_bit_bias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a bias LiteRT and tflite-runtime add int16 products up in 32 bits, which wrap around: 1,152 of
    16,383 * 127 are 1.1 times what 31 bits hold. Here every word is ±1s, so its own logit is such a sum."""
    shape = random_network(width=1152, layers=1)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (160, 1152)).astype(np.float32)

    def read(name: str) -> np.ndarray:
        if name in ("embed.weight", "head.weight"):
            return signs.copy()
        return np.full_like(shape.read(name), 1 if "norm" in name else 0)

    network = Network(shape.config, CanonicalWeights(shape.config, read), (0,))
    bundle = micro_bundle(tmp_path / "bundle", network)
    # Once more, without rotation, which would even out the signs.
    monkeypatch.setattr(rotation, "rotation_matrix", lambda width: np.eye(width, dtype=np.float32))
    monkeypatch.setattr(rotation, "turned_rows", lambda rows: rows)
    job = GraphJob(RotatedWeights(network.read, {}), network.prefix, np.array([TOKENS]), 40, fast=False)
    PROFILES["micro"].write(bundle.model_path, job)
    (bias,) = (inputs[2] for _, _, inputs, (r,) in operators(read_model(bundle.model_path)) if r.name == b"head")
    assert bias.type == Type.INT64
    found = decoded(bundle, TOKENS)
    assert found.argmax(1).tolist() == TOKENS
    assert relative_error(found, network.logits(TOKENS)) < 0.01
