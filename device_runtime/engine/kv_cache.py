"""The tokens whose keys and values a backend holds, and how a new prompt reuses them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from device_runtime.engine.backends import Backend, Logits

__all__ = ["KvCache"]


class KvCache:
    """A backend's kv_cache with the tokens at its positions.

    It outlives an answer: when a prompt begins with the tokens that are there already (the next turn of a
    conversation), only the rest is computed.
    """

    def __init__(self, backend: Backend, prefix_tokens: Sequence[int]) -> None:
        self._backend = backend
        self._tokens = list(prefix_tokens)  # at each position
        self._claims = 0

    @property
    def full(self) -> bool:
        """Whether no position is left."""
        return self._backend.position >= self._backend.context

    def claim(self) -> int:
        """A number for one answer; it is overtaken as soon as there is a later one."""
        self._claims += 1
        return self._claims

    def is_overtaken(self, claim: int) -> bool:
        """Whether another answer uses the cache by now."""
        return claim != self._claims

    def rewind_to(self, tokens: Sequence[int]) -> int:
        """Forget what differs from `tokens`; returns how many of them are kept. The last one never is: its logits
        have to be computed."""
        common = 0
        limit = min(len(self._tokens), len(tokens) - 1)
        while common < limit and self._tokens[common] == tokens[common]:
            common += 1
        self._backend.rewind(common)
        del self._tokens[common:]
        return common

    def prefill(self, tokens: Sequence[int], chunk: int | None = None) -> Iterator[Logits]:
        """Take in `tokens`; yields the logits after each run of the graph, (vocabulary,), valid until the next.

        Args:
            chunk: tokens for each run; None takes what the backend likes best.
        """
        chunk = chunk or self._backend.chunk
        for start in range(0, len(tokens), chunk):
            part = list(tokens[start : start + chunk])
            logits = self._backend.prefill(part)
            self._tokens += part
            yield logits

    def decode(self, token: int) -> Logits:
        """Take in one token; returns the logits after it, (vocabulary,), valid until the next call."""
        logits = self._backend.decode(token)
        self._tokens.append(token)
        return logits
