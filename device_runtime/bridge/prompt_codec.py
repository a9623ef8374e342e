"""What a board takes and gives: token ids, which the bridge makes of text, or text itself."""

from __future__ import annotations

import codecs
import struct
from collections.abc import Sequence
from typing import Protocol

from device_runtime.bridge.messages import TOKEN_BYTES, Hello
from device_runtime.bridge.request import Ask
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.chat import Message
from device_runtime.engine.prompts import PromptEncoder, tokenizer_of
from device_runtime.engine.text_stream import TextStream
from device_runtime.engine.tokenizer import Tokenizer
from device_runtime.errors import ConfigurationError, StonechatError

__all__ = ["Decoder", "Text", "Tokens"]

ROLES = {"system": b"s", "user": b"u", "assistant": b"a", "tool": b"t"}


class Decoder(Protocol):
    """Bytes of an answer into text."""

    def push(self, data: bytes) -> str:
        """The text that these bytes complete."""

    def flush(self) -> str:
        """What was held back at the end."""


class Tokens:
    """Prompts and answers as token ids; the bridge has tokenizer and chat template."""

    def __init__(self, bundle: Bundle) -> None:
        self.manifest = bundle.manifest
        self._tokenizer: Tokenizer = tokenizer_of(bundle)
        self._prompts = PromptEncoder(bundle.manifest, self._tokenizer)

    def ask(self, prompt: str | Sequence[Message], max_new: int | None, hello: Hello) -> Ask:
        """A request for a greedy answer."""
        tokens, limit = self._prompts.plan(prompt, max_new, hello.context)
        return Ask(struct.pack(f"<{len(tokens)}I", *tokens), limit, self.manifest.tokenizer.eos_ids)

    def decoder(self) -> Decoder:
        """For one answer."""
        return _TokenDecoder(TextStream(self._tokenizer), self.manifest.graph.vocabulary)


class _TokenDecoder:
    def __init__(self, stream: TextStream, vocabulary: int) -> None:
        self._stream, self._vocabulary = stream, vocabulary

    def push(self, data: bytes) -> str:
        tokens = struct.unpack(f"<{len(data) // TOKEN_BYTES}I", data)
        for token in tokens:
            if token >= self._vocabulary:
                raise StonechatError(
                    f"the board answers with token {token}, and the bundle has {self._vocabulary}; reset the board."
                )
        return "".join(map(self._stream.push, tokens))

    def flush(self) -> str:
        return self._stream.flush()


class Text:
    """Prompts and answers as text; the board has tokenizer and chat template."""

    def ask(self, prompt: str | Sequence[Message], max_new: int | None, hello: Hello) -> Ask:
        """A request for a greedy answer."""
        parts = [(b"p", prompt)] if isinstance(prompt, str) else [(ROLES[m["role"]], m["content"]) for m in prompt]
        try:
            data = b"".join(role + text.encode() + b"\0" for role, text in parts)
        except UnicodeEncodeError:
            raise ConfigurationError("The prompt is not text; give it in UTF-8.") from None
        if data.count(b"\0") > len(parts):
            raise ConfigurationError("The prompt has a zero byte in it, which ends a message; leave it out.")
        return Ask(data, max_new or 0, text=True)

    def decoder(self) -> Decoder:
        """For one answer."""
        return _TextDecoder()


class _TextDecoder:
    def __init__(self) -> None:
        self._codec = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, data: bytes) -> str:
        return self._codec.decode(data)

    def flush(self) -> str:
        return self._codec.decode(b"", final=True)
