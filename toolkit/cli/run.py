"""`stonechat run`: ask a bundle on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.options import add_json, add_runtime, add_sampling, read_schema, sampling
from toolkit.cli.output import print_json, say_unfamiliar

if TYPE_CHECKING:
    from device_runtime.engine.encoder.encoder_model import EncoderModel
    from device_runtime.engine.language_model import LanguageModel

__all__ = ["HELP", "add_arguments", "run"]

HELP = "answer a prompt with a bundle, on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat run`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle folder, or a packed bundle")
    parser.add_argument("prompt", help="what to ask; - reads it from standard input")
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without the chat template")
    parser.add_argument("--schema", metavar="FILE", type=Path, help="hold the answer to this JSON schema")
    add_sampling(parser)
    add_runtime(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Stream an answer to stdout."""
    import sys
    import time

    from device_runtime.engine.text.segments import Markup
    from device_runtime.errors import ConfigurationError
    from toolkit.packed import as_folder

    if args.raw and args.system is not None:
        raise ConfigurationError("--system is a chat message and --raw leaves the chat template out; use one of them.")
    schema = read_schema(args.schema) if args.schema else None
    text = sys.stdin.read() if args.prompt == "-" else args.prompt
    system = [{"role": "system", "content": args.system}] if args.system else []
    started_s = time.perf_counter()
    with as_folder(args.bundle) as folder, _opened(folder, args) as model:
        loaded_s = time.perf_counter()
        raw = args.raw or model.manifest.chat_template is None
        plain = Markup(text) if args.raw else text  # --raw is for a template that was written by hand
        prompt = plain if raw else [*system, {"role": "user", "content": text}]
        generation = model.generate(
            prompt, max_new=args.max_new, sampling=sampling(args), stop=args.stop, schema=schema
        )
        for piece in generation:
            if not args.json:
                print(piece, end="", flush=True)
        if not args.json:
            print()
            say_unfamiliar(generation.result.unfamiliar)
    if args.json:
        from dataclasses import asdict

        from device_runtime.machine.machine import peak_rss_mb

        result = asdict(generation.result)
        result["tokens_per_pass"] = getattr(generation.result, "tokens_per_pass", None)
        result["load_ms"] = (loaded_s - started_s) * 1e3
        result["peak_rss_mb"] = peak_rss_mb()
        print_json({k: round(v, 2) if isinstance(v, float) else v for k, v in result.items()})
    return 0


def _opened(folder: Path, args: argparse.Namespace) -> LanguageModel | EncoderModel:
    """What answers a prompt with words: a model that writes, or one that chooses the values of an answer."""
    from device_runtime.engine.opening import open_language_model
    from device_runtime.update.active import open_bundle

    if open_bundle(folder).manifest.task == "classify":
        from device_runtime.engine.encoder.encoder_model import EncoderModel

        return EncoderModel.open(folder, backend=args.backend, threads=args.threads)
    return open_language_model(folder, backend=args.backend, threads=args.threads)
