"""What a checkpoint can become on a board, computed before any work is done."""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

from boards import Board
from boards.fit import Subject, advised_context, require_fit
from converters.checkpoints import Checkpoint
from converters.convert import graph_counts, graph_shape
from converters.profiles import PROFILES
from device_runtime.errors import DoesNotFitError
from device_runtime.machine.memory import PREFILL_TOKENS

__all__ = ["context_for", "plan_for", "subject_of"]

_MANIFEST_BYTES = 8192  # with a chat template and the report


def subject_of(checkpoint: Checkpoint, profile: Literal["pi", "micro"], context: int) -> Subject:
    """The bundle that a checkpoint would become."""
    config = checkpoint.config
    prefix = (
        2 * 4 * sum(block.attention.kv_width for block in config.blocks) + 4 * config.vocabulary
    )  # one position, and its logits
    return Subject(
        checkpoint.name,
        profile,
        context,
        graph_shape(config, PROFILES[profile], context),
        graph_counts(config, max(context, PREFILL_TOKENS)),
        len(checkpoint.tokenizer.content),
        other_bytes=_MANIFEST_BYTES + prefix,
    )


def plan_for(
    checkpoint: Checkpoint, board: Board, profile: Literal["pi", "micro"] | None, context: int | None
) -> tuple[Literal["pi", "micro"], int]:
    """Profile and context to convert with: those that were asked for, else the board's profile and what fits.

    Where `pi` does not fit, or only with a context too short for a conversation, `micro` takes less memory.

    Raises:
        DoesNotFitError: none fits.
    """
    wanted = profile or board.profile
    if profile is None and wanted == "pi":
        useful = min(PROFILES["micro"].default_context, board.max_context, checkpoint.config.max_context)
        with suppress(DoesNotFitError):
            found = context_for(checkpoint, board, "pi", context)
            if context is not None or found >= useful:
                return "pi", found
        with suppress(DoesNotFitError):
            return "micro", context_for(checkpoint, board, "micro", context)
    return wanted, context_for(checkpoint, board, wanted, context)


def context_for(checkpoint: Checkpoint, board: Board, profile: Literal["pi", "micro"], context: int | None) -> int:
    """The context to convert with: the one that was asked for, else the longest that is sure to fit.

    Raises:
        DoesNotFitError: not with that context, or with none.
    """
    most = min(board.max_context, checkpoint.config.max_context)
    wanted = context or most
    subject = subject_of(checkpoint, profile, wanted)
    if context is None and (longest := min(advised_context(board, subject), most)):
        wanted = longest
        if PROFILES["micro"].default_context < wanted < most:
            wanted -= wanted % 64
        subject = subject_of(checkpoint, profile, wanted)
    require_fit(board, subject)
    return wanted
