"""One engine for every backend: a bundle in, pieces of text out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from device_runtime.sampler import Sampling

__all__ = ["Completion", "Generation", "LanguageModel", "Message"]

Message = Mapping[str, str]  # {"role": "user", "content": "…"}
Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Completion:
    """What a finished generation says of itself."""

    text: str
    finish: Finish  # a stop token or string, the token limit or the end of the context, or a call of `cancel`
    prompt_tokens: int  # all of the prompt, the cached part included
    cached_tokens: int  # of these, how many were in the kv_cache already
    completion_tokens: int
    ttft_ms: float  # from the call of `generate` to the first token
    tokens_per_s: float  # decode rate after the first token; 0 when there was only one


class Generation(Iterator[str]):
    """An answer as it comes: iterate for its pieces, then read `result`."""

    result: Completion  # set when the iteration has ended

    def __next__(self) -> str:
        raise NotImplementedError

    def cancel(self) -> None:
        """Stop after the token that is being computed. May be called from another thread."""
        raise NotImplementedError


class LanguageModel:
    """A bundle, opened. Not thread-safe: one generation at a time."""

    @classmethod
    def open(cls, path: Path | str, *, backend: str | None = None, threads: int | None = None) -> LanguageModel:
        """Open a bundle folder."""
        raise NotImplementedError

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        max_new: int | None = None,
        sampling: Sampling = Sampling(),
        stop: Sequence[str] = (),
    ) -> Generation:
        """Start an answer to a plain prompt (no template) or to chat messages (the bundle's template)."""
        raise NotImplementedError
