"""Tokens that end an answer, whichever of a checkpoint's several places says so.

Chat models often name one `eos_token` and end their turns with another; an answer has to stop at both. What a token's
type is does not matter: some GGUF files type `<|im_end|>` as user-defined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from device_runtime.engine.chat import render_chat
from device_runtime.errors import StonechatError

__all__ = ["END_OF_TURN", "ending_ids", "template_ending_ids"]

# Tokens with these texts end a turn or a document in every model that has them (llama.cpp's list).
END_OF_TURN = frozenset(
    {
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"),
        *("<end_of_turn>", "<end_of_utterance>", "<|end_of_turn|>", "<|return|>", "<EOT>", "_<EOT>"),
        *("<\uff5cend\u2581of\u2581sentence\uff5c>",),  # DeepSeek: full-width bars
    }
)


_ANSWER = "Qx7 answer"  # of an assistant, to be found again in what a template makes of it


def ending_ids(declared: Iterable[int | None], tokens: Mapping[str, int]) -> tuple[int, ...]:
    """Declared ids first, in their order, then the tokens (text -> id) that end a turn by their text."""
    by_text = sorted(tokens[text] for text in END_OF_TURN if text in tokens)
    return tuple(dict.fromkeys([*(number for number in declared if number is not None), *by_text]))


def template_ending_ids(
    template: str | None, special_tokens: Mapping[str, str], tokens: Mapping[str, int]
) -> list[int]:
    """The tokens with which a chat template ends what the assistant says.

    Args:
        tokens: text -> id of the added, control and user-defined tokens.
    """
    if template is None:
        return []
    asked, answered = {"role": "user", "content": "x"}, {"role": "assistant", "content": _ANSWER}
    found = []
    for conversation in ([asked, answered], [asked, answered, asked]):
        try:
            text = render_chat(template, conversation, special_tokens, answer=False)
        except StonechatError:
            continue
        rest = text.partition(_ANSWER)[2].lstrip()
        named = [name for name in tokens if name and rest.startswith(name)]
        if named:
            found.append(tokens[max(named, key=len)])
    return list(dict.fromkeys(found))
