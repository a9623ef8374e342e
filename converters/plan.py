"""What a checkpoint can become on a board, told before any work is done."""

from __future__ import annotations

from typing import Literal

from boards import Board
from boards.fit import Subject, fit, require_fit
from converters.checkpoints import Checkpoint
from converters.convert import DEFAULT_CONTEXT, graph_shape

__all__ = ["context_for", "subject_of"]

_MANIFEST_BYTES = 8192  # with a chat template and the report


def subject_of(checkpoint: Checkpoint, profile: Literal["pi", "micro"], context: int) -> Subject:
    """The bundle that a checkpoint would become."""
    config = checkpoint.config
    prefix = 2 * 4 * config.layers * config.kv_width + 4 * config.vocabulary  # one position, and its logits
    return Subject(
        checkpoint.name,
        profile,
        context,
        graph_shape(config, profile, context),
        len(checkpoint.tokenizer.content),
        other_bytes=_MANIFEST_BYTES + prefix,
    )


def context_for(checkpoint: Checkpoint, board: Board, profile: Literal["pi", "micro"], context: int | None) -> int:
    """The context to convert with: the one that was asked for, else the longest that fits.

    Raises:
        DoesNotFitError: not with that context, or with none.
    """
    most = min(board.max_context, checkpoint.config.max_context)
    wanted = min(context or most, checkpoint.config.max_context)
    subject = subject_of(checkpoint, profile, wanted)
    result = fit(board, subject, remedies=False)
    if context is None and not result.fits and result.largest_context:
        wanted = min(result.largest_context, most)
        if wanted > DEFAULT_CONTEXT["micro"]:
            wanted -= wanted % 64
        subject = subject_of(checkpoint, profile, wanted)
    require_fit(board, subject)
    return wanted
