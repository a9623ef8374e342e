"""The tokens whose keys and values a backend holds, and how a new prompt reuses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from device_runtime.engine.backends import Backend, Logits
from device_runtime.engine.states.snapshot import Snapshot, shared
from device_runtime.engine.states.store import LEAST_GAIN, PromptStates

__all__ = ["Drafts", "KvCache"]

Drafts = Callable[[int], Sequence[int]]  # (at most so many) -> tokens that are likely to come next


class KvCache:
    """A backend's kv_cache with the tokens at its positions.

    It outlives an answer: when a prompt begins with the tokens that are there already (the next turn of a
    conversation), only the rest is computed. What another prompt would overwrite is kept aside, and comes back when
    a prompt begins with it.
    """

    def __init__(self, backend: Backend, prefix_tokens: Sequence[int], states: PromptStates | None = None) -> None:
        self._backend = backend
        self._tokens = list(prefix_tokens)  # at each position
        self.states = states or PromptStates(0)
        self._prefix = len(self._tokens)
        self._worth = 0  # positions of the present state that are worth keeping …
        self._grows = False  # … and whether its answer is too
        self._claims = 0
        self._ahead: list[tuple[int, Logits]] = []  # drafts that the backend has taken in, and the logits after each
        self.steps = self.passes = 0  # calls of `decode`, and the runs of the graph that they took

    @property
    def full(self) -> bool:
        """Whether no position is left."""
        return len(self._tokens) >= self._backend.context

    @property
    def tokens(self) -> tuple[int, ...]:
        """Those at its positions."""
        return tuple(self._tokens)

    def claim(self) -> int:
        """A number for one answer; it is overtaken as soon as there is a later one."""
        self._claims += 1
        return self._claims

    def is_overtaken(self, claim: int) -> bool:
        """Whether another answer uses the cache by now."""
        return claim != self._claims

    def rewind_to(self, tokens: Sequence[int], fixed: int | None = None) -> int:
        """Forget what differs from `tokens`; returns how many of them are kept. The last one never is: its logits
        have to be computed.

        Args:
            fixed: how many of `tokens` are likely to come again, and so worth keeping; None: all, and the answer.
        """
        self._settle()
        limit = len(tokens) - 1
        common = min(shared(self._tokens, tokens), limit)
        state, restorable = self.states.find(tokens)
        restorable = min(restorable, limit)
        self._keep_aside(common)
        if state is not None and restorable >= common + LEAST_GAIN:
            self._backend.restore(state, restorable)
            self._tokens = list(tokens[:restorable])
            common = restorable
        else:
            self._backend.rewind(common)
            del self._tokens[common:]
        self._worth = len(tokens) if fixed is None else fixed
        self._grows = fixed is None
        return common

    def rewind(self, position: int) -> None:
        """Forget the tokens from `position` on; the prefix stays."""
        self._settle()
        position = max(position, self._prefix)
        self._backend.rewind(position)
        del self._tokens[position:]

    def snapshot(self) -> Snapshot:
        """A copy of the state after `tokens`."""
        self._settle()
        return self._backend.snapshot(len(self._tokens))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within this context other prompts may be taken in; after it, the state is what it was."""
        self._settle()
        tokens, worth, grows = self._tokens, self._worth, self._grows
        state = self.snapshot() if self._backend.position_bytes else None
        self._tokens = list(tokens)
        yield
        if state is not None:
            self._keep_aside(shared(self._tokens, tokens))
            self._backend.restore(state, len(tokens))
        else:
            common = shared(self._tokens, tokens)
            self._backend.rewind(common)
            self._tokens = tokens[:common]
            for _ in self.prefill(tokens[common:]):
                pass
        self._tokens, self._worth, self._grows = tokens, worth, grows

    def put_back(self, tokens: Sequence[int], state: Snapshot) -> None:
        """Take up the state after `tokens`, as `snapshot` has copied it."""
        self._settle()
        self._keep_aside(shared(self._tokens, tokens))
        self._backend.restore(state, len(tokens))
        self._tokens, self._worth, self._grows = list(tokens), len(tokens), True

    def prefill(self, tokens: Sequence[int], chunk: int | None = None) -> Iterator[Logits]:
        """Take in `tokens`; yields the logits after each run of the graph, (vocabulary,), valid until the next.

        Args:
            chunk: tokens for each run; None takes what the backend likes best.
        """
        self._settle()
        chunk = chunk or self._backend.chunk
        for start in range(0, len(tokens), chunk):
            part = list(tokens[start : start + chunk])
            logits = self._backend.prefill(part)
            self._tokens += part
            yield logits

    def decode(self, token: int, drafts: Drafts | None = None) -> Logits:
        """Take in one token; returns the logits after it, (vocabulary,), valid until the next call.

        Args:
            drafts: is asked for so many tokens that are likely to follow; they are computed in the same run of the
                graph, and have cost nothing when they come.
        """
        if self._ahead and self._ahead[0][0] == token:
            _, logits = self._ahead.pop(0)
        else:
            self._settle()
            logits = self._run(token, drafts)
        self._tokens.append(token)
        self.steps += 1
        return logits

    def _run(self, token: int, drafts: Drafts | None) -> Logits:
        several = self._backend.several
        self.passes += 1
        guessed: Sequence[int] = ()
        if drafts is not None and several > 1 and self._backend.position + several <= self._backend.context:
            guessed = drafts(several - 1)[: several - 1]
        if not guessed:
            return self._backend.decode(token)
        rows = self._backend.decode_several([token, *guessed])
        self._ahead = list(zip(guessed, rows[1:], strict=True))
        first: Logits = rows[0]
        return first

    def _settle(self) -> None:
        """Forget drafts that did not come."""
        if self._ahead:
            self._ahead.clear()
            self._backend.rewind(len(self._tokens))

    def _keep_aside(self, common: int) -> None:
        """Copy what is worth keeping of the present state, if more than its first `common` positions are."""
        worth = len(self._tokens) if self._grows else min(self._worth, len(self._tokens))
        if worth < max(common, self._prefix) + LEAST_GAIN or not self.states.takes(worth, self._backend.position_bytes):
            return
        tokens = self._tokens[:worth]
        _, known = self.states.find(tokens)
        if known < worth:
            self.states.keep(tokens, self._backend.snapshot(worth))
