"""Checkpoint in, bundle out: the order of the steps. Each step's work is in a file of its own."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from converters.checkpoints import Checkpoint, TokenizerFile, finite_weights
from converters.emit.tokenizer_table import write_tokenizer_table
from converters.measure.report import int16_report, quality_report
from converters.network.config import NetworkConfig, unsupported
from converters.network.decoder import require_support
from converters.network.tensors import Role, by_role, linears, matmul_weights
from converters.network.weights import CanonicalWeights, FloatArray
from converters.profiles import PROFILES, GraphJob, Profile, WeightType, profile_of
from converters.quantize.blocks import BLOCK
from converters.quantize.cache_ranges import CachePeaks, cache_ranges
from converters.quantize.calibrate import ActivationParams
from converters.quantize.observers import ChannelPeaks, observe_windows, read_prefix_and_windows
from converters.quantize.own_grid import GridWeights, around_one, has_own_grid
from converters.quantize.prefix import Prefix, choose_prefix, save_prefix
from converters.quantize.rotation import RotatedWeights, folded, rotates_residual
from converters.quantize.smoothing import norm_factors
from converters.texts.windows import calibration_windows, heldout_windows
from device_runtime import __version__
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import (
    FORMAT,
    MANIFEST,
    MODEL,
    PREFIX,
    FileEntry,
    GraphCounts,
    GraphShape,
    Manifest,
    TokenizerInfo,
)
from device_runtime.bundle.work_place import made_folders, put_in_place, work_folder
from device_runtime.engine.prompts import tokenizer_of
from device_runtime.engine.tokenizer import Tokenizer, read_tokenizer
from device_runtime.errors import ConfigurationError
from device_runtime.machine.disk import require_space
from device_runtime.machine.memory import model_bytes

__all__ = [
    "SHORTEST_CONTEXT",
    "Options",
    "Progress",
    "calibrate",
    "convert",
    "graph_counts",
    "graph_shape",
    "sorted_channels",
]

Progress = Callable[[str, float], None]  # (what is being done, share of it that is done)
ProfileName = Literal["pi", "micro"]
SHORTEST_CONTEXT = 16  # positions that are left after an instruction
_CALIBRATION_BYTES = 256 << 20  # that one activation of the feed-forward block may take
_PEAK_WINDOWS = 4  # of calibration, that show which channels of the feed-forward block are large
_FAST_CALIBRATION_TOKENS = 512
REPORT_WINDOW = 256
REPORT_WINDOWS = 2  # of each kind of text
_COMPARED_TOKENS = 128  # of each kind of text, on which two ways to quantize are compared
_REPORT_BYTES = 16 << 20  # that the rows of all windows take, at most


@dataclass(frozen=True)
class Options:
    """What a user may decide about a conversion."""

    profile: ProfileName
    context: int | None = None  # positions; None: what the profile usually wants
    calibration_text: str | None = None  # None: texts that come with stonechat
    instruction: str | None = None  # to bake into the prefix
    version: str = "1"  # of the bundle, for people
    windows: npt.NDArray[np.int64] | None = None  # (windows, length) tokens to calibrate on, in place of a text
    one_kind_of_text: bool = False  # the network was trained for what it is calibrated on, and reads nothing else
    heldout: Mapping[str, npt.NDArray[np.int64]] | None = None  # the same for the report, by the kind of text
    fast: bool = False  # round weights to the nearest, calibrate on little text, and leave out the report
    weights: WeightType = "int8"  # of the layers
    schemas: tuple[Mapping[str, Any], ...] = ()  # of answers, that a microcontroller is to hold them to
    needs_image: bool = False  # refuse a micro graph that the C engine has no calls for; else its image is left out
    purpose: Mapping[str, Any] | None = None  # what it was trained for; an image has the answer's schema, where it can


def convert(
    checkpoint: Checkpoint, folder: Path, options: Options, progress: Progress = lambda step, share: None
) -> Bundle:
    """Convert a checkpoint and put the bundle at `folder`, which appears whole or not at all.

    Raises:
        ConfigurationError: `folder` exists and is not a bundle, or the context is longer than the checkpoint's.
        CheckpointError: a tensor cannot be read.
        DiskFullError: there is no room for the bundle; known before any work.
    """
    profile = profile_of(options.profile, options.weights)
    context = _context(checkpoint.config, profile, options)
    checkpoint = replace(checkpoint, config=checkpoint.config.for_context(context))
    require_support(folded(checkpoint.config, profile.turns_head), profile.supports, f"The profile {profile.name}")
    folder = Path(os.path.realpath(folder))  # "." has no name to put another beside, and a link stays what it is
    if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise ConfigurationError(f"{folder} exists and is not a bundle; choose another folder with -o, or remove it.")
    require_space(folder.parent, _disk_bytes(checkpoint, profile, context), f"the conversion to {folder.name}")
    if not options.fast:  # the report's float head, and the rows that it reads
        head_bytes = 4 * checkpoint.config.vocabulary * checkpoint.config.width
        require_space(Path(tempfile.gettempdir()), head_bytes + _REPORT_BYTES, "the report of the conversion")
    with ExitStack() as stack:  # from before the folder is there: Ctrl-C may come at any moment
        try:
            stack.enter_context(made_folders(folder.parent))
            works = {own: stack.enter_context(work_folder(folder)) for own in _grids(checkpoint, profile, options.fast)}
        except OSError as error:
            raise ConfigurationError(
                f"{folder} cannot be written ({error.strerror}: {error.filename}); choose another folder with -o."
            ) from None
        for own_grid, work in works.items():
            _build(finite_weights(checkpoint), work, profile, context, options, progress, own_grid)
        work = works.popitem()[1] if len(works) == 1 else _closest(checkpoint, works, options, progress)
        bundle = _prove(Bundle.open(work), profile, options, progress)
        if not options.fast:
            bundle = _add_report(checkpoint, bundle, options.heldout, progress)
        work.chmod(0o755)
        put_in_place(work, folder)
        return Bundle.open(folder)


def graph_shape(config: NetworkConfig, profile: Profile, context: int, own_grid: bool = False) -> GraphShape:
    """What the manifest will say of the graph."""
    first = config.blocks[0].attention
    return GraphShape(
        config.layers,
        first.kv_heads,
        first.head_dim,
        config.vocabulary,
        profile.windows(context),
        profile.prefill_tokens(context),
        kv_cache_element_bytes=profile.kv_cache_element_bytes,
        weight_bytes=_weight_bytes(config, profile),
        rotated=rotates_residual(config) and not own_grid,
        several=profile.several_tokens(context),
    )


def _weight_bytes(config: NetworkConfig, profile: Profile) -> int:
    """Of all matmuls, as they are read for one token. With a block of int4 goes its scale, in `micro` of one byte; in
    `pi` of two, and an offset of one."""
    if profile.weight_bits == 8:
        return matmul_weights(config)
    head = linears(config)[-1]
    layers = matmul_weights(config) - head.rows * head.columns
    return head.rows * head.columns + layers // 2 + layers // BLOCK * (3 if profile.name == "pi" else 1)


@lru_cache(maxsize=16)
def graph_counts(config: NetworkConfig, context: int, profile: Profile | None = None) -> dict[str, GraphCounts]:
    """What graphs of a checkpoint's network would consist of, by profile; those that cannot compute it are left out.

    Args:
        profile: with these weights; the others have int8.
    """
    profiles = {**PROFILES, profile.name: profile} if profile is not None else PROFILES
    networks = {profile: folded(config, profile.turns_head) for profile in profiles.values()}
    able = [profile for profile, network in networks.items() if not unsupported(network, profile.supports)]
    return {profile.name: profile.estimate(networks[profile], context) for profile in able}


def _disk_bytes(checkpoint: Checkpoint, profile: Profile, context: int) -> int:
    """What a conversion writes at most at the same time.

    The graph, as computed, or for `micro` the graph and its image; and the constants of either, until it is whole.
    """
    graph = model_bytes(graph_counts(checkpoint.config, context, profile)[profile.name], profile.name, context)
    return graph * (3 if profile.name == "micro" else 2) + len(checkpoint.tokenizer.content)


def _context(config: NetworkConfig, profile: Profile, options: Options) -> int:
    context = options.context or min(profile.default_context, config.max_context)
    if not SHORTEST_CONTEXT <= context <= config.max_context:
        raise ConfigurationError(
            f"--context is {context}; this checkpoint was trained for at most {config.max_context} positions, "
            f"and a bundle needs at least {SHORTEST_CONTEXT}."
        )
    return context


def _grids(checkpoint: Checkpoint, profile: Profile, fast: bool) -> list[bool]:
    """The ways to get to the profile's weights: True keeps the grid that a 4-bit checkpoint has of its own."""
    if profile.weight_bits != 4 or profile.name != "pi":  # own grids have offsets, which the C engine has not
        return [False]
    if not has_own_grid(CanonicalWeights(checkpoint.config, checkpoint.read)):
        return [False]
    if unsupported(checkpoint.config, {*profile.supports, "scaled embedding", "scaled logits"}):
        return [False]  # what folding would take away, such as a norm's bias
    return [True] if fast else [True, False]


def _closest(checkpoint: Checkpoint, works: Mapping[bool, Path], options: Options, progress: Progress) -> Path:
    """Of the graphs in these folders the one that is closest to the float network."""
    divergence = {}
    for share, folder in enumerate(works.values()):
        progress("comparing grids", share / len(works))
        bundle = Bundle.open(folder)
        report = quality_report(bundle, checkpoint, _heldout(bundle, options.heldout, 1, _COMPARED_TOKENS))
        divergence[folder] = report["kl_divergence"]
    return min(divergence, key=lambda folder: divergence[folder])


def _build(
    checkpoint: Checkpoint,
    work: Path,
    profile: Profile,
    context: int,
    options: Options,
    progress: Progress,
    own_grid: bool = False,
) -> None:
    """Write every file of the bundle into `work`; what is measured on the graph comes later."""
    file = checkpoint.tokenizer
    tokenizer = _write_tokenizer(work, file)
    tokens = _prefix_tokens(file, tokenizer, context, options)
    progress("calibrating", 0.0)
    windows = calibrate(checkpoint.config, profile, tokenizer, file, context - len(tokens), options)
    usual = None
    own_text = options.calibration_text is not None or options.windows is not None
    if own_text and not options.one_kind_of_text and profile.name == "pi":
        others = replace(options, calibration_text=None, windows=None, fast=True)
        usual = calibrate(checkpoint.config, profile, tokenizer, file, context - len(tokens), others)
    job, logits = _job(checkpoint, tokens, windows, usual, context, options, progress, profile, own_grid)
    written = profile.write(work / MODEL, job)
    quality = {} if options.fast else _int16_quality(job, written.activations, tokenizer, file, options, progress)
    if logits is not None:
        save_prefix(work / PREFIX, Prefix(written.prefix, logits))
    counts = {**graph_counts(checkpoint.config, context, profile), profile.name: written.counts}
    manifest = _manifest(checkpoint, work, profile, context, options, tokens, quality, counts, own_grid)
    (work / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def _write_tokenizer(work: Path, file: TokenizerFile) -> Tokenizer:
    (work / file.file_name).write_bytes(file.content)
    path = work / file.file_name
    tokenizer = read_tokenizer(path, file.chat_template, file.eos_ids, spaced=file.spaced, own_space=file.own_space)
    if path.suffix == ".json":
        write_tokenizer_table(work, file.content, tokenizer)
    return tokenizer


def _prefix_tokens(file: TokenizerFile, tokenizer: Tokenizer, context: int, options: Options) -> list[int]:
    tokens = choose_prefix(file, tokenizer, options.instruction)
    if options.instruction is not None and context - len(tokens) < SHORTEST_CONTEXT:
        raise ConfigurationError(
            f"The instruction takes {len(tokens)} of {context} positions, and {SHORTEST_CONTEXT} must be left; "
            f"shorten it, or convert with --context {len(tokens) + 128} or more."
        )
    return tokens


def calibrate(
    config: NetworkConfig,
    profile: Profile,
    tokenizer: Tokenizer,
    file: TokenizerFile,
    free_positions: int,
    options: Options,
) -> npt.NDArray[np.int64]:
    """The windows that calibration reads, (windows, length)."""
    if options.windows is not None:
        length = min(free_positions, options.windows.shape[1])
        return options.windows[: max(1, profile.calibration_tokens // length), :length]
    total = _FAST_CALIBRATION_TOKENS if options.fast else profile.calibration_tokens
    total = min(total, _CALIBRATION_BYTES // (4 * config.largest_ffn_width))
    length = min(profile.calibration_window, free_positions)
    return calibration_windows(tokenizer, file, options.calibration_text, length, total)


def _job(
    checkpoint: Checkpoint,
    tokens: list[int],
    windows: npt.NDArray[np.int64],
    usual: npt.NDArray[np.int64] | None,
    context: int,
    options: Options,
    progress: Progress,
    profile: Profile,
    own_grid: bool,
) -> tuple[GraphJob, FloatArray | None]:
    """Read the prefix in float, find the large channels, and change the basis; also returns the prefix's logits.

    `usual` are windows of other texts than a user's, which are to fit the kv_cache too: ranges of a text of one kind
    would cut off what all others have.
    """
    canonical = CanonicalWeights(checkpoint.config, checkpoint.read)
    peaks = ChannelPeaks(checkpoint.config, BLOCK if own_grid else None)
    of_cache = CachePeaks(checkpoint.config, rotated=not own_grid)

    def observe(name: str, values: FloatArray) -> None:
        peaks(name, values)
        of_cache(name, values)

    cache, logits = read_prefix_and_windows(
        canonical,
        np.array(tokens, np.int64),
        windows[:_PEAK_WINDOWS],
        observe,
        lambda share: progress("calibrating", share),
    )
    if usual is not None:
        observe_windows(checkpoint.config, canonical, usual, cache, of_cache)
    canonical.release()
    report = lambda share: progress("quantizing", share)  # noqa: E731
    if own_grid:
        grid = GridWeights(canonical, peaks)
        ranges = cache_ranges(checkpoint.config, grid.cache(of_cache.cache()), grid.cache(cache), int4=True)
        return GraphJob(grid, grid.cache(cache), windows, context, options.fast, ranges, report), logits
    order = sorted_channels(checkpoint.config, peaks)
    of_norms = norm_factors(checkpoint.config, peaks.peaks, canonical, profile.turns_head)
    of_down = _down_factors(checkpoint.config, peaks, order, profile)
    weights = RotatedWeights(canonical, order, of_down, of_norms, profile.turns_head)
    int4 = options.weights == "int4"
    ranges = cache_ranges(checkpoint.config, of_cache.cache(), weights.rotate_cache(cache), int4=int4)
    return GraphJob(weights, weights.rotate_cache(cache), windows, context, options.fast, ranges, report), logits


def _int16_quality(
    job: GraphJob,
    params: ActivationParams,
    tokenizer: Tokenizer,
    file: TokenizerFile,
    options: Options,
    progress: Progress,
) -> dict[str, Any]:
    """What int16 activations are worth, where the profile has any."""
    if not params.int8_instead or isinstance(job.weights, GridWeights):
        return {}
    progress("weighing int16", 0.0)
    heldout = options.heldout or heldout_windows(
        tokenizer, file.chat_template, file.special_tokens, job.windows.shape[1], 1
    )
    shortest = min(w.shape[1] for w in heldout.values())
    sample = np.concatenate([w[:, :shortest] for w in heldout.values()])[:, :REPORT_WINDOW]
    return {"int16": int16_report(job.weights, job.prefix, params, sample)}


def _manifest(
    checkpoint: Checkpoint,
    work: Path,
    profile: Profile,
    context: int,
    options: Options,
    tokens: list[int],
    quality: dict[str, Any],
    counts: dict[str, GraphCounts],
    own_grid: bool,
) -> Manifest:
    file = checkpoint.tokenizer
    return Manifest(
        format=FORMAT,
        name=checkpoint.name,
        version=options.version,
        task="generate",
        architecture=checkpoint.architecture,
        weight_bits=profile.weight_bits,
        profile=profile.name,
        backends=profile.backends,
        context=context,
        graph=graph_shape(checkpoint.config, profile, context, own_grid),
        counts=counts,
        tokenizer=TokenizerInfo(
            file.file_name,
            file.bos_id,
            file.eos_ids,
            file.adds_bos,
            file.special_tokens,
            file.spaced,
            file.own_space,
        ),
        chat_template=file.chat_template,
        prefix_tokens=tuple(tokens),
        instruction=options.instruction,
        quality=quality,
        source={"name": checkpoint.name, "sha256": checkpoint.sha256},
        purpose=None if options.purpose is None else dict(options.purpose),
        converter=__version__,
        security_counter=0,
        files={p.name: _entry(p) for p in sorted(work.iterdir()) if not p.name.startswith(".")},
    )


def sorted_channels(config: NetworkConfig, peaks: ChannelPeaks) -> dict[int, npt.NDArray[np.integer]]:
    """Feed-forward channels of each layer by their calibrated peak, the largest last."""
    return {
        i: np.argsort(peaks.peaks[by_role(config, i)[Role.DOWN].input], kind="stable") for i in range(config.layers)
    }


def _down_factors(
    config: NetworkConfig, peaks: ChannelPeaks, order: Mapping[int, npt.NDArray[np.integer]], profile: Profile
) -> dict[int, FloatArray]:
    """With scales for blocks of columns, by which each sorted feed-forward channel is divided where it is made."""
    found: dict[int, FloatArray] = {}
    for i, block in enumerate(config.blocks):
        if profile.weight_bits == 4 and block.feed_forward.gated and block.feed_forward.width % BLOCK == 0:
            sizes = peaks.peaks[by_role(config, i)[Role.DOWN].input][order[i]].reshape(-1, BLOCK).max(axis=1)
            found[i] = np.repeat(around_one(np.sqrt(sizes)), BLOCK)
    return found


def _entry(path: Path) -> FileEntry:
    with open(path, "rb") as stream:
        return FileEntry(hashlib.file_digest(stream, "sha256").hexdigest(), path.stat().st_size)


def _prove(bundle: Bundle, profile: Profile, options: Options, progress: Progress) -> Bundle:
    """Hold the graph against its runtime's rules, and write down what came of it.

    Raises:
        GraphError: it breaks a rule; or, with `needs_image`, the C engine has no calls for it.
        SchemaError: a microcontroller cannot hold answers to one of the schemas.
    """
    progress("checking", 0.0)
    proof = profile.prove(bundle, options.needs_image, options.schemas)
    progress("checking", 1.0)
    if proof is None:
        return bundle
    files = {**bundle.manifest.files, **{name: _entry(bundle.path / name) for name in proof.files}}
    return _with_manifest(bundle, replace(bundle.manifest, arena=proof.arena, engine=proof.engine, files=files))


def _with_manifest(bundle: Bundle, manifest: Manifest) -> Bundle:
    (bundle.path / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(bundle.path)


def _add_report(
    checkpoint: Checkpoint,
    bundle: Bundle,
    heldout: Mapping[str, npt.NDArray[np.int64]] | None,
    progress: Progress,
) -> Bundle:
    """Measure the graph against the float network and write the figures into the manifest."""
    manifest = bundle.manifest
    kinds = _heldout(bundle, heldout, REPORT_WINDOWS, REPORT_WINDOW)
    report = quality_report(bundle, checkpoint, kinds, lambda share: progress("measuring", share))
    return _with_manifest(bundle, replace(manifest, quality={**report, **manifest.quality}))


def _heldout(
    bundle: Bundle, given: Mapping[str, npt.NDArray[np.int64]] | None, count: int, tokens: int
) -> Mapping[str, npt.NDArray[np.int64]]:
    """What was given, or `count` windows of at most `tokens` of each kind of held-out text."""
    if given:
        return given
    manifest = bundle.manifest
    length = min(tokens, manifest.context - len(manifest.prefix_tokens))
    return heldout_windows(
        tokenizer_of(bundle), manifest.chat_template, manifest.tokenizer.special_tokens, length, count
    )
