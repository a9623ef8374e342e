"""The micro graph computes what the float reference computes, with nothing but what TFLite Micro has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from micro_bundles import Network, micro_bundle, random_network, relative_error

from converters.network import decoder, hidden
from converters.ops_numpy import NumpyOps
from converters.profile_micro import write_micro
from converters.quantize.ranges import RangeObserver, Ranges
from converters.quantize.smoothing import ChannelPeaks, choose_smoothing, observe_windows
from device_runtime.backends.interpreter import LiteRtBackend
from device_runtime.backends.tracing import trace_tensors
from device_runtime.bundle import Bundle

TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, 160, 24)]
NETWORKS = {
    "tied": random_network(),
    "untied": random_network(tied_head=False, prefix_tokens=(7, 3, 11)),
    "attention bias": random_network(attention_bias=True, prefix_tokens=(5, 9)),
    "every bias, no prefix": random_network(
        attention_bias=True, output_bias=True, ffn_bias=True, tied_head=False, prefix_tokens=()
    ),
}
# Those of the TFLite Micro of 2026 that the graph needs. tests/system runs the graph in that interpreter.
TFLM_OPERATORS = {
    "ADD", "BATCH_MATMUL", "CAST", "CONCATENATION", "DEQUANTIZE", "DYNAMIC_UPDATE_SLICE", "FULLY_CONNECTED", "GATHER",
    "LOGISTIC", "MEAN", "MINIMUM", "MUL", "QUANTIZE", "RESHAPE", "RSQRT", "SLICE", "SOFTMAX", "SUB",
}  # fmt: skip
NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
Type = schema.TensorType


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]


@pytest.fixture(scope="module")
def bundle(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return micro_bundle(tmp_path_factory.mktemp("micro") / "bundle", network)


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
        assert len(set(row.tolist())) > 155


def test_the_residual_stream_has_its_canonical_names(network: Network, bundle: Bundle) -> None:
    """And is as close as the logits; the names are what `stonechat trace` asks for."""
    expected: dict[str, np.ndarray] = {}
    ops = NumpyOps(network.config, network.read, np.array([TOKENS]), network.prefix, expected.__setitem__)
    decoder(ops, network.config)
    names = [f"layers.{i}.{part}" for i in range(3) for part in ("attention_out", "out")]
    for name, found in trace_tensors(bundle, TOKENS, names).items():
        assert relative_error(found, expected[name]) < 0.08, name


def test_a_smoothed_network_embeds_what_the_checkpoint_says(tmp_path: Path) -> None:
    """A tied head shares its smoothed rows with the embedding, which has to undo the smoothing."""
    network = NETWORKS["tied"]
    config, windows = network.config, np.array([TOKENS])
    peaks = ChannelPeaks()
    observe_windows(config, network.read, windows, network.prefix, peaks)
    smoothing = choose_smoothing(config, network.read, peaks.peaks)
    scale = smoothing.scales["head"] * np.linspace(0.25, 4, config.width, dtype=np.float32)  # far from 1, to be noticed
    smoothing = type(smoothing)(config, {**smoothing.scales, "head": scale})
    read, prefix = smoothing.apply(network.read), smoothing.apply_to_cache(network.prefix)
    bundle = micro_bundle(tmp_path / "bundle", network)
    observer = RangeObserver()
    observe_windows(config, read, windows, prefix, observer)
    for i, (keys, values) in enumerate(prefix.layers):
        observer(f"layers.{i}.keys", keys)
        observer(f"layers.{i}.values", values)
    observer("head", network.logits(TOKENS))
    write_micro(bundle.model_path, config, read, prefix, observer.freeze(), 40, scale)
    found = decoded(bundle, TOKENS)
    assert relative_error(found, network.logits(TOKENS)) < 0.08
    write_micro(bundle.model_path, config, read, prefix, observer.freeze(), 40, None)
    assert relative_error(decoded(bundle, TOKENS), network.logits(TOKENS)) > 0.3


# -- the cache and the prefix --------------------------------------------------------------------------


def cache_after(bundle: Bundle, tokens: list[int], layer: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Keys and values in float, (positions, kv_heads, head_dim), and the step of each grid."""
    interpreter = Interpreter(
        str(bundle.model_path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    where = {d["name"]: d for d in interpreter.get_tensor_details()}
    for position, token in enumerate(tokens, len(bundle.manifest.prefix_tokens)):
        interpreter.set_tensor(where["token"]["index"], np.array([token], np.int32))
        interpreter.set_tensor(where["position"]["index"], np.array([position], np.int32))
        interpreter.invoke()
    rows = []
    for kind, axes in (("keys", (1, 0, 2)), ("values", (2, 0, 1))):
        detail = where[f"layers.{layer}.{kind}"]
        scale, zero_point = detail["quantization"]
        assert zero_point == 0
        rows.append(interpreter.get_tensor(detail["index"]).transpose(axes) * np.float32(scale))
    scales = [where[f"layers.{layer}.{kind}"]["quantization"][0] for kind in ("keys", "values")]
    return rows[0], rows[1], scales[0], scales[1]


@pytest.mark.parametrize("layer", [0, 2])
def test_the_prefix_in_the_cache_is_the_float_one_rounded(network: Network, bundle: Bundle, layer: int) -> None:
    positions = len(network.prefix_tokens)
    if not positions:
        pytest.skip("this network has no prefix")
    keys, values, key_step, value_step = cache_after(bundle, TOKENS[:3], layer)
    expected_keys, expected_values = network.prefix.layers[layer]  # (1, positions, kv_heads, head_dim)
    assert np.abs(keys[:positions] - expected_keys[0]).max() <= key_step * 0.501
    assert np.abs(values[:positions] - expected_values[0]).max() <= value_step * 0.501


def test_a_new_token_stands_behind_the_prefix_and_the_rest_is_empty(network: Network, bundle: Bundle) -> None:
    """In the first layer, k and v are one int8 matmul away from the float ones: half a step for its result, half a
    step for the cache, and the same again for the rounding of weights and input."""
    ops = NumpyOps(network.config, network.read, np.array([TOKENS[:2]]), network.prefix)
    hidden(ops, network.config)
    expected_keys, expected_values = ops.cache.layers[0]
    keys, values, key_step, value_step = cache_after(bundle, TOKENS[:2], 0)
    filled = len(network.prefix_tokens) + 2
    assert np.abs(keys[:filled] - expected_keys[0]).max() < 4 * key_step
    assert np.abs(values[:filled] - expected_values[0]).max() < 4 * value_step
    assert np.abs(keys[filled - 1]).max() > 20 * key_step  # it was written
    assert not keys[filled:].any()
    assert not values[filled:].any()


def test_the_cache_is_updated_in_place(network: Network, model: Any) -> None:
    updates = [(inputs, outputs) for name, _, inputs, outputs in operators(model) if name == "DYNAMIC_UPDATE_SLICE"]
    assert len(updates) == network.config.layers * (4 if network.prefix_tokens else 2)
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


def test_every_operator_is_in_tflite_micro(model: Any) -> None:
    assert {name for name, *_ in operators(model)} <= TFLM_OPERATORS
    assert all(len(inputs) <= 10 for name, _, inputs, _ in operators(model) if name == "CONCATENATION")


def test_every_matmul_is_static_and_on_integers(model: Any) -> None:
    """int8 but for the head; both products of attention read their right side transposed."""
    for name, op, inputs, (result,) in operators(model):
        if name == "FULLY_CONNECTED":
            x, weight, bias = inputs
            expected = Type.INT16 if result.name == b"head" else Type.INT8
            assert (x.type, weight.type, result.type) == (expected, Type.INT8, expected)
            assert len(weight.quantization.scale) == weight.shape[0]
            assert not np.any(weight.quantization.zeroPoint)
            assert bias is None or bias.type in (Type.INT32, Type.INT64)
        if name == "BATCH_MATMUL":
            assert {t.type for t in (*inputs, result)} == {Type.INT8}
            assert op.builtinOptions.adjY


def test_a_tied_head_shares_its_rows_with_the_embedding(model: Any, network: Network) -> None:
    tensors = {t.name: t for t in model.subgraphs[0].tensors}
    assert (tensors[b"embed_rows"].type, tensors[b"head"].type) == (Type.INT8, Type.INT16)
    gathers = [inputs[0].buffer for name, _, inputs, _ in operators(model) if name == "GATHER"]
    assert (tensors[b"head.weight"].buffer in gathers) == network.config.tied_head


def test_a_head_whose_sums_pass_32_bits_gets_a_64_bit_bias(tmp_path: Path) -> None:
    """Without a bias LiteRT and tflite-runtime add int16 products up in 32 bits, which wrap around: 1,152 of
    16,383 * 127 are 1.1 times what 31 bits hold. Here every word is ±1s, so its own logit is such a sum."""
    shape = random_network(width=1152, layers=1)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (160, 1152)).astype(np.float32)

    def read(name: str) -> np.ndarray:
        if name in ("embed.weight", "head.weight"):
            return signs.copy()
        return np.full_like(shape.read(name), 1 if "norm" in name else 0)

    network = Network(shape.config, read, (0,))
    bundle = micro_bundle(tmp_path / "bundle", network)
    (bias,) = (inputs[2] for _, _, inputs, (r,) in operators(read_model(bundle.model_path)) if r.name == b"head")
    assert bias.type == Type.INT64
    found = decoded(bundle, TOKENS)
    assert found.argmax(1).tolist() == TOKENS
    assert relative_error(found, network.logits(TOKENS)) < 0.01


# -- ranges --------------------------------------------------------------------------------------------


def observed(name: str, *values: Any) -> Ranges:
    observer = RangeObserver()
    for part in values:
        observer(name, np.array(part, np.float32))
    return observer.freeze()


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-8.0, -2.0), (0.0, 0.0)])
def test_zero_is_on_every_grid_and_both_ends_are_within_half_a_step(low: float, high: float) -> None:
    q = observed("layers.0.gate", [[low, high]]).quantization("layers.0.gate")
    step, zero_point = float(q.scale[0]), int(q.zero_point[0])
    assert -128 <= zero_point <= 127
    for value in (low, high, 0.0):
        stored = np.clip(round(value / step) + zero_point, -128, 127)
        assert abs((stored - zero_point) * step - value) <= step * 0.51


def test_what_attention_multiplies_has_zero_point_0() -> None:
    for kind in ("queries", "keys", "values"):
        q = observed(f"layers.0.{kind}", [[-1.0, 5.0]]).quantization(f"layers.0.{kind}")
        assert (float(q.scale[0]), int(q.zero_point[0])) == (pytest.approx(5 / 127), 0)


def test_int16_is_symmetric_and_has_room_for_twice_the_values() -> None:
    q = observed("head", [[-1.0, 5.0]]).quantization("head", np.int16)
    assert (float(q.scale[0]), int(q.zero_point[0])) == (pytest.approx(10 / 32767), 0)


def test_hidden_and_negligible_scores_do_not_widen_the_range() -> None:
    ranges = observed("layers.0.scores", [[3.0, -np.inf, -900.0]], [[1.0, -5.0, 0.0]])
    assert ranges.limits["layers.0.scores"] == (-11.0, 3.0)


def test_channels_of_up_and_down_are_evened_and_others_are_not() -> None:
    values = [[1.0, -100.0], [-1.0, 50.0]]
    ranges = observed("layers.0.up", *[[row] for row in values])
    factors = ranges.factors["layers.0.up"]
    assert factors[1] / factors[0] == pytest.approx(100**0.75)
    low, high = ranges.limits["layers.0.up"]
    assert (low, high) == pytest.approx((-100 / factors[1], max(1 / factors[0], 50 / factors[1])))
    assert observed("layers.0.gate", values).factors == {}


def test_a_name_that_was_never_observed_is_an_error() -> None:
    with pytest.raises(KeyError):
        observed("head", [[1.0]]).quantization("layers.0.q")
