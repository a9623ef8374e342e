"""Tokens that end an answer, whichever of a checkpoint's several places says so.

Chat models often name one `eos_token` and end their turns with another; an answer has to stop at both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["END_OF_TURN", "ending_ids"]

# Special tokens with these texts end a turn or a document in every model that has them (llama.cpp's list).
END_OF_TURN = frozenset(
    {
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"),
        *("<end_of_turn>", "<end_of_utterance>", "<|end_of_turn|>", "<|return|>", "<EOT>", "_<EOT>"),
        *("<\uff5cend\u2581of\u2581sentence\uff5c>",),  # DeepSeek: full-width bars
    }
)


def ending_ids(declared: Iterable[int | None], special: Mapping[str, int]) -> tuple[int, ...]:
    """Declared ids first, in their order, then the special tokens (text -> id) that end a turn."""
    by_text = sorted(number for text, number in special.items() if text in END_OF_TURN)
    return tuple(dict.fromkeys([*(number for number in declared if number is not None), *by_text]))
