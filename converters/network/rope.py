"""Rotary position embeddings: inverse frequencies, with every scaling that checkpoints declare.

`default`, `linear` (Chen et al. 2023), `dynamic` (NTK), `yarn` (Peng et al. 2023), `llama3` and `longrope` (Ding et al.
2024), spelled as in Hugging Face `config.json` (old and new) or as in GGUF metadata. Frequencies are in radians per
position. Some models turn only the first part of each head (`partial_rotary_factor`).

`dynamic` changes the base only for sequences longer than `max_position_embeddings`. A bundle never goes past
that context, so within it the frequencies are the default ones. `longrope` has frequencies for contexts up to the
original one and others for longer ones: a bundle has those of its own context (`NetworkConfig.for_context`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from converters.checkpoints.fields import Fields
from converters.network.config import Rope
from device_runtime.errors import ArchitectureError, CheckpointError

__all__ = ["default", "from_gguf", "from_huggingface", "linear", "llama3", "yarn"]

_BASE = 10_000.0  # when a configuration names none
_HUGGINGFACE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope", "su")  # su: longrope's first name
_GGUF_TYPES = ("none", "linear", "yarn", "longrope")
_KEYS = {
    *("type", "rope_type", "rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    *("low_freq_factor", "high_freq_factor", "finetuned", "long_factor", "short_factor"),
}
_MOST_HEAD_DIM = 4096

Frequencies = npt.NDArray[np.float64]


def default(head_dim: int, base: float) -> Frequencies:
    """base ** (-2j / head_dim): (head_dim / 2,)."""
    with np.errstate(all="ignore"):
        return np.asarray(1.0 / base ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim))


def linear(frequencies: Frequencies, factor: float) -> Frequencies:
    """Positions are divided by `factor`."""
    return frequencies / factor


def llama3(
    frequencies: Frequencies, factor: float, low_freq_factor: float, high_freq_factor: float, original_context: int
) -> Frequencies:
    """Long waves are divided by `factor`, short ones kept, those between interpolated."""
    turns = original_context * frequencies / (2 * math.pi)  # in the original context
    smooth = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return np.asarray((1 - smooth) * frequencies / factor + smooth * frequencies)


def yarn(
    head_dim: int,
    base: float,
    factor: float,
    original_context: float,
    *,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> Frequencies:
    """Frequencies that turn fewer than `beta_slow` times in the original context are divided by `factor`."""

    def dimension_of(turns: float) -> float:
        return head_dim * math.log(original_context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension_of(beta_fast), dimension_of(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # as the original does: no division by zero
    ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0.0, 1.0)  # 0: keep, 1: interpolate
    frequencies = default(head_dim, base)
    return np.asarray(frequencies * (1 - ramp) + frequencies / factor * ramp)


def from_huggingface(
    config: Fields,
    head_dim: int,
    max_context: int,
    *,
    parameters: Fields | None = None,
    partial: float | None = None,
) -> Rope:
    """Read `rope_scaling` or `rope_parameters`, and `rope_theta` in or beside it.

    Args:
        parameters: the section to read instead, of a model that has several.
        partial: `partial_rotary_factor` where the configuration has none; None for a family that turns whole heads,
            which is then refused with another factor than 1.

    Raises:
        ArchitectureError: a scaling of an unknown type, or one with keys that this reader would ignore.
        CheckpointError: a value that cannot be.
    """
    rope = parameters
    if rope is None:
        rope = config.section("rope_scaling" if config.values.get("rope_scaling") else "rope_parameters")
    base = rope.number("rope_theta", config.number("rope_theta", _BASE), least=1.0)
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind not in _HUGGINGFACE_TYPES:
        raise _unsupported(rope.where, "rope_type", kind, _HUGGINGFACE_TYPES)
    if strange := sorted(set(rope.values) - _KEYS):
        raise _unsupported(rope.where, "RoPE parameter", ", ".join(strange), sorted(_KEYS))
    turned = rope.number("partial_rotary_factor", config.number("partial_rotary_factor", partial or 1.0))
    if turned > 1.0 or (partial is None and turned != 1.0):
        raise _unsupported(rope.where, "partial_rotary_factor", f"{turned:g}", ["1" if partial is None else "up to 1"])
    size = int(head_dim * turned)  # values of a head that turn
    _check(size, config.where)
    plain = default(size, base)
    if kind in ("default", "dynamic"):  # dynamic: see the module's docstring
        return _rope(plain, config.where)
    if kind == "linear":
        return _rope(linear(plain, rope.number("factor")), config.where)
    original = config.integer(
        "original_max_position_embeddings", rope.integer("original_max_position_embeddings", max_context)
    )
    factor = rope.number("factor", max_context / original)
    if kind in ("longrope", "su"):
        short, long = (
            _divisors(rope.values.get(key), key, size, rope.where) for key in ("short_factor", "long_factor")
        )
        magnitude = rope.number("attention_factor", _longrope_magnitude(factor, original))
        return _longrope(plain, short, long, magnitude, original, rope.where)
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if not low < high:
            raise CheckpointError(
                f"{rope.where}: low_freq_factor {low:g} is not below high_freq_factor {high:g}. "
                "The configuration is damaged, or of a variant that is not supported."
            )
        return _rope(llama3(plain, factor, low, high, original), config.where)
    scaled = yarn(
        size,
        base,
        factor,
        original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.flag("truncate", True),
    )
    return _rope(scaled, config.where, _yarn_magnitude(rope, factor))


def from_gguf(
    metadata: Fields,
    prefix: str,
    head_dim: int,
    max_context: int,
    divisors: npt.NDArray[np.float32] | None,
    *,
    long_divisors: npt.NDArray[np.float32] | None = None,
    partial: bool = False,
) -> Rope:
    """Read `{prefix}.rope.*`.

    Args:
        divisors: the tensor `rope_freqs.weight`, or `rope_factors_short.weight`, where the file has it.
        long_divisors: the tensor `rope_factors_long.weight`.
        partial: whether the family may turn a part of each head only.

    Raises:
        ArchitectureError: a scaling of an unknown type, or one that llama.cpp computes in a way not written here.
        CheckpointError: a value that cannot be.
    """

    def key(name: str) -> str:
        return f"{prefix}.rope.{name}"

    where = metadata.where
    base = metadata.number(key("freq_base"), _BASE, least=1.0)
    size = metadata.integer(key("dimension_count"), head_dim)
    if size > head_dim or (size != head_dim and not partial):
        raise _unsupported(where, key("dimension_count"), str(size), [str(head_dim)])
    kind = metadata.text(key("scaling.type"), "linear")  # as llama.cpp: a factor alone is linear
    if kind not in _GGUF_TYPES:
        raise _unsupported(where, key("scaling.type"), kind, _GGUF_TYPES)
    neutral = {"scaling.yarn_attn_factor": 1.0, "scaling.yarn_ext_factor": 1.0, "scaling.yarn_log_multiplier": 0.0}
    if long_divisors is None:
        neutral["scaling.attn_factor"] = 1.0
    for name, value_that_changes_nothing in neutral.items():
        value = metadata.number(key(name), value_that_changes_nothing, least=-1e9)
        if value != value_that_changes_nothing:
            raise _unsupported(where, key(name), f"{value:g}", [f"{value_that_changes_nothing:g}"])
    factor = metadata.number(key("scaling.factor"), metadata.number(key("scale_linear"), 0.0, least=-1.0), least=-1.0)
    _check(size, where)
    frequencies, magnitude = default(size, base), 1.0
    original = metadata.integer(key("scaling.original_context_length"), max_context)
    if long_divisors is not None:
        # llama.cpp takes the factor for cos and sin from the file alone
        short, long = (
            _divisors(None if found is None else found.tolist(), f"rope_factors_{name}.weight", size, where)
            for name, found in (("short", divisors), ("long", long_divisors))
        )
        attention = metadata.number(key("scaling.attn_factor"), 1.0)
        return _longrope(frequencies, short, long, attention, original, where)
    if kind == "yarn":
        factor = metadata.number(key("scaling.factor"))
        frequencies = yarn(
            size,
            base,
            factor,
            original,
            beta_fast=metadata.number(key("scaling.yarn_beta_fast"), 32.0),
            beta_slow=metadata.number(key("scaling.yarn_beta_slow"), 1.0),
        )
        magnitude = _mscale(factor)
    elif kind == "linear" and factor > 0:
        frequencies = linear(frequencies, factor)
    if divisors is not None:
        if kind == "yarn":
            raise _unsupported(where, "rope_freqs.weight with scaling", kind, ["none", "linear"])
        frequencies = frequencies / _divisors(divisors.tolist(), "rope_freqs.weight", size, where)
    return _rope(frequencies, where, magnitude)


def _divisors(values: object, name: str, size: int, where: str) -> Frequencies:
    """What frequencies are divided by, (size / 2,)."""
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        found = np.empty(0)
    if values is None or found.shape != (size // 2,) or not np.all(np.isfinite(found) & (found > 0)):
        raise CheckpointError(
            f"{where}: {name} has shape {found.shape if values is not None else 'none'}; expected {(size // 2,)} "
            "positive numbers. The configuration is damaged, or of a variant that is not supported."
        )
    return found


def _longrope_magnitude(factor: float, original_context: int) -> float:
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_context))


def _longrope(
    plain: Frequencies, short: Frequencies, long: Frequencies, magnitude: float, original_context: int, where: str
) -> Rope:
    near, far = (_rope(plain / divisors, where, magnitude) for divisors in (short, long))
    return Rope(near.frequencies, magnitude, far.frequencies, original_context)


def _mscale(factor: float, weight: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _yarn_magnitude(rope: Fields, factor: float) -> float:
    if "attention_factor" in rope:
        return rope.number("attention_factor")
    # 0 stands for "not given" in these two.
    mscale, over = (rope.number(key, 0.0, least=-1.0) for key in ("mscale", "mscale_all_dim"))
    return _mscale(factor, mscale) / _mscale(factor, over) if mscale and over else _mscale(factor)


def _check(head_dim: int, where: str) -> None:
    if head_dim % 2 or head_dim > _MOST_HEAD_DIM:
        raise ArchitectureError(
            f"{where}: heads of {head_dim} values; RoPE turns pairs: expected an even number up to {_MOST_HEAD_DIM}. "
            "This variant is not supported."
        )


def _rope(frequencies: Frequencies, where: str, magnitude: float = 1.0) -> Rope:
    if not (np.all(np.isfinite(frequencies)) and math.isfinite(magnitude)):
        raise CheckpointError(
            f"{where}: its RoPE parameters give frequencies that are not finite. The configuration is damaged."
        )
    return Rope(tuple(float(f) for f in frequencies), magnitude)


def _unsupported(where: str, key: str, found: str, known: Sequence[str]) -> ArchitectureError:
    return ArchitectureError(
        f"{where}: {key} {found} is not supported; supported: {', '.join(known)}. "
        "Ignoring it would change what the model computes."
    )
