"""`stonechat eval` of encoders, classifiers and translators: the graph against the float network."""

from __future__ import annotations

import argparse

from device_runtime.bundle.folder import Bundle
from device_runtime.errors import ConfigurationError
from device_runtime.records.text_file import lines_in, read_text
from toolkit.cli.options import require_extra
from toolkit.cli.output import rows, show
from toolkit.quality_text import quality_rows

__all__ = ["run_encoder"]

_SENTENCES = 200


def run_encoder(args: argparse.Namespace, bundle: Bundle) -> int:
    """Measure and print.

    Raises:
        ConfigurationError: the checkpoint is not named, or is not the one that the bundle was made of.
    """
    if args.against is None:
        raise ConfigurationError(
            f"{bundle.manifest.name} has the task {bundle.manifest.task}, which is measured against the float network; "
            "name that with --against CHECKPOINT."
        )
    try:
        from converters.encoders.checkpoint import open_encoder
        from converters.encoders.quality import encoder_quality, sentences_of
    except ImportError as error:
        raise require_extra("convert", error) from None
    from toolkit.progress import ProgressBar

    checkpoint = open_encoder(args.against) if args.against.is_dir() else None
    if checkpoint is None or checkpoint.sha256 != bundle.manifest.source["sha256"]:
        raise ConfigurationError(
            f"{args.against} is not the checkpoint that {bundle.path} was made of "
            f"({bundle.manifest.source['name']}, sha256 {bundle.manifest.source['sha256'][:16]}…)."
        )
    if args.backend is not None and bundle.manifest.task == "translate":
        raise ConfigurationError("--backend is for bundles that write text and for sentence encoders; leave it out.")
    count = args.sentences or _SENTENCES
    own = [line for file in args.text for line in lines_in(read_text(file)) if line.strip()]
    texts = own[:count] or sentences_of("heldout", count)
    with ProgressBar() as bar:
        figures = encoder_quality(
            bundle, checkpoint, lambda share: bar.update("reading", share), texts, backend=args.backend
        )
    figures["text"] = "your texts" if own else figures["text"]
    return show(args, figures, rows(quality_rows(figures)))
