"""The tokens whose keys and values a backend holds, and how a new prompt reuses them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from device_runtime.engine.backends import Backend, Logits
from device_runtime.engine.drafts import NO_DRAFT, Draft, Guess
from device_runtime.engine.states.snapshot import Snapshot, shared
from device_runtime.engine.states.store import LEAST_GAIN, PromptStates

__all__ = ["KvCache"]


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
        # Drafts that the backend has taken in, and the logits after those where they are asked for.
        self._ahead: list[tuple[int, Logits | None]] = []
        self.runs = 0  # of the graph
        self._answered, self._passes = 0, 0  # tokens of answers, and the runs that they took

    @property
    def room(self) -> int:
        """Positions that are left after `tokens`."""
        return max(0, self._backend.context - len(self._tokens))

    @property
    def tokens(self) -> tuple[int, ...]:
        """Those at its positions."""
        return tuple(self._tokens)

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens of answers for each run of the graph, their prompts' last ones included; None before the first."""
        return self._answered / self._passes if self._passes else None

    def count_answer(self, tokens: int, passes: int) -> None:
        """An answer of so many tokens has taken so many runs after its prompt's last one."""
        if tokens:
            self._answered += tokens
            self._passes += 1 + passes

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
        self.forget_drafts()
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

    def snapshot(self) -> Snapshot:
        """A copy of the state after `tokens`."""
        self.forget_drafts()
        return self._backend.snapshot(len(self._tokens))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within this context other prompts may be taken in; after it, the state is what it was.

        Drafts stay, too, where the backend's state can be copied.
        """
        if not self._backend.position_bytes:
            self.forget_drafts()
        tokens, worth, grows, ahead = self._tokens, self._worth, self._grows, self._ahead
        state = self._backend.snapshot(self._backend.position) if self._backend.position_bytes else None
        self._tokens, self._ahead = list(tokens), []
        yield
        if state is not None:
            self._keep_aside(shared(self._tokens, tokens))
            self._backend.restore(state, state.positions)
        else:
            common = shared(self._tokens, tokens)
            self._backend.rewind(common)
            self._tokens = tokens[:common]
            for _ in self.prefill(tokens[common:]):
                pass
        self._tokens, self._worth, self._grows, self._ahead = tokens, worth, grows, ahead

    def put_back(self, tokens: Sequence[int], state: Snapshot) -> None:
        """Take up the state after `tokens`, as `snapshot` has copied it."""
        self.forget_drafts()
        self._keep_aside(shared(self._tokens, tokens))
        self._backend.restore(state, len(tokens))
        self._tokens, self._worth, self._grows = list(tokens), len(tokens), True

    def prefill(self, tokens: Sequence[int], chunk: int | None = None, guess: Guess | None = None) -> Iterator[Logits]:
        """Take in `tokens`; yields the logits after each run of the graph, (vocabulary,), valid until the next.

        Args:
            chunk: tokens for each run; None takes what the backend likes best.
            guess: what may follow them; the last run computes it as well, where it has room.
        """
        self.forget_drafts()
        chunk = chunk or self._most
        for start in range(0, len(tokens), chunk):
            part = list(tokens[start : start + chunk])
            draft = self._draft(guess, part, chunk) if start + chunk >= len(tokens) else NO_DRAFT
            logits = self._run(part, draft) if draft.tokens else self._backend.prefill(part)
            self.runs += 1
            self._tokens += part
            yield logits

    def take_in(self, tokens: Sequence[int], guess: Guess | None = None) -> Iterator[Logits]:
        """As `prefill`, but those of the tokens that are drafts already cost no run."""
        known = self._known(tokens)
        if known == len(tokens) and (logits := self._ahead[known - 1][1]) is not None:
            del self._ahead[:known]
            self._tokens += tokens
            yield logits
        else:
            known = min(known, len(tokens) - 1)
            self._tokens += tokens[:known]
            yield from self.prefill(tokens[known:], guess=guess)

    def decode(self, token: int, guess: Guess | None = None) -> Logits:
        """Take in one token; returns the logits after it, (vocabulary,), valid until the next call.

        Args:
            guess: what may follow it; it is computed in the same run of the graph, and has cost nothing when it comes.
        """
        if self._known([token]) and (logits := self._ahead[0][1]) is not None:
            del self._ahead[:1]
        else:
            self.forget_drafts()
            draft = self._draft(guess, [token], self._most)
            logits = self._run([token], draft) if draft.tokens else self._backend.decode(token)
            self.runs += 1
        self._tokens.append(token)
        return logits

    def look(self, tokens: Sequence[int], guess: Guess | None = None) -> Logits:
        """The logits after a few tokens that may come next, (vocabulary,), valid until the next call.

        They are drafts from then on, unless there are other ones.

        Args:
            guess: what may follow them.
        """
        known = self._known(tokens)
        if known == len(tokens) and (logits := self._ahead[known - 1][1]) is not None:
            return logits
        if known < len(self._ahead) and self._backend.several > 1 and len(tokens) <= self._most:
            self.runs += 1
            return self._backend.look_ahead(tokens, len(self._tokens))
        before, here = self._ahead[: min(known, len(tokens) - 1)], list(self._tokens)
        self._tokens += tokens[: len(before)]
        for logits in self.prefill(tokens[len(before) :], guess=guess):
            found = logits.copy()
        unasked = [(token, None) for token in tokens[len(before) : -1]]
        self._ahead = [*before, *unasked, (tokens[-1], found), *self._ahead]
        self._tokens = here
        return found

    def known_ahead(self) -> Mapping[tuple[int, ...], Logits]:
        """The logits after drafts, (vocabulary,), as far as they were asked for, by the drafts."""
        drafts = tuple(token for token, _ in self._ahead)
        return {drafts[:count]: logits for count, (_, logits) in enumerate(self._ahead, 1) if logits is not None}

    def forget_drafts(self) -> None:
        """Give up those that did not come."""
        if self._ahead:
            self._ahead = []
            self._backend.rewind(len(self._tokens))

    @property
    def _most(self) -> int:
        """Tokens of one run of the graph."""
        return max(self._backend.chunk, self._backend.several)

    def _known(self, tokens: Sequence[int]) -> int:
        """How many of these tokens are drafts already."""
        return shared([token for token, _ in self._ahead], tokens) if self._ahead else 0

    def _draft(self, guess: Guess | None, tokens: Sequence[int], most: int) -> Draft:
        """What a run that takes in these tokens computes as well."""
        several = self._backend.several
        room = min(most, self._backend.context - self._backend.position) - len(tokens)
        if guess is None or several == 1 or room < 1:
            return NO_DRAFT
        return guess(min(room, max(0, several - len(tokens))), room)

    def _run(self, tokens: Sequence[int], draft: Draft) -> Logits:
        """Take in tokens and a draft in one run; returns the logits after the tokens."""
        last = len(tokens) - 1
        first, *asked = self._backend.decode_several([*tokens, *draft.tokens], [last, *(last + n for n in draft.asked)])
        known = dict(zip(draft.asked, asked, strict=True))
        self._ahead = [(token, known.get(count)) for count, token in enumerate(draft.tokens, 1)]
        found: Logits = first
        return found

    def _keep_aside(self, common: int) -> None:
        """Copy what is worth keeping of the present state, if more than its first `common` positions are."""
        worth = len(self._tokens) if self._grows else min(self._worth, len(self._tokens))
        if worth < max(common, self._prefix) + LEAST_GAIN or not self.states.takes(worth, self._backend.position_bytes):
            return
        tokens = self._tokens[:worth]
        _, known = self.states.find(tokens)
        if known < worth:
            self.states.keep(tokens, self._backend.snapshot(worth))
