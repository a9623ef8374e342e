"""`stonechat convert`: a checkpoint in, a bundle out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from device_runtime.records.text_file import read_text
from toolkit.cli.options import add_json, read_schemas, require_extra, whole_number
from toolkit.cli.output import rows, say, show
from toolkit.quality_text import quality_rows, quality_warning

__all__ = ["HELP", "add_arguments", "run"]

if TYPE_CHECKING:
    from boards import Board
    from converters.encoders.checkpoint import EncoderCheckpoint

HELP = "convert a GGUF file or a Hugging Face folder to a bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat convert`."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a .gguf file, or a Hugging Face folder")
    parser.add_argument(
        "--profile", choices=["pi", "micro"], help="pi: 64-bit Linux boards; micro: microcontrollers, 32-bit boards"
    )
    parser.add_argument(
        "--weights",
        choices=["int8", "int4"],
        help="of the layers; int4 needs less memory and decodes faster; pi takes prompts in more slowly with it, micro "
        "then runs in the C engine only (default: int8, or what fits the board)",
    )
    parser.add_argument("--board", metavar="ID", help="profile and longest context that fit this board")
    parser.add_argument(
        "--context", metavar="N", type=whole_number(1), help="positions (default: 1024 for pi, 256 for micro)"
    )
    parser.add_argument(
        "--lora", metavar="ADAPTER", type=Path, help="merge this adapter first: a folder that PEFT saved"
    )
    parser.add_argument("--no-thinking", action="store_true", help="switch the chat template's thinking off, for good")
    parser.add_argument("--calibrate", metavar="FILE", type=Path, help="a text like those that the model will see")
    baked = parser.add_mutually_exclusive_group()
    baked.add_argument("--prefix", metavar="TEXT", help="bake this system message into the bundle: it costs no time")
    baked.add_argument("--prefix-file", metavar="FILE", type=Path, help="the same, from a file")
    parser.add_argument(
        "--schema",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="a JSON schema that a microcontroller holds answers to; may be given again",
    )
    parser.add_argument(
        "--task", metavar="TASK", type=Path, help="the same, of a task.yaml's answer; a folder with one will do"
    )
    parser.add_argument(
        "--fast", action="store_true", help="skip error compensation, the search for grids and the report"
    )
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="where the bundle goes")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Convert."""
    import time
    from dataclasses import asdict, replace

    from device_runtime.errors import ConfigurationError
    from toolkit.progress import ProgressBar

    profile, context, board = args.profile, args.context, None
    weights: Literal["int8", "int4"] = args.weights or "int8"
    if args.board is not None:
        from boards import load_board

        board = load_board(args.board)
    if profile is None and board is None:
        raise ConfigurationError("Say which boards the bundle is for: --profile pi, --profile micro, or --board ID.")
    try:
        from converters.checkpoints import open_checkpoint
        from converters.convert import Options, convert
        from converters.plan import plan_for
    except ImportError as error:
        raise require_extra("convert", error) from None

    if args.checkpoint.is_dir():
        from converters.encoders.checkpoint import open_encoder

        if (encoder := open_encoder(args.checkpoint)) is not None:
            return _convert_encoder(args, encoder, board)
    text = read_text(args.calibrate) if args.calibrate else None
    instruction = read_text(args.prefix_file).strip() if args.prefix_file else args.prefix
    started_s = time.monotonic()
    checkpoint = open_checkpoint(args.checkpoint)
    if args.lora is not None:
        from converters.checkpoints.lora import merge_adapter

        checkpoint = merge_adapter(checkpoint, args.lora)
    if args.no_thinking:
        from converters.checkpoints.chat_template import without_thinking

        template = without_thinking(checkpoint.tokenizer.chat_template, checkpoint.name)
        checkpoint = replace(checkpoint, tokenizer=replace(checkpoint.tokenizer, chat_template=template))
    for note in checkpoint.tokenizer.notes:
        say(f"stonechat: {checkpoint.name}: {note}")
    if board is not None:
        profile, context, weights = plan_for(checkpoint, board, args.profile, args.context, args.weights)
        if profile != (args.profile or board.profile):
            what = f"the profile {board.profile} takes too much memory for {board.id}; converting for {profile}"
            say(f"stonechat: {what}")
        if weights != (args.weights or "int8"):
            say(f"stonechat: int8 weights take too much memory for {board.id}; converting to {weights}")
    needs_image = board is not None and board.kind == "mcu"
    schemas = read_schemas(args.schema, args.task)
    if schemas and profile != "micro":
        raise ConfigurationError(
            "--schema and --task are for microcontrollers, whose image holds the schemas; a bundle of profile pi takes "
            "any schema when it is asked."
        )
    options = Options(
        profile,
        context,
        text,
        instruction,
        fast=args.fast,
        weights=weights,
        needs_image=needs_image or bool(schemas),
        schemas=schemas,
    )
    with ProgressBar() as bar:
        bundle = convert(checkpoint, args.output, options, bar.update)
    manifest = bundle.manifest
    if manifest.backends:
        say(
            f"stonechat: {weights} weights run in stonechat's own C engine only: in firmware, and on a computer with "
            f"--backend {manifest.backends[0]}; not in TFLite Micro or LiteRT"
        )
    elif profile == "micro" and manifest.arena is None:
        say(
            "stonechat: warning: the graph was not run in TFLite Micro, whose interpreter is not installed here "
            "(`pip install tflite-micro`; x86-64 only); it was only held against TFLite Micro's rules"
        )
    size_bytes = sum(entry.size_bytes for entry in manifest.files.values())
    if warning := quality_warning(manifest.quality):
        say(f"stonechat: warning: {warning}")
    if board is not None:
        from boards.fit import Subject, require_fit

        require_fit(board, Subject.of_manifest(manifest))  # as it was measured now, no longer as it was computed
    result = {
        "bundle": str(args.output),
        "profile": profile,
        "weights": weights,
        "context": manifest.context,
        "size_bytes": size_bytes,
        "quality": manifest.quality,
        "arena": asdict(manifest.arena) if manifest.arena else None,
        "seconds": round(time.monotonic() - started_s, 1),
    }
    form = f"profile {profile}, {weights}, context {manifest.context}, {size_bytes / 1e6:.1f} MB"
    first = f"{args.output}: {manifest.name}, {form}"
    return show(args, result, [first, *rows(quality_rows(manifest.quality))])


def _convert_encoder(args: argparse.Namespace, checkpoint: EncoderCheckpoint, board: Board | None) -> int:
    """A sentence encoder, a classifier or a translator."""
    import time

    from converters.encoders.convert import EncoderOptions, convert_encoder, require_profile, subject_of_encoder
    from device_runtime.errors import ConfigurationError
    from toolkit.progress import ProgressBar

    given = {
        "--lora": args.lora,
        "--calibrate": args.calibrate,
        "--prefix": args.prefix,
        "--prefix-file": args.prefix_file,
        "--schema": args.schema or None,
        "--task": args.task,
        "--no-thinking": args.no_thinking or None,
        "--weights int4": "int4" if args.weights == "int4" else None,
    }
    if useless := [flag for flag, value in given.items() if value is not None]:
        raise ConfigurationError(
            f"{useless[0]} is for models that write text; {checkpoint.name} has the task {checkpoint.task}. "
            "Leave it out."
        )
    profile = args.profile or (board.profile if board else "pi")
    require_profile(checkpoint, profile, image=board is not None and board.kind == "mcu")
    if board is not None:
        from boards.fit import Subject, require_fit

        require_fit(board, subject_of_encoder(checkpoint, args.context, profile))
    for note in checkpoint.notes:
        say(f"stonechat: {checkpoint.name}: {note}")
    started_s = time.monotonic()
    with ProgressBar() as bar:
        options = EncoderOptions(profile, args.context, fast=args.fast)
        bundle = convert_encoder(checkpoint, args.output, options, bar.update)
    manifest = bundle.manifest
    if board is not None:
        require_fit(board, Subject.of_manifest(manifest))
    size_bytes = sum(entry.size_bytes for entry in manifest.files.values())
    result = {
        "bundle": str(args.output), "task": manifest.task, "profile": manifest.profile, "context": manifest.context,
        "size_bytes": size_bytes, "quality": manifest.quality, "seconds": round(time.monotonic() - started_s, 1),
    }  # fmt: skip
    what = f"task {manifest.task}, texts of up to {manifest.context} tokens, {size_bytes / 1e6:.1f} MB"
    return show(args, result, [f"{args.output}: {manifest.name}, {what}", *rows(quality_rows(manifest.quality))])
