"""Checkpoint in, bundle out: the order of the steps. Each step's work is in a file of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from converters.checkpoints import Checkpoint
from converters.network import NetworkConfig
from converters.ops_numpy import Observe, ReadTensor, with_head
from converters.profile_micro import calibrate, write_micro
from converters.profile_pi import PREFILL_TOKENS, cache_windows, write_pi
from converters.quality import float_losses, graph_losses, text_windows
from converters.quantize.prefix import Prefix, choose_prefix, float_prefix, save_prefix
from converters.quantize.rotation import Rotation
from converters.quantize.smoothing import ChannelPeaks, choose_smoothing, observe_windows
from device_runtime import __version__
from device_runtime.backends import open_backend
from device_runtime.bundle import (
    FORMAT,
    MANIFEST,
    MODEL,
    PREFIX,
    Bundle,
    FileEntry,
    GraphShape,
    Manifest,
    TokenizerInfo,
)
from device_runtime.errors import ConfigurationError
from device_runtime.tokenizer import read_tokenizer

__all__ = ["Options", "Progress", "convert", "heldout_text"]

Progress = Callable[[str, float], None]  # (what is being done, share of it that is done)
CALIBRATION_WINDOW = 256  # tokens that calibration reads at a time
CALIBRATION_TOKENS = 4096
PEAK_WINDOWS = 4  # of them, that tell how large channels and ranges are
FAST_CALIBRATION_TOKENS = 512
REPORT_TOKENS = 512


@dataclass(frozen=True)
class Options:
    """What a user may decide about a conversion."""

    profile: Literal["pi", "micro"]
    context: int | None = None  # positions; None: what the profile usually wants
    calibration_text: str | None = None  # None: a text that comes with stonechat
    version: str = "1"  # of the bundle, for people
    fast: bool = False  # round weights to the nearest, calibrate on little text, and leave out the report


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
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be written ({error.strerror}: {error.filename}); choose another folder with -o."
        ) from None
    try:
        _build(checkpoint, work, context, options, progress)
        bundle = Bundle.open(work)
        if not options.fast:
            bundle = _add_report(checkpoint, bundle, progress)
        work.chmod(0o755)
        _replace(work, folder)
        return Bundle.open(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def heldout_text() -> str:
    """The text on which the manifest's report is measured; calibration never sees it."""
    return _packaged_text("heldout.txt")


def _packaged_text(name: str) -> str:
    return (resources.files("converters") / "texts" / name).read_text(encoding="utf-8")


def _context(config: NetworkConfig, options: Options) -> int:
    context = options.context or min(DEFAULT_CONTEXT[options.profile], config.max_context)
    if not 16 <= context <= config.max_context:
        raise ConfigurationError(
            f"--context is {context}; this checkpoint was trained for at most {config.max_context} positions, "
            "and a bundle needs at least 16."
        )
    return context


def _build(checkpoint: Checkpoint, work: Path, context: int, options: Options, progress: Progress) -> None:
    config, tokenizer_file = checkpoint.config, checkpoint.tokenizer
    (work / tokenizer_file.file_name).write_bytes(tokenizer_file.content)
    tokenizer = read_tokenizer(work / tokenizer_file.file_name)
    read = with_head(config, checkpoint.read)
    prefix_tokens = choose_prefix(checkpoint.tokenizer, tokenizer)

    progress("calibrating", 0.0)
    text = options.calibration_text if options.calibration_text is not None else _packaged_text("calibration.txt")
    tokens = tokenizer.encode(text)[: FAST_CALIBRATION_TOKENS if options.fast else CALIBRATION_TOKENS]
    if len(tokens) < 32:
        raise ConfigurationError(f"The calibration text has {len(tokens)} tokens; give at least 32, better 1,000.")
    windows = text_windows(tokens, min(CALIBRATION_WINDOW, context - len(prefix_tokens)))
    prefix = float_prefix(config, read, prefix_tokens)
    peaks = ChannelPeaks()
    counted = _counted(read, config, lambda share: progress("calibrating", share * 0.7))
    observe_windows(config, counted, windows[:PEAK_WINDOWS], prefix.cache, peaks)
    progress("calibrating", 1.0)
    steps = config.layers * 4 + 2
    done = 0

    def step(_: str) -> None:
        nonlocal done
        done += 1
        progress("quantizing", done / steps)

    windows_of_cache: tuple[int, ...]
    if options.profile == "pi":
        rotation = Rotation(config, _sorted_channels(config, peaks))
        graph_prefix = rotation.apply_to_cache(prefix.cache)
        embedding_map = rotation.embedding_map(read) if config.tied_head else None
        rotated = rotation.apply(read)

        def calibrate_weights(observe: Observe) -> None:
            observe_windows(config, rotated, windows, graph_prefix, observe)

        compensate = None if options.fast else calibrate_weights
        write_pi(work / MODEL, config, rotated, embedding_map, context, compensate, step)
        windows_of_cache, prefill = cache_windows(context), min(PREFILL_TOKENS, cache_windows(context)[0])
    else:
        smoothing = choose_smoothing(config, read, peaks.peaks)
        smoothed, graph_prefix = smoothing.apply(read), smoothing.apply_to_cache(prefix.cache)
        divisor = smoothing.scales["head"] if config.tied_head else None
        ranges = calibrate(config, smoothed, windows[:PEAK_WINDOWS], graph_prefix)
        write_micro(work / MODEL, config, smoothed, graph_prefix, ranges, context, divisor, step)
        windows_of_cache, prefill = (context,), 0
    if prefix_tokens:
        save_prefix(work / PREFIX, Prefix(graph_prefix, prefix.logits))
    manifest = Manifest(
        format=FORMAT,
        name=checkpoint.name,
        version=options.version,
        architecture=checkpoint.architecture,
        profile=options.profile,
        context=context,
        graph=GraphShape(
            config.layers,
            config.kv_heads,
            config.head_dim,
            config.vocabulary,
            windows_of_cache,
            prefill,
            weight_bytes=config.matmul_weights,  # int8
            rotated=options.profile == "pi",
        ),
        tokenizer=TokenizerInfo(
            tokenizer_file.file_name,
            tokenizer_file.bos_id,
            tokenizer_file.eos_ids,
            tokenizer_file.adds_bos,
            tokenizer_file.special_tokens,
        ),
        chat_template=tokenizer_file.chat_template,
        prefix_tokens=tuple(prefix_tokens),
        quality={},
        source={"name": checkpoint.name, "sha256": checkpoint.sha256},
        converter=__version__,
        security_counter=0,
        files={p.name: _entry(p) for p in sorted(work.iterdir()) if not p.name.startswith(".")},
    )
    (work / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def _sorted_channels(config: NetworkConfig, peaks: ChannelPeaks) -> dict[int, npt.NDArray[np.integer]]:
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


def _add_report(checkpoint: Checkpoint, bundle: Bundle, progress: Progress) -> Bundle:
    """Measure the graph against the float network and write both figures into the manifest."""
    manifest = bundle.manifest
    tokens = read_tokenizer(bundle.path / manifest.tokenizer.file).encode(heldout_text())[:REPORT_TOKENS]
    windows = text_windows(tokens, min(256, manifest.context - len(manifest.prefix_tokens)))
    progress("measuring", 0.0)
    read = with_head(checkpoint.config, checkpoint.read)
    prefix = float_prefix(checkpoint.config, read, manifest.prefix_tokens)
    reference = float_losses(checkpoint.config, read, windows, prefix.cache)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        progress("measuring", 0.3 + 0.7 * done / windows.size)

    backend = open_backend(bundle)
    try:
        measured = graph_losses(backend, windows, count)
    finally:
        backend.close()
    float_perplexity, graph_perplexity = float(np.exp(reference.mean())), float(np.exp(measured.mean()))
    quality = {
        "text": "stonechat held-out text",
        "tokens": int(reference.size),
        "float_perplexity": round(float_perplexity, 4),
        "graph_perplexity": round(graph_perplexity, 4),
        "ratio": round(graph_perplexity / float_perplexity, 5),
    }
    (bundle.path / MANIFEST).write_text(replace(manifest, quality=quality).to_json(), encoding="utf-8")
    progress("measuring", 1.0)
    return Bundle.open(bundle.path)


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
