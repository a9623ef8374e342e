"""`stonechat eval`: how close a bundle is to the network it was made of, or how well it does its task."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.records.printable import counted
from device_runtime.records.text_file import read_text
from toolkit.cli.options import add_json, require_extra, whole_number
from toolkit.cli.output import paragraph, show, table

if TYPE_CHECKING:
    from converters.checkpoints import Checkpoint
    from converters.measure.quality import Comparison, LayerError, Positions
    from device_runtime.bundle.manifest import Manifest

__all__ = ["HELP", "add_arguments", "run"]

HELP = "measure a bundle's perplexity and how far it is from the float network, or how well it does a task"
_MANY = 100  # tokens, fewer of which say little


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `stonechat eval`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument(
        "--text",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="a text, or conversations as .json (repeatable; default: three texts that come with stonechat)",
    )
    parser.add_argument(
        "--task", metavar="TASK", type=Path, help="ask it what this task.yaml asks, and score the answers"
    )
    parser.add_argument(
        "--examples", metavar="FILE", type=Path, help="of the task, .jsonl or .csv (default: those the task file names)"
    )
    parser.add_argument(
        "--shown", metavar="N", type=whole_number(0), default=8, help="examples that a general model sees (default: 8)"
    )
    parser.add_argument("--against", metavar="CHECKPOINT", type=Path, help="compare with this, in float")
    parser.add_argument("--lora", metavar="ADAPTER", type=Path, help="of --against, merged as `convert --lora` did")
    parser.add_argument("--window", metavar="N", type=whole_number(2), help="tokens read at a time (default: 512)")
    parser.add_argument("--tokens", metavar="N", type=whole_number(2), help="at most N tokens of each text")
    parser.add_argument(
        "--sentences", metavar="N", type=whole_number(1), help="of an encoder or a translator: how many (default: 200)"
    )
    parser.add_argument(
        "--backend", metavar="NAME", help="compiled, litert, tflite-runtime, native, tflm (default: by profile)"
    )
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="draw the error of each layer (with --against)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.task is not None or args.examples is not None:
        from toolkit.cli.eval_task import run_task

        return run_task(args)
    from device_runtime.errors import ConfigurationError
    from device_runtime.update.active import open_bundle

    bundle = open_bundle(args.bundle)
    manifest = bundle.manifest
    if manifest.task != "generate":
        from toolkit.cli.eval_encoder import run_encoder

        return run_encoder(args, bundle)
    if args.plot is not None:
        if args.against is None:
            raise ConfigurationError("--plot shows the distance from the float network; name that with --against.")
        _check_picture(args.plot)
    try:
        from converters.checkpoints import open_checkpoint
        from converters.measure.quality import by_kind, can_trace_layers, compare_windows, layer_errors, worst_layers
        from converters.texts.windows import text_windows
    except ImportError as error:
        raise require_extra("convert", error) from None
    import numpy as np

    from toolkit.progress import ProgressBar

    checkpoint = None
    if args.against is not None:
        checkpoint = open_checkpoint(args.against)
        if args.lora is not None:
            from converters.checkpoints.lora import merge_adapter

            checkpoint = merge_adapter(checkpoint, args.lora)
        _check_pair(manifest, checkpoint)
    room = manifest.context - len(manifest.prefix_tokens)
    if args.window is not None and args.window > room:
        raise ConfigurationError(
            f"--window is {args.window}, but the bundle has room for {room} tokens "
            f"(context {manifest.context}, prefix {len(manifest.prefix_tokens)})."
        )
    texts = {name: t[: args.tokens] for name, t in _texts(bundle.path, manifest, args.text).items()}
    length = min(args.window or 512, room)
    for name, tokens in texts.items():
        if len(tokens) < length and (args.window or len(tokens) < 2):
            raise ConfigurationError(
                f"{name} has {counted(len(tokens), 'token')}; a window needs {max(2, args.window or 2)}."
            )
    length = min(length, *map(len, texts.values()))
    kinds = {name: text_windows(tokens, length) for name, tokens in texts.items()}
    errors: list[LayerError] = []
    with ProgressBar() as bar:
        begun = itertools.count()  # texts

        def compare(windows: Any) -> list[Positions]:
            before = next(begun)
            return compare_windows(
                bundle, windows, checkpoint, backend=args.backend,
                progress=lambda share: bar.update("reading", (before + share) / len(kinds)),
            )  # fmt: skip

        results, total = by_kind(kinds, compare)
        if checkpoint is not None and can_trace_layers(bundle):
            bar.update("layers", 0.0)
            errors = layer_errors(bundle, checkpoint, np.concatenate([windows[:1] for windows in kinds.values()]))
            bar.update("layers", 1.0)
    if args.plot is not None and errors:
        from toolkit.plot import plot_layer_errors

        plot_layer_errors(args.plot, f"{manifest.name}, profile {manifest.profile}", errors)
    lines = [*_table({**results, "all": total} if len(results) > 1 else results)]
    if errors:
        lines += paragraph(
            f"signal to noise after the last layer: {errors[-1].snr_db:.1f} dB; most is lost in "
            + ", ".join(f"{e.name} ({e.lost_db:.1f} dB, to {e.snr_db:.1f})" for e in worst_layers(errors))
        )
    if total.tokens < _MANY:
        lines.append(f"only {counted(total.tokens, 'token')}: give a text of some thousand")
    return show(
        args,
        {
            **total.to_json(),
            "window": length,
            "kinds": {name: result.to_json() for name, result in results.items()},
            "layers": [{"name": e.name, "snr_db": round(e.snr_db, 2), "lost_db": round(e.lost_db, 2)} for e in errors],
        },
        lines,
    )


def _table(results: dict[str, Comparison]) -> Iterator[str]:
    header: tuple[str, ...] = ("", "tokens", "perplexity")
    if next(iter(results.values())).ratio is not None:
        header += ("float", "ratio ± s.e.", "KL, nats", "same top-1")
    lines = []
    for name, c in results.items():
        line: tuple[str, ...] = (name, str(c.tokens), f"{c.graph_perplexity:.3f}")
        if c.ratio is not None:
            line += (f"{c.float_perplexity:.3f}", f"{c.ratio:.4f} ± {c.ratio_error:.4f}")
            line += (f"{c.kl_divergence:.5f}", f"{c.top1_agreement:.1%}")
        lines.append(line)
    return table(lines, header, right=range(1, len(header)))


def _check_pair(manifest: Manifest, checkpoint: Checkpoint) -> None:
    """A bundle can be compared only with the checkpoint it was made of."""
    from device_runtime.errors import ConfigurationError

    config, graph = checkpoint.config, manifest.graph
    for what, ours, theirs in (
        ("layers", graph.layers, config.layers),
        ("vocabulary", graph.vocabulary, config.vocabulary),
        ("weights with sha256", manifest.source["sha256"], checkpoint.sha256),
    ):
        if ours != theirs:
            raise ConfigurationError(
                f"The bundle was made of another checkpoint: it has {what} {ours}, {checkpoint.name} has {theirs}. "
                f"Give the one that it was made of ({manifest.source['name']}), or convert this one."
            )


def _texts(bundle: Path, manifest: Manifest, files: list[Path]) -> dict[str, list[int]]:
    """Tokens of each text, by name."""
    from converters.texts import chat_renderer, read_conversations, text_kinds
    from device_runtime.engine.tokenizer import read_tokenizer
    from device_runtime.errors import ConfigurationError

    render = chat_renderer(manifest.chat_template, manifest.tokenizer.special_tokens)
    texts = {} if files else text_kinds("heldout", render)
    for file in files:
        if file.name in texts:
            raise ConfigurationError(f"Two texts are named {file.name}; rename one of them.")
        text = read_text(file)
        if file.suffix.lower() == ".json":
            text = "".join(map(render, read_conversations(str(file), text)))
        texts[file.name] = text
    info = manifest.tokenizer
    tokenizer = read_tokenizer(bundle / info.file, spaced=info.spaced, own_space=info.own_space)
    return {name: tokenizer.encode(text) for name, text in texts.items()}


def _check_picture(path: Path) -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise require_extra("plot", error) from None
    from toolkit.plot import require_writable

    require_writable(path)
