"""The description of a network: its lists are what the decoder reads, and every kind of part is computed right."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters import convert as convert_module
from converters.checkpoints import Checkpoint, open_checkpoint
from converters.convert import Options, convert
from converters.network.config import Block, Embedding, NetworkConfig, Norm, Rope, features
from converters.network.decoder import decoder
from converters.network.tensors import Linear, activations, groups, tensors
from converters.network.weights import CanonicalWeights, FloatArray
from converters.ops.numpy import NumpyOps
from converters.quantize.rotation import RotatedWeights
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends import open_backend
from device_runtime.errors import ArchitectureError
from tests.support.random_checkpoint import CHECKPOINTS, checkpoint_of, float_logits, random_checkpoint

ROOT = Path(__file__).parents[2]
PLAIN = random_checkpoint().config
TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, PLAIN.vocabulary, 24)]


def blocks(config: NetworkConfig, change: Callable[[Block], Block]) -> NetworkConfig:
    return replace(config, blocks=tuple(map(change, config.blocks)))


def attention(config: NetworkConfig, **changes: object) -> NetworkConfig:
    return blocks(config, lambda b: replace(b, attention=replace(b.attention, **changes)))  # type: ignore[arg-type]


def feed_forward(config: NetworkConfig, **changes: object) -> NetworkConfig:
    return blocks(config, lambda b: replace(b, feed_forward=replace(b.feed_forward, **changes)))  # type: ignore[arg-type]


def layer_norms(config: NetworkConfig) -> NetworkConfig:
    norm = Norm(1e-5, "layer", bias=True)
    config = blocks(config, lambda b: replace(b, attention_norm=norm, ffn_norm=norm))
    return replace(config, head=replace(config.head, norm=norm))


def post_norms(config: NetworkConfig) -> NetworkConfig:
    return blocks(config, lambda b: replace(b, attention_post_norm=Norm(1e-5), ffn_post_norm=Norm(1e-5)))


def only_post_norms(config: NetworkConfig) -> NetworkConfig:
    return blocks(post_norms(config), lambda b: replace(b, attention_norm=None, ffn_norm=None))


def alternating(config: NetworkConfig, **changes: object) -> NetworkConfig:
    """Changes the second layer's attention only."""
    second = replace(config.blocks[1], attention=replace(config.blocks[1].attention, **changes))  # type: ignore[arg-type]
    return replace(config, blocks=(config.blocks[0], second))


def learned_positions(config: NetworkConfig) -> NetworkConfig:
    return replace(attention(config, rope=None), embedding=Embedding(positions=64), max_context=64)


# Each kind of part that families need, alone and as they have it together.
KINDS: dict[str, NetworkConfig] = {
    "layer norms with biases": layer_norms(PLAIN),
    "norms after the parts": post_norms(PLAIN),
    "norms only after the parts": only_post_norms(PLAIN),
    "q/k norm": attention(PLAIN, qk_norm=Norm(1e-6), scale=0.5),
    "q/k norm without gains": attention(PLAIN, qk_norm=Norm(1e-6, gain=False)),
    "soft caps": replace(attention(PLAIN, softcap=2.0), head=replace(PLAIN.head, softcap=3.0)),
    "sliding window": attention(PLAIN, window=5),
    "sliding window in one layer, another RoPE": alternating(PLAIN, window=5, rope=Rope((1.0, 0.3, 0.1, 0.03))),
    "partial RoPE": attention(PLAIN, rope=Rope((1.0, 0.1))),
    "a layer without RoPE": alternating(PLAIN, rope=None),
    "learned positions": learned_positions(PLAIN),
    "scaled embedding and logits": replace(PLAIN, embedding=Embedding(4.0), head=replace(PLAIN.head, scale=0.25)),
    "scaled residual": blocks(PLAIN, lambda b: replace(b, residual_scale=0.3)),
    "scaled residual, norms after the parts": blocks(post_norms(PLAIN), lambda b: replace(b, residual_scale=0.3)),
    "one norm for both parts": blocks(PLAIN, lambda b: replace(b, parallel=True, ffn_norm=None)),
    "two norms for parallel parts": blocks(PLAIN, lambda b: replace(b, parallel=True)),
    "no gate, GELU, biases": feed_forward(PLAIN, gated=False, activation="gelu", bias=True),
    "gated GELU by tanh": feed_forward(PLAIN, activation="gelu_tanh"),
    "squared ReLU": feed_forward(PLAIN, gated=False, activation="relu_squared"),
    "like GPT-2": feed_forward(
        learned_positions(attention(layer_norms(PLAIN), bias=True, output_bias=True)),
        gated=False, activation="gelu_tanh", bias=True,
    ),
}  # fmt: skip


# -- the lists ---------------------------------------------------------------------------------------------------------


def test_no_code_asks_how_a_tensors_name_ends() -> None:
    """What a tensor is for is in `network/tensors.py`. (Names of a checkpoint's own format are another matter.)"""
    asking = {"endswith", "removesuffix", "rpartition", "rsplit"}
    for path in sorted((ROOT / "converters").rglob("*.py")):
        room = path.relative_to(ROOT / "converters").parts[0]
        if room in ("checkpoints", "texts", "emit") or path.parent.name == "families":  # there stand a format's names
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in asking, f"{path}:{node.lineno} asks how a name ends"


@pytest.mark.parametrize("kind", KINDS)
def test_the_lists_are_what_the_decoder_reads(kind: str) -> None:
    checkpoint = checkpoint_of(KINDS[kind])
    config, read, called, seen = checkpoint.config, set[str](), list[tuple[Linear, ...]](), dict[str, FloatArray]()

    class Recording(NumpyOps):
        def linear(self, x: FloatArray, *matmuls: Linear) -> tuple[FloatArray, ...]:
            called.append(matmuls)
            assert x.shape[1] == matmuls[0].columns
            return super().linear(x, *matmuls)

    def reading(name: str) -> FloatArray:
        read.add(name)
        return checkpoint.read("embed.weight" if name == "head.weight" else name)

    decoder(Recording(config, reading, np.array([TOKENS]), observe=seen.__setitem__), config)
    assert tuple(called) == groups(config)
    assert {t.name for t in tensors(config)} == read - {"head.weight"}  # the head is tied
    assert {a.name for a in activations(config).values()} == set(seen)


# -- every kind --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_rotation_changes_no_logit(kind: str) -> None:
    checkpoint = checkpoint_of(KINDS[kind])
    canonical = CanonicalWeights(checkpoint.config, checkpoint.read)
    order = {i: np.random.default_rng(i).permutation(48) for i in range(2)}
    weights = RotatedWeights(canonical, order)
    mapped = weights.embedding_map
    assert mapped is not None
    np.testing.assert_allclose(weights("head.weight") @ mapped, weights("embed.weight"), atol=1e-4)
    ops = NumpyOps(weights.config, weights, np.array([TOKENS]))
    # float32 products in another order: the logits are of the order of 3
    np.testing.assert_allclose(decoder(ops, weights.config), float_logits(checkpoint, [], TOKENS), atol=2e-3)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


@pytest.mark.parametrize("profile", ["pi", "micro"])
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_of_every_kind_are_close_to_float(kind: str, profile: str, tmp_path: Path) -> None:
    """As close as those of a plain network: int8 weights and activations, tens of roundings of 0.7 % each."""
    checkpoint = checkpoint_of(KINDS[kind])
    backend = open_backend(convert(checkpoint, tmp_path / "bundle", Options(profile, 40, fast=True)))  # type: ignore[arg-type]
    found = np.stack([backend.decode(token).copy() for token in TOKENS])
    backend.rewind(1)
    chunk = backend.prefill(TOKENS).copy()  # another signature, in `pi`
    backend.close()
    expected = float_logits(checkpoint, [0], TOKENS)
    assert relative_error(found, expected) < 0.12
    assert relative_error(chunk, expected[-1]) < 0.2


@pytest.mark.parametrize("profile", ["pi", "micro"])
def test_a_tied_head_after_a_layer_norm_of_uneven_gains_gives_the_embedding_back(profile: str, tmp_path: Path) -> None:
    """The map from a row of the head to its embedding is not symmetric then, as it is after an RMS norm."""
    plain = checkpoint_of(layer_norms(PLAIN))
    gains = np.geomspace(0.1, 10, PLAIN.width).astype(np.float32)
    checkpoint = replace(plain, read=lambda name: gains if name == "final_norm.weight" else plain.read(name))
    backend = open_backend(convert(checkpoint, tmp_path / "bundle", Options(profile, 40, fast=True)))  # type: ignore[arg-type]
    found = np.stack([backend.decode(token).copy() for token in TOKENS])
    backend.close()
    assert relative_error(found, float_logits(checkpoint, [0], TOKENS)) < 0.12


def test_a_kind_that_no_profile_computes_is_refused_by_name(tmp_path: Path) -> None:
    norm = Norm(1e-5, "layer")
    config = blocks(PLAIN, lambda b: replace(b, attention_post_norm=norm))
    with pytest.raises(ArchitectureError, match="layer norms of this network"):
        convert(checkpoint_of(config), tmp_path / "bundle", Options("pi", 40, fast=True))
    config = attention(PLAIN, qk_norm=norm)
    with pytest.raises(ArchitectureError, match=r"profile micro cannot compute .* layer norm"):
        convert(checkpoint_of(config), tmp_path / "bundle", Options("micro", 40, fast=True))


def test_features_are_named_once_each_by_a_plain_network() -> None:
    assert set(features(PLAIN)) == {"norm gain"}


@pytest.mark.parametrize("window", [17, 20, 21, 30, 39, 41, 90])
@pytest.mark.parametrize("profile", ["pi", "micro"])
def test_windows_about_as_long_as_the_context_are_counted(profile: str, window: int, tmp_path: Path) -> None:
    """A graph that is compared with a larger one must have the same operators."""
    checkpoint = checkpoint_of(attention(PLAIN, window=window))
    bundle = convert(checkpoint, tmp_path / "bundle", Options(profile, 20, fast=True))  # type: ignore[arg-type]
    assert {"pi", "micro"} <= bundle.manifest.counts.keys()


# -- reads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("profile", "most"), [("pi", 2), ("micro", 3)])
@pytest.mark.parametrize("fast", [True, False])
def test_a_layers_weight_is_read_no_more_often_than_needed(
    profile: str, most: int, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dequantizing a large checkpoint takes longer than a pass over it. Reports are not counted."""
    checkpoint, counts = open_checkpoint(CHECKPOINTS / "gqa-tied"), Counter[str]()

    def counting(name: str) -> FloatArray:
        counts[name] += 1
        return checkpoint.read(name)

    def nothing(*args: object) -> Bundle:
        return args[1]  # type: ignore[return-value]  # the bundle

    monkeypatch.setattr(convert_module, "_add_report", nothing)
    monkeypatch.setattr(convert_module, "int16_report", lambda *args: {})
    counted: Checkpoint = replace(checkpoint, read=counting)
    convert(counted, tmp_path / "bundle", Options(profile, fast=fast))  # type: ignore[arg-type]
    weights = {t.name for t in tensors(checkpoint.config) if t.layer is not None and t.kind == "weight"}
    assert weights <= counts.keys()
    assert max(counts[name] for name in weights) <= most
