"""Checkpoint in, bundle out: the order of the steps. Each step's work is in a file of its own."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from converters.checkpoints import Checkpoint, TokenizerFile, check_finite
from converters.emit.c.bundle import write_bundle_image
from converters.emit.lint import measured_arena, require_clean
from converters.measure.quality import text_windows
from converters.measure.report import int16_report, quality_report
from converters.network.decoder import NetworkConfig
from converters.ops.numpy import Observe, ReadTensor, with_head
from converters.profiles.micro import write_micro
from converters.profiles.pi import write_pi
from converters.quantize.observers import ChannelPeaks, observe_windows
from converters.quantize.prefix import Prefix, choose_prefix, float_prefix, save_prefix
from converters.quantize.rotation import Rotation
from converters.texts import chat_renderer, text_kinds
from device_runtime import __version__
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import (
    FORMAT,
    IMAGE,
    MANIFEST,
    MODEL,
    PREFIX,
    FileEntry,
    GraphShape,
    Manifest,
    TokenizerInfo,
)
from device_runtime.engine.prompts import tokenizer_of
from device_runtime.engine.tokenizer import Tokenizer, read_tokenizer
from device_runtime.errors import ConfigurationError, GraphError
from device_runtime.machine.memory import PREFILL_TOKENS, cache_windows

__all__ = ["Options", "Progress", "calibration_windows", "convert", "graph_shape", "heldout_windows", "sorted_channels"]

Progress = Callable[[str, float], None]  # (what is being done, share of it that is done)
CALIBRATION_WINDOW = {"pi": 256, "micro": 512}  # tokens that calibration reads at a time, at most
CALIBRATION_TOKENS = {"pi": 4096, "micro": 12288}  # static ranges need many to have met the extremes
_CALIBRATION_BYTES = 256 << 20  # that one activation of the feed-forward block may take
PEAK_WINDOWS = 4  # of them, that tell which channels of the feed-forward block are large
FAST_CALIBRATION_TOKENS = 512
REPORT_WINDOW = 256
REPORT_WINDOWS = 2  # of each kind of text


@dataclass(frozen=True)
class Options:
    """What a user may decide about a conversion."""

    profile: Literal["pi", "micro"]
    context: int | None = None  # positions; None: what the profile usually wants
    calibration_text: str | None = None  # None: texts that come with stonechat
    instruction: str | None = None  # to bake into the prefix
    version: str = "1"  # of the bundle, for people
    windows: npt.NDArray[np.int64] | None = None  # (windows, length) tokens to calibrate on, in place of a text
    heldout: Mapping[str, npt.NDArray[np.int64]] | None = None  # the same for the report, by the kind of text
    fast: bool = False  # round weights to the nearest, calibrate on little text, and leave out the report
    needs_image: bool = (
        False  # refuse a micro graph that the C engine has no calls for, instead of leaving its image out
    )


SHORTEST_CONTEXT = 16  # positions, and behind an instruction
DEFAULT_CONTEXT = {"pi": 1024, "micro": 256}


def convert(
    checkpoint: Checkpoint, folder: Path, options: Options, progress: Progress = lambda step, share: None
) -> Bundle:
    """Convert a checkpoint and put the bundle at `folder`, which appears whole or not at all.

    Raises:
        ConfigurationError: `folder` exists and is not a bundle, or the context is longer than the checkpoint's.
        CheckpointError: a tensor cannot be read.
    """
    config = checkpoint.config
    context = _context(config, options)
    folder = Path(os.path.abspath(folder))  # "." has no name to put a temporary folder beside
    if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise ConfigurationError(f"{folder} exists and is not a bundle; choose another folder with -o, or remove it.")
    work = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:  # from before the folder is there: Ctrl-C may come at any moment
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            work.mkdir(mode=0o700)
        except OSError as error:
            raise ConfigurationError(
                f"{folder} cannot be written ({error.strerror}: {error.filename}); choose another folder with -o."
            ) from None
        check_finite(checkpoint, lambda share: progress("checking the weights", share))
        _build(checkpoint, work, context, options, progress)
        bundle = Bundle.open(work)
        if options.profile == "micro":
            bundle = _prove(bundle, options.needs_image, progress)
        if not options.fast:
            bundle = _add_report(checkpoint, bundle, options.heldout, progress)
        work.chmod(0o755)
        _replace(work, folder)
        return Bundle.open(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def heldout_windows(
    tokenizer: Tokenizer, chat_template: str | None, special_tokens: Mapping[str, str], length: int, count: int
) -> dict[str, npt.NDArray[np.int64]]:
    """Windows of the texts that reports are measured on, by kind; calibration never sees them."""
    texts = text_kinds("heldout", chat_renderer(chat_template, special_tokens))
    return {kind: text_windows(tokenizer.encode(text), length, count) for kind, text in texts.items()}


def calibration_windows(
    tokenizer: Tokenizer, file: TokenizerFile, config: NetworkConfig, options: Options, room: int
) -> npt.NDArray[np.int64]:
    """(windows, length): the kinds of text in turn, so that any share of them holds all."""
    if options.windows is not None:
        length = min(room, options.windows.shape[1])
        return options.windows[: max(1, CALIBRATION_TOKENS[options.profile] // length), :length]
    if options.calibration_text is not None:
        texts = {"calibration": options.calibration_text}
    else:
        texts = text_kinds("calibration", chat_renderer(file.chat_template, file.special_tokens))
    tokens = {kind: tokenizer.encode(text) for kind, text in texts.items()}
    total = sum(map(len, tokens.values()))
    if total < 32:
        raise ConfigurationError(f"The calibration text has {total} tokens; give at least 32, better 10,000.")
    length = min(CALIBRATION_WINDOW[options.profile], room, *map(len, tokens.values()))
    wanted = FAST_CALIBRATION_TOKENS if options.fast else CALIBRATION_TOKENS[options.profile]
    wanted = min(wanted, _CALIBRATION_BYTES // (4 * config.ffn_width))
    windows = [text_windows(t, min(length, wanted)) for t in tokens.values()]
    in_turn = [w[i] for i in range(max(map(len, windows))) for w in windows if i < len(w)]
    return np.stack(in_turn[: max(1, wanted // length)])


def graph_shape(config: NetworkConfig, profile: Literal["pi", "micro"], context: int) -> GraphShape:
    """What the manifest will say of the graph."""
    windows = cache_windows(context) if profile == "pi" else (context,)
    return GraphShape(
        config.layers,
        config.kv_heads,
        config.head_dim,
        config.vocabulary,
        windows,
        min(PREFILL_TOKENS, windows[0]) if profile == "pi" else 0,
        kv_cache_element_bytes=4 if profile == "pi" else 1,
        weight_bytes=config.matmul_weights,  # int8
        rotated=True,
        width=config.width,
        heads=config.heads,
        ffn_width=config.ffn_width,
        tied_head=config.tied_head,
    )


def _context(config: NetworkConfig, options: Options) -> int:
    context = options.context or min(DEFAULT_CONTEXT[options.profile], config.max_context)
    if not SHORTEST_CONTEXT <= context <= config.max_context:
        raise ConfigurationError(
            f"--context is {context}; this checkpoint was trained for at most {config.max_context} positions, "
            f"and a bundle needs at least {SHORTEST_CONTEXT}."
        )
    return context


def _build(checkpoint: Checkpoint, work: Path, context: int, options: Options, progress: Progress) -> None:
    config, tokenizer_file = checkpoint.config, checkpoint.tokenizer
    (work / tokenizer_file.file_name).write_bytes(tokenizer_file.content)
    tokenizer = read_tokenizer(
        work / tokenizer_file.file_name,
        tokenizer_file.chat_template,
        tokenizer_file.eos_ids,
        spaced=tokenizer_file.spaced,
    )
    read = with_head(config, checkpoint.read)
    prefix_tokens = choose_prefix(checkpoint.tokenizer, tokenizer, options.instruction)
    if options.instruction is not None and context - len(prefix_tokens) < SHORTEST_CONTEXT:
        raise ConfigurationError(
            f"The instruction takes {len(prefix_tokens)} of {context} positions, and {SHORTEST_CONTEXT} must be left; "
            f"shorten it, or convert with --context {len(prefix_tokens) + 128} or more."
        )

    progress("calibrating", 0.0)
    windows = calibration_windows(tokenizer, tokenizer_file, config, options, context - len(prefix_tokens))
    prefix = float_prefix(config, read, prefix_tokens)
    steps = config.layers * 4 + (2 if options.profile == "pi" else 1)
    done = 0

    def step(_: str) -> None:
        nonlocal done
        done += 1
        progress("quantizing", done / steps)

    quality: dict[str, Any] = {}
    peaks = ChannelPeaks()
    counted = _counted(read, config, lambda share: progress("calibrating", share))
    observe_windows(config, counted, windows[:PEAK_WINDOWS], prefix.cache, peaks)
    progress("calibrating", 1.0)
    rotation = Rotation(config, sorted_channels(config, peaks))
    graph_prefix = rotation.apply_to_cache(prefix.cache)
    embedding_map = rotation.embedding_map(read) if config.tied_head else None
    rotated = rotation.apply(read)
    if options.profile == "pi":

        def calibrate_weights(observe: Observe) -> None:
            observe_windows(config, rotated, windows, graph_prefix, observe)

        compensate = None if options.fast else calibrate_weights
        write_pi(work / MODEL, config, rotated, embedding_map, context, compensate, step)
    else:
        thorough = not options.fast
        chosen = write_micro(
            work / MODEL,
            config,
            rotated,
            embedding_map,
            graph_prefix,
            windows,
            context,
            thorough=thorough,
            progress=step,
        )
        if thorough:
            progress("weighing int16", 0.0)
            heldout = options.heldout or heldout_windows(
                tokenizer, tokenizer_file.chat_template, tokenizer_file.special_tokens, windows.shape[1], 1
            )
            shortest = min(w.shape[1] for w in heldout.values())
            sample = np.concatenate([w[:, :shortest] for w in heldout.values()])[:, :REPORT_WINDOW]
            quality["int16"] = int16_report(config, rotated, graph_prefix, chosen, sample)
    if prefix_tokens:
        save_prefix(work / PREFIX, Prefix(graph_prefix, prefix.logits))
    manifest = Manifest(
        format=FORMAT,
        name=checkpoint.name,
        version=options.version,
        task="generate",
        architecture=checkpoint.architecture,
        weight_bits=8,
        profile=options.profile,
        context=context,
        graph=graph_shape(config, options.profile, context),
        tokenizer=TokenizerInfo(
            tokenizer_file.file_name,
            tokenizer_file.bos_id,
            tokenizer_file.eos_ids,
            tokenizer_file.adds_bos,
            tokenizer_file.special_tokens,
            tokenizer_file.spaced,
        ),
        chat_template=tokenizer_file.chat_template,
        prefix_tokens=tuple(prefix_tokens),
        instruction=options.instruction,
        quality=quality,
        source={"name": checkpoint.name, "sha256": checkpoint.sha256},
        converter=__version__,
        security_counter=0,
        files={p.name: _entry(p) for p in sorted(work.iterdir()) if not p.name.startswith(".")},
    )
    (work / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def sorted_channels(config: NetworkConfig, peaks: ChannelPeaks) -> dict[int, npt.NDArray[np.integer]]:
    """Feed-forward channels of each layer by their calibrated peak, the largest last."""
    return {i: np.argsort(peaks.peaks[f"layers.{i}.down.in"], kind="stable") for i in range(config.layers)}


def _counted(read: ReadTensor, config: NetworkConfig, report: Callable[[float], None]) -> ReadTensor:
    """`read`, which reports what share of the layers has been read."""

    def counted(name: str) -> Any:
        if name.startswith("layers."):
            report(int(name.split(".")[1]) / config.layers)
        return read(name)

    return counted


def _entry(path: Path) -> FileEntry:
    with open(path, "rb") as stream:
        return FileEntry(hashlib.file_digest(stream, "sha256").hexdigest(), path.stat().st_size)


def _prove(bundle: Bundle, needs_image: bool, progress: Progress) -> Bundle:
    """Hold the graph against TFLite Micro's rules, run it there, and make the image that the C engine runs.

    Raises:
        GraphError: TFLite Micro would not run the graph; or, with `needs_image`, the C engine has no calls for it.
    """
    progress("checking", 0.0)
    require_clean(bundle.model_path)
    arena = measured_arena(bundle)
    progress("checking", 0.5)
    files = dict(bundle.manifest.files)
    try:
        write_bundle_image(bundle)
        files[IMAGE] = _entry(bundle.path / IMAGE)
    except GraphError:
        if needs_image:
            raise
        (bundle.path / IMAGE).unlink(missing_ok=True)
    progress("checking", 1.0)
    return _with_manifest(bundle, replace(bundle.manifest, arena=arena, files=files))


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
    tokenizer = tokenizer_of(bundle)
    length = min(REPORT_WINDOW, manifest.context - len(manifest.prefix_tokens))
    kinds = heldout or heldout_windows(
        tokenizer, manifest.chat_template, manifest.tokenizer.special_tokens, length, REPORT_WINDOWS
    )
    report = quality_report(bundle, checkpoint, kinds, lambda share: progress("measuring", share))
    return _with_manifest(bundle, replace(manifest, quality={**report, **manifest.quality}))


def _replace(work: Path, folder: Path) -> None:
    """Move the finished bundle into place; an older bundle there is set aside until the new one stands."""
    old = folder.with_name(f".{folder.name}-old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    try:
        work.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
