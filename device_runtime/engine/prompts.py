"""Prompts into the tokens that a bundle's graph takes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import TABLE, Manifest
from device_runtime.engine.chat import Message, render_segments
from device_runtime.engine.text.segments import Markup, Segment
from device_runtime.engine.text.table_tokenizer import TableTokenizer
from device_runtime.errors import BundleError, ConfigurationError, ContextOverflowError

if TYPE_CHECKING:
    from device_runtime.engine.tokenizer import Tokenizer

__all__ = ["PromptEncoder", "tokenizer_file", "tokenizer_of"]


def tokenizer_of(bundle: Bundle) -> Tokenizer:
    """The tokenizer of a bundle.

    Raises:
        BundleError: it cannot be read.
    """
    if TABLE in bundle.manifest.files:
        return TableTokenizer(bundle.path / TABLE, lambda: _by_library(bundle))
    return _by_library(bundle)


def tokenizer_file(bundle: Bundle) -> Path:
    """The bundle's tokenizer.json or tokenizer.model, which libraries can read.

    Raises:
        BundleError: they cannot.
    """
    from device_runtime.engine.text.tokenizer_trial import try_tokenizer

    path = bundle.path / bundle.manifest.tokenizer.file
    record = bundle.cache_path / "tokenizer-tried" if bundle.cache_path else None
    if wrong := try_tokenizer(path, record):
        raise BundleError(
            f"{path} cannot be used as a tokenizer: {wrong}. Convert the checkpoint again, or another export of the "
            "model."
        )
    return path


def _by_library(bundle: Bundle) -> Tokenizer:
    from device_runtime.engine.tokenizer import read_tokenizer

    info, template = bundle.manifest.tokenizer, bundle.manifest.chat_template
    path = tokenizer_file(bundle)
    return read_tokenizer(path, template, info.eos_ids, spaced=info.spaced, own_space=info.own_space)


class PromptEncoder:
    """The chat template, the tokenizer and the prefix of one bundle."""

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer) -> None:
        self.manifest, self._tokenizer = manifest, tokenizer
        self._prefix = list(manifest.prefix_tokens)

    def encode(self, prompt: str | Sequence[Message]) -> list[int]:
        """The tokens of a prompt, the prefix included.

        Where the bundle has an instruction, messages get it as their system message, and plain text continues it.

        Raises:
            ConfigurationError: the prompt is not text, or has another system message than the bundle's instruction.
        """
        info, instruction = self.manifest.tokenizer, self.manifest.instruction
        plain = isinstance(prompt, str)
        if isinstance(prompt, str):
            segments = [Segment(str(prompt), isinstance(prompt, Markup))]
        else:
            messages = prompt if instruction is None else _with_instruction(prompt, instruction)
            names, special = self._tokenizer.names, self._tokenizer.special
            segments = render_segments(self.manifest.chat_template, messages, info.special_tokens, names, special)
        text = "".join(segment.text for segment in segments)
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair in JSON, or bytes in an argument
            raise ConfigurationError(
                f"The prompt is not text: character {error.start} is {text[error.start]!r}; give it in UTF-8."
            ) from None
        tokens = self._tokenizer.encode(segments)
        if tokens[: len(self._prefix)] == self._prefix:
            return tokens
        if instruction is not None:
            if not plain:
                raise ConfigurationError(
                    "The first characters of this message run into the bundle's instruction and change its tokens; "
                    "begin the message with a letter."
                )
            return self._prefix + tokens  # which begins with BOS if the model wants one
        if plain and info.adds_bos and info.bos_id is not None and tokens[:1] != [info.bos_id]:
            tokens = [info.bos_id, *tokens]
        if tokens[: len(self._prefix)] != self._prefix:
            tokens = self._prefix + tokens
        return tokens

    def plan(
        self, prompt: str | Sequence[Message], max_new: int | None = None, context: int | None = None
    ) -> tuple[list[int], int]:
        """The tokens of a prompt, and how many the answer may have.

        Args:
            max_new: the limit that was asked for; None means until the context is full.
            context: positions, where they are fewer than the bundle's.

        Raises:
            ConfigurationError: the prompt is empty or no text.
            ContextOverflowError: the prompt leaves no room for even one token.
        """
        if max_new is not None and max_new < 1:
            raise ConfigurationError(f"max_new is {max_new}; it must be at least 1.")
        tokens = self.encode(prompt)
        context = min(self.manifest.context, context or self.manifest.context)
        if len(tokens) >= context:
            raise ContextOverflowError(
                f"The prompt has {len(tokens)} tokens; the model's context holds {context} positions, one of which "
                "the answer needs. Shorten the prompt, or convert again with a larger --context.",
                tokens=len(tokens),
                context=context,
            )
        if len(tokens) == len(self._prefix):
            raise ConfigurationError("The prompt is empty; give the model something to go on.")
        room = context - len(tokens) + 1  # the last token of an answer is never fed back
        return tokens, min(max_new or room, room)


def _with_instruction(messages: Sequence[Message], instruction: str) -> list[Message]:
    own = [m for m in messages if isinstance(m, Mapping) and m.get("role") == "system"]
    if any(m.get("content") != instruction for m in own):
        raise ConfigurationError(
            f"This bundle has its instruction baked in ({instruction[:60]!r}); leave the system message out, or "
            "convert again without --prefix."
        )
    return list(messages) if own else [{"role": "system", "content": instruction}, *messages]
