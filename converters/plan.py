"""What a checkpoint can become on a board, computed before any work is done."""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

from boards import Board
from boards.fit import Subject, advised_context, require_fit
from converters.checkpoints import Checkpoint
from converters.convert import graph_counts, graph_shape
from converters.emit.c.byte_level_bpe import may_have_table
from converters.profiles import PROFILES, WeightType, profile_of
from device_runtime.errors import DoesNotFitError
from device_runtime.machine.memory import PREFILL_TOKENS

__all__ = ["context_for", "plan_for", "subject_of"]

_MANIFEST_BYTES = 8192  # with a chat template and the report


def subject_of(
    checkpoint: Checkpoint, profile: Literal["pi", "micro"], context: int, weights: WeightType = "int8"
) -> Subject:
    """The bundle that a checkpoint would become."""
    config = checkpoint.config
    prefix = (
        2 * 4 * sum(block.attention.kv_width for block in config.blocks) + 4 * config.vocabulary
    )  # one position, and its logits
    content = checkpoint.tokenizer.content
    table = checkpoint.tokenizer.file_name == "tokenizer.json" and may_have_table(content)
    return Subject(
        checkpoint.name,
        profile,
        context,
        graph_shape(config, profile_of(profile, weights), context),
        graph_counts(config, max(context, PREFILL_TOKENS), profile_of(profile, weights)),
        len(content),
        other_bytes=_MANIFEST_BYTES + prefix + (len(content) // 2 if table else 0),
        weight_bits=profile_of(profile, weights).weight_bits,
        tokenizer_table=table,
    )


def plan_for(
    checkpoint: Checkpoint,
    board: Board,
    profile: Literal["pi", "micro"] | None,
    context: int | None,
    weights: WeightType | None = None,
) -> tuple[Literal["pi", "micro"], int, WeightType]:
    """Profile, context and weights to convert with: those that were asked for, else the board's profile and what fits.

    Where `pi` does not fit, or only with a context too short for a conversation, int4 weights take less memory, and
    `micro` takes less too. On a microcontroller int4 weights take less flash.

    Raises:
        DoesNotFitError: none fits.
    """
    wanted = profile or board.profile
    if wanted == "pi":
        useful = min(PROFILES["micro"].default_context, board.max_context, checkpoint.config.max_context)
        types: list[WeightType] = ["int8", "int4"] if weights is None else [weights]
        for tried in types:
            with suppress(DoesNotFitError):
                found = context_for(checkpoint, board, "pi", context, tried)
                if context is not None or found >= useful:
                    return "pi", found, tried
        if profile is None and weights is None:
            with suppress(DoesNotFitError):
                return "micro", context_for(checkpoint, board, "micro", context), "int8"
        for tried in types:  # a short context is better than none
            with suppress(DoesNotFitError):
                return "pi", context_for(checkpoint, board, "pi", context, tried), tried
    if wanted == "micro" and board.kind == "mcu" and weights is None:  # where the C engine runs it, which takes int4
        both: tuple[WeightType, ...] = ("int8", "int4")
        for tried in both:
            with suppress(DoesNotFitError):
                return wanted, context_for(checkpoint, board, wanted, context, tried), tried
    chosen = weights or "int8"
    return wanted, context_for(checkpoint, board, wanted, context, chosen), chosen


def context_for(
    checkpoint: Checkpoint,
    board: Board,
    profile: Literal["pi", "micro"],
    context: int | None,
    weights: WeightType = "int8",
) -> int:
    """The context to convert with: the one that was asked for, else the longest that is sure to fit.

    Raises:
        DoesNotFitError: not with that context, or with none.
    """
    most = min(board.max_context, checkpoint.config.max_context)
    wanted = context or most
    subject = subject_of(checkpoint, profile, wanted, weights)
    if context is None and (longest := min(advised_context(board, subject), most)):
        wanted = longest
        if PROFILES["micro"].default_context < wanted < most:
            wanted -= wanted % 64
        subject = subject_of(checkpoint, profile, wanted, weights)
    require_fit(board, subject)
    return wanted
