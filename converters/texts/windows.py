"""Windows of tokens: what calibration reads, and what quality is measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from converters.checkpoints import TokenizerFile
from converters.texts import chat_renderer, text_kinds
from device_runtime.engine.tokenizer import Tokenizer
from device_runtime.errors import ConfigurationError
from device_runtime.records.printable import counted

__all__ = ["calibration_windows", "heldout_windows", "text_windows"]

_FEWEST_TOKENS = 32  # of a calibration text


def text_windows(tokens: Sequence[int], length: int, count: int | None = None) -> npt.NDArray[np.int64]:
    """Cut tokens into (windows, length); what is left over is dropped. A text shorter than `length` is one window."""
    length = min(length, len(tokens))
    windows = len(tokens) // max(length, 1)
    windows = windows if count is None else min(count, windows)
    return np.array(tokens[: windows * length], np.int64).reshape(windows, length)


def heldout_windows(
    tokenizer: Tokenizer, chat_template: str | None, special_tokens: Mapping[str, str], length: int, count: int
) -> dict[str, npt.NDArray[np.int64]]:
    """Windows of the texts that reports are measured on, by kind; calibration never sees them."""
    texts = text_kinds("heldout", chat_renderer(chat_template, special_tokens))
    return {kind: text_windows(tokenizer.encode(text), length, count) for kind, text in texts.items()}


def calibration_windows(
    tokenizer: Tokenizer, file: TokenizerFile, text: str | None, length: int, total: int
) -> npt.NDArray[np.int64]:
    """(windows, length): the kinds of text in turn, so that any share of them holds all.

    Args:
        text: to calibrate on; None takes the texts that come with stonechat.
        length: tokens of a window, at most.
        total: tokens of all windows, at most.

    Raises:
        ConfigurationError: the text is too short.
    """
    texts = {"calibration": text}
    if text is None:
        texts = dict(text_kinds("calibration", chat_renderer(file.chat_template, file.special_tokens)))
    tokens = {kind: tokenizer.encode(content or "") for kind, content in texts.items()}
    if (found := sum(map(len, tokens.values()))) < _FEWEST_TOKENS:
        raise ConfigurationError(
            f"The calibration text has {counted(found, 'token')}; give at least {_FEWEST_TOKENS}, better 10,000."
        )
    length = min(length, *map(len, tokens.values()))
    windows = [text_windows(t, min(length, total)) for t in tokens.values()]
    in_turn = [w[i] for i in range(max(map(len, windows))) for w in windows if i < len(w)]
    return np.stack(in_turn[: max(1, total // length)])
