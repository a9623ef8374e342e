"""An encoder or a translator in, a bundle out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from boards.fit import Subject
from converters.emit.lint import require_clean
from converters.encoders.checkpoint import EncoderCheckpoint
from converters.encoders.graphs.micro import (
    calibrate_encoder,
    count_micro_encoder,
    measured_encoder_arena,
    write_micro_encoder,
)
from converters.encoders.graphs.pi import count_encoder, lengths_of, write_encoder
from converters.encoders.network import EncoderConfig, TranslatorConfig, linears
from converters.encoders.quality import encoder_quality, kept, sentences_of
from converters.encoders.smoothing import smoothing_factors
from converters.network.weights import FloatArray
from device_runtime import __version__
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import (
    FORMAT,
    MANIFEST,
    MODEL,
    EncoderInfo,
    FileEntry,
    GraphCounts,
    GraphShape,
    Manifest,
    TokenizerInfo,
    TranslatorInfo,
)
from device_runtime.bundle.work_place import made_folders, put_in_place, work_folder
from device_runtime.errors import ArchitectureError, ConfigurationError

__all__ = ["EncoderOptions", "context_of", "convert_encoder", "require_profile", "subject_of_encoder"]

ProfileName = Literal["pi", "micro"]
Progress = Callable[[str, float], None]  # (what is being done, share of it that is done)
SHORTEST_CONTEXT = 16
_MANIFEST_BYTES = 8192
_DEFAULT_CONTEXT: dict[ProfileName, int] = {"pi": 512, "micro": 64}
_CALIBRATION_SENTENCES = 24
_CHARACTERS = 2000  # as a task file may say at most; the limit of tokens is what counts


@dataclass(frozen=True)
class EncoderOptions:
    """What a user may decide about a conversion."""

    profile: ProfileName = "pi"
    context: int | None = None  # tokens of the longest text; None: the model's own limit, 512 at most, or 64 in micro
    version: str = "1"  # of the bundle, for people
    fast: bool = False  # round weights to the nearest, and leave out smoothing and the report
    purpose: Mapping[str, Any] | None = None  # of a classifier that was tuned for a task; None: by the checkpoint
    sentences: Sequence[str] | None = None  # that ranges are chosen on; None: some that come with stonechat
    heldout: Mapping[str, Sequence[str]] = field(default_factory=dict)  # the report's, by their text's name; the same


def context_of(checkpoint: EncoderCheckpoint, context: int | None, profile: ProfileName = "pi") -> int:
    """Tokens of the longest text.

    Raises:
        ConfigurationError: it is too short, or longer than the checkpoint's.
    """
    most = checkpoint.config.max_tokens
    found = context or min(most, _DEFAULT_CONTEXT[profile])
    if not min(SHORTEST_CONTEXT, most) <= found <= most:
        raise ConfigurationError(
            f"--context is {found}; this checkpoint was trained for at most {most} tokens, and a bundle needs at "
            f"least {SHORTEST_CONTEXT}."
        )
    return found


def encoder_shape(config: EncoderConfig | TranslatorConfig, context: int, profile: ProfileName = "pi") -> GraphShape:
    """What the manifest will say of the graph."""
    stack = config.stacks[-1]
    weights = sum(matmul.rows * matmul.columns for matmul in linears(config).values())
    return GraphShape(
        sum(s.layers for s in config.stacks),
        stack.attention.heads,
        stack.attention.head_dim,
        config.vocabulary,
        lengths_of(context) if profile == "pi" else (context,),
        prefill=0,
        kv_cache_element_bytes=4 if isinstance(config, TranslatorConfig) else 0,
        weight_bytes=weights,
        rotated=False,
    )


def require_profile(checkpoint: EncoderCheckpoint, profile: str, image: bool = False) -> None:
    """Raise an `ArchitectureError` for a profile that this network has no graph in.

    Args:
        image: whether the C engine is to run it.
    """
    who = f"{checkpoint.name} ({checkpoint.architecture}, task {checkpoint.task})"
    if profile != "pi" and isinstance(checkpoint.config, TranslatorConfig):
        raise ArchitectureError(
            f"{who} has no graph in the profile {profile}: translators run on 64-bit Linux boards. Convert it with "
            "--profile pi."
        )
    if image:
        raise ArchitectureError(
            f"{who} reads a whole text at once, and stonechat's firmware reads token by token. With --profile micro "
            "it becomes a graph that runs in TFLite Micro, in firmware of your own; for stonechat's, train a "
            "classifier with `stonechat train`."
        )


def _counts(config: EncoderConfig | TranslatorConfig, context: int, profile: ProfileName) -> dict[str, GraphCounts]:
    if profile == "micro" and isinstance(config, EncoderConfig):
        return {profile: count_micro_encoder(config, context)}
    return {"pi": count_encoder(config, context)}


def subject_of_encoder(checkpoint: EncoderCheckpoint, context: int | None, profile: ProfileName = "pi") -> Subject:
    """The bundle that a checkpoint would become."""
    found, config, tokenizer = context_of(checkpoint, context, profile), checkpoint.config, checkpoint.tokenizer
    more = sum(map(len, tokenizer.more.values()))
    shape, counts = encoder_shape(config, found, profile), _counts(config, found, profile)
    return Subject(
        checkpoint.name,
        profile,
        found,
        shape,
        counts,
        len(tokenizer.content),
        other_bytes=_MANIFEST_BYTES + more,
        task=checkpoint.task,
    )


def convert_encoder(
    checkpoint: EncoderCheckpoint,
    folder: Path,
    options: EncoderOptions,
    progress: Progress = lambda step, share: None,
) -> Bundle:
    """Convert, and put the bundle at `folder`, which appears whole or not at all.

    Raises:
        ConfigurationError: `folder` exists and is not a bundle, or the context is longer than the checkpoint's.
        CheckpointError: a tensor cannot be read.
    """
    require_profile(checkpoint, options.profile)
    context = context_of(checkpoint, options.context, options.profile)
    folder = Path(os.path.realpath(folder))  # "." has no name to put another beside, and a link stays what it is
    if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise ConfigurationError(f"{folder} exists and is not a bundle; choose another folder with -o, or remove it.")
    with ExitStack() as stack:
        try:
            stack.enter_context(made_folders(folder.parent))
            work = stack.enter_context(work_folder(folder))
        except OSError as error:
            raise ConfigurationError(
                f"{folder} cannot be written ({error.strerror}: {error.filename}); choose another folder with -o."
            ) from None
        tokenizer = checkpoint.tokenizer
        for name, content in {tokenizer.file_name: tokenizer.content, **tokenizer.more}.items():
            (work / name).write_bytes(content)
        counts = _write_graph(work / MODEL, checkpoint, context, options, lambda share: progress("quantizing", share))
        manifest = _manifest(checkpoint, work, context, {options.profile: counts}, options)
        (work / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        if options.profile == "micro":
            progress("checking", 0.0)
            require_clean(work / MODEL)
            manifest = replace(manifest, arena=measured_encoder_arena(Bundle.open(work)))
            (work / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        if not options.fast:
            name, sentences = next(iter(options.heldout.items()), ("held-out texts", None))
            quality = encoder_quality(
                Bundle.open(work), checkpoint, lambda share: progress("measuring", share), sentences, name=name
            )
            (work / MANIFEST).write_text(replace(manifest, quality=quality).to_json(), encoding="utf-8")
        work.chmod(0o755)
        put_in_place(work, folder)
        return Bundle.open(folder)


def _write_graph(
    path: Path,
    checkpoint: EncoderCheckpoint,
    context: int,
    options: EncoderOptions,
    progress: Callable[[float], None],
) -> GraphCounts:
    config, read = checkpoint.config, checkpoint.read
    if options.profile == "micro":
        assert isinstance(config, EncoderConfig)  # `require_profile` refuses the others
        ranges = calibrate_encoder(
            config, kept(read), _calibration_texts(checkpoint, context, options), keep_inputs=not options.fast
        )
        return write_micro_encoder(path, config, read, context, ranges, progress)
    smoothing: Mapping[int, FloatArray] = {}
    if isinstance(config, EncoderConfig) and not options.fast:  # a translator does without
        smoothing = smoothing_factors(config, kept(read), _calibration_texts(checkpoint, context, options))
    write_encoder(path, config, read, context, smoothing, progress)
    return count_encoder(config, context, smoothing)


def _calibration_texts(checkpoint: EncoderCheckpoint, context: int, options: EncoderOptions) -> list[list[int]]:
    texts = options.sentences or sentences_of("calibration", _CALIBRATION_SENTENCES)
    return [list(checkpoint.tokenizer.framed(text))[:context] for text in texts]


def _manifest(
    checkpoint: EncoderCheckpoint,
    work: Path,
    context: int,
    counts: dict[str, GraphCounts],
    options: EncoderOptions,
) -> Manifest:
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    translator = None
    if isinstance(config, TranslatorConfig):
        values = config.vocabulary
        translator = TranslatorInfo(config.start_id, checkpoint.end_ids, checkpoint.banned_ids)
    else:
        values = config.head.labels or config.width
    return Manifest(
        format=FORMAT,
        name=checkpoint.name,
        version=options.version,
        task=checkpoint.task,
        architecture=checkpoint.architecture,
        weight_bits=8,
        profile=options.profile,
        context=context,
        graph=encoder_shape(config, context, options.profile),
        counts=counts,
        tokenizer=TokenizerInfo(tokenizer.file_name, None, (), adds_bos=False, special_tokens={}),
        chat_template=None,
        prefix_tokens=(),
        quality={},
        source={"name": checkpoint.name, "sha256": checkpoint.sha256},
        converter=__version__,
        security_counter=0,
        files={p.name: _entry(p) for p in sorted(work.iterdir()) if not p.name.startswith(".")},
        encoder=EncoderInfo(
            tokenizer.start_ids,
            tokenizer.end_ids,
            checkpoint.pad_id,
            values,
            dict(checkpoint.settings.prompts),
            checkpoint.settings.default_prompt,
        ),
        translator=translator,
        purpose=None if checkpoint.answer is None else dict(options.purpose or _purpose(checkpoint)),
    )


def _purpose(checkpoint: EncoderCheckpoint) -> dict[str, Any]:
    """Of a classifier that others trained: it reads a text as it is."""
    from device_runtime.tasks.inputs import Inputs
    from device_runtime.tasks.purpose import Purpose

    assert checkpoint.answer is not None
    return Purpose(checkpoint.name, Inputs(text=_CHARACTERS), checkpoint.answer, kind="classify").to_json()


def _entry(path: Path) -> FileEntry:
    with open(path, "rb") as stream:
        return FileEntry(hashlib.file_digest(stream, "sha256").hexdigest(), path.stat().st_size)
