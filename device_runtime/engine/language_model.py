"""One engine for every backend: a bundle in, pieces of text out."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.bundle.folder import Bundle
from device_runtime.engine.backends import Backend
from device_runtime.engine.chat import Message
from device_runtime.engine.drafts import EarlierAnswers, guesses_pay
from device_runtime.engine.generation import Certainty, Completion, Generation
from device_runtime.engine.kv_cache import KvCache
from device_runtime.engine.opening import open_language_model
from device_runtime.engine.prompts import PromptEncoder
from device_runtime.engine.sampler import Sampler, Sampling
from device_runtime.engine.states.snapshot import shared
from device_runtime.engine.states.store import PromptStates, default_keep_bytes
from device_runtime.engine.text.segments import Markup
from device_runtime.errors import ConfigurationError, ContextOverflowError

if TYPE_CHECKING:
    from device_runtime.bundle.manifest import Manifest
    from device_runtime.bundle.trust import TrustStore
    from device_runtime.engine.structured import Constraint
    from device_runtime.engine.tokenizer import Tokenizer
    from device_runtime.engine.typed.abstention import Abstention
    from device_runtime.engine.typed.answers import SchemaAnswers
    from device_runtime.engine.typed.generation import TypedGeneration
    from device_runtime.tasks.classify import WrittenAnswer
    from device_runtime.tasks.opened import OpenedTask, OpenedTasks

    AnyGeneration = Generation | TypedGeneration | Abstention  # they are used alike

__all__ = ["Completion", "Generation", "LanguageModel", "Markup", "Message"]

_GREEDY = Sampling()
NOTHING = "N/A"
_BEGINNINGS = 64  # of prompts, whose tokens are remembered


class LanguageModel:
    """A bundle, opened. Not thread-safe: one generation at a time.

    The kv_cache outlives a call, and states of earlier calls are kept: when a prompt begins with the tokens of one of
    them (the next turn of a conversation, a link's instruction and examples), only the rest is computed.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, tokenizer: Tokenizer, *, keep_bytes: int | None = None
    ) -> None:
        """`keep_bytes` is the memory for kept states; None is a sixteenth of the machine's, at most 64 MiB."""
        self.backend, self._tokenizer = backend, tokenizer
        self.manifest: Manifest = bundle.manifest
        self._bundle = bundle
        self._prompts = PromptEncoder(bundle.manifest, tokenizer)
        self._tasks: OpenedTasks | None = None
        if bundle.manifest.purpose is not None:  # reading one needs YAML, which takes its time at start-up
            from device_runtime.tasks.opened import OpenedTasks

            self._tasks = OpenedTasks(bundle.manifest, tokenizer)
        self.states = PromptStates(default_keep_bytes() if keep_bytes is None else keep_bytes)
        self._cache = KvCache(backend, bundle.manifest.prefix_tokens, self.states)
        self._earlier = EarlierAnswers() if guesses_pay(bundle.manifest.weight_bits) else None
        self._beginnings: OrderedDict[str, list[int]] = OrderedDict()  # tokens of what several prompts begin with

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        backend: str | None = None,
        threads: int | None = None,
        verify: bool = False,
        trust: TrustStore | None = None,
        keep_bytes: int | None = None,
    ) -> LanguageModel:
        """Open a bundle folder, or the active bundle of a slot folder: `device_runtime.engine.opening` says how."""
        model = open_language_model(
            path, backend=backend, threads=threads, verify=verify, trust=trust, keep_bytes=keep_bytes
        )
        assert isinstance(model, cls)
        return model

    def encode(self, prompt: str | Sequence[Message]) -> list[int]:
        """The tokens of a prompt as `generate` takes them in, the prefix included.

        Where the bundle has an instruction, messages get it as their system message, and plain text continues it.

        Raises:
            ConfigurationError: the prompt is not text, or has another system message than the bundle's instruction.
        """
        return self._prompts.encode(prompt)

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        max_new: int | None = None,
        sampling: Sampling = _GREEDY,
        stop: Sequence[str] = (),
        schema: Mapping[str, Any] | None = None,
        head: str | None = None,
        nothing: str | None = NOTHING,
    ) -> AnyGeneration:
        """Start an answer.

        Args:
            prompt: a plain text, or chat messages, which go through the bundle's template. In both, the name of a
                control token is text like any other; in a `Markup` it is the token.
                A bundle that was trained for a task takes what the task reads, as a text or a JSON object; one that
                was trained for several does so where `schema` has the fields of one of them.
            max_new: at most so many tokens; None means until the model stops or the context is full.
            stop: the answer ends before the first of these strings.
            schema: a JSON schema that the answer fits if its result's `finish` is "stop"; only a stop string or
                `cancel` can cut it short. A bundle that was trained for a task has its own.
            head: what the last of these messages begins with each time that it is asked, maybe nothing. The state up
                to there is then kept, and not that after the answer, as it is for a conversation.
            nothing: what the last of these messages would be if it said nothing. Where the answer has fields with
                labels, which are scored then, they are calibrated against it; None: they are not.

        Raises:
            ConfigurationError: the prompt is empty or no text; or `stop` with a bundle that was trained for a task.
            SchemaError: no answer can be held to the schema, or none that is short enough.
            ContextOverflowError: the prompt leaves no room for even one token.
        """
        unfamiliar: tuple[str, ...] = ()
        task = self._tasks.asked_with(schema) if self._tasks is not None else None
        if task is not None:
            if stop:  # half of an object would be called complete
                raise ConfigurationError("a bundle of a task answers with data, which stop cannot end; leave it out.")
            given = task.read(prompt)
            if not given.readable:
                from device_runtime.engine.typed.abstention import Abstention

                return Abstention(given.unfamiliar)
            if schema is not None and task.decides_at_once:
                task.require_fit(schema)
            prompt, schema, unfamiliar = task.asked(given), schema or task.schema, given.unfamiliar
            tokens, limit = self._prompts.plan(prompt, max_new)
            unfamiliar += task.unknown_words(given.text, len(tokens) - len(self.manifest.prefix_tokens))
            head, nothing = ("", None) if task.is_tuned else (head, nothing)
        else:
            tokens, limit = self._prompts.plan(prompt, max_new)
        return self._begin(prompt, (tokens, limit), sampling, stop, schema, head, nothing, task, unfamiliar)

    def converse(
        self, messages: Sequence[Message], schema: Mapping[str, Any], *, nothing: str | None = NOTHING
    ) -> Generation | TypedGeneration:
        """Answer messages as they are, even if the bundle has a task of its own.

        Args:
            nothing: as in `generate`.

        Raises:
            As `generate`.
        """
        return self._begin(messages, self._prompts.plan(messages), _GREEDY, (), schema, "", nothing)

    def _begin(
        self,
        prompt: str | Sequence[Message],
        planned: tuple[list[int], int],
        sampling: Sampling,
        stop: Sequence[str],
        schema: Mapping[str, Any] | None,
        head: str | None,
        nothing: str | None,
        task: OpenedTask | None = None,
        unfamiliar: tuple[str, ...] = (),
    ) -> Generation | TypedGeneration:
        tokens, limit = planned
        temperatures: Mapping[str, float] = {} if task is None else task.temperatures
        fixed = None if head is None or isinstance(prompt, str) else self._fixed(prompt, head, tokens)
        parts = self._cache, self._tokenizer, tokens, limit, Sampler(sampling)
        drawn = bool(stop or sampling.temperature)
        if (
            schema is not None
            and not drawn
            and not isinstance(prompt, str)
            and (fields := self._answers.scored_fields(schema))
        ):
            from device_runtime.engine.typed.generation import TypedGeneration

            priors = None if nothing is None else self._answers.priors_against(prompt, nothing)
            held = self._answers.of_written_fields(schema, fields, limit)
            history = None
            if self._earlier is not None:
                history = self._answers.histories.after(tokens[:fixed] if fixed is not None else ())
            return TypedGeneration(
                *parts, fields, held, fixed, priors, temperatures, unfamiliar, history, self._answers.paths
            )
        written = None if task is None else task.decided(schema or task.schema)
        held = self._answers.constraint(schema, limit) if schema is not None and written is None else None
        eos_ids = self.manifest.tokenizer.eos_ids
        judge = partial(self._certainty, temperatures, schema, held, written)
        return Generation(*parts, eos_ids, stop, written or held, fixed, judge, unfamiliar, self._earlier)

    @cached_property
    def _answers(self) -> SchemaAnswers:
        from device_runtime.engine.typed.answers import SchemaAnswers  # with the grammar library's side, it takes time

        return SchemaAnswers(self._bundle, self._tokenizer, self.encode)

    def _certainty(
        self,
        temperatures: Mapping[str, float],
        schema: Mapping[str, Any] | None,
        held: Constraint | None,
        written: WrittenAnswer | None,
        text: str,
    ) -> Certainty:
        """Of a whole answer that was held to a schema."""
        if schema is None and written is None:
            return Certainty()
        from device_runtime.engine.typed.answers import certainty_of

        return certainty_of(temperatures, schema, held, written, self._spelled, text)

    @cached_property
    def _spelled(self) -> Callable[[str], Sequence[int]]:
        """The tokens of a value within an answer; labels come again with each answer."""
        return lru_cache(maxsize=512)(self._tokenizer.encode_inside)

    def _fixed(self, messages: Sequence[Message], head: str, tokens: Sequence[int]) -> int:
        """How many tokens of a prompt are those of its fixed beginning."""
        *before, last = messages
        key = json.dumps([list(before), head], sort_keys=True)
        if key not in self._beginnings:
            # What two different ends leave alike: a token may reach across the border between head and rest.
            ends = [self.encode([*before, {**last, "content": head + end}]) for end in ("0", "x y")]
            self._beginnings[key] = ends[0][: shared(*ends)]
            if len(self._beginnings) > _BEGINNINGS:
                self._beginnings.popitem(last=False)
        self._beginnings.move_to_end(key)
        return shared(self._beginnings[key], tokens)

    def has_conversation(self, name: str) -> bool:
        """Whether a conversation was kept under this name."""
        from device_runtime.engine.states.saved import has_conversation

        return has_conversation(self._bundle, name)

    def save_conversation(self, name: str, messages: Sequence[Message]) -> Path:
        """Keep the present state on the disk, with what was said, under a name; returns the file.

        Raises:
            ConfigurationError: the name is no name, or there is no place for the file.
            BackendError: this backend's state cannot be copied.
        """
        from device_runtime.engine.states.saved import save_conversation

        return save_conversation(self._bundle, self._cache, self.backend, name, messages)

    def load_conversation(self, name: str) -> list[Message]:
        """Take up a state that was kept, and return what was said; its tokens are not computed again.

        Raises:
            ConfigurationError: there is none of that name, or it is damaged.
        """
        from device_runtime.engine.states.saved import load_conversation

        return load_conversation(self._bundle, self._cache, self.backend, name)

    def measure(self, tokens: Sequence[int], max_new: int) -> Completion:
        """Answer the bundle's prefix and these tokens greedily, with exactly `max_new` tokens: for measuring speed.

        Raises:
            ContextOverflowError: prefix, `tokens` and answer do not fit the context.
        """
        prompt = [*self.manifest.prefix_tokens, *tokens]
        if len(prompt) + max_new - 1 > self.manifest.context:
            raise ContextOverflowError(
                f"{len(prompt)} tokens of prompt and {max_new} of answer do not fit the context of "
                f"{self.manifest.context} positions; measure fewer."
            )
        generation = Generation(self._cache, self._tokenizer, prompt, max_new, Sampler(_GREEDY), ())
        for _ in generation:
            pass
        return generation.result

    def check_schema(self, schema: Mapping[str, Any], max_new: int | None = None) -> None:
        """Raise a `SchemaError` if no answer of at most `max_new` tokens can be held to this JSON schema."""
        task = self._tasks.asked_with(schema) if self._tasks is not None else None
        if task is not None and task.decides_at_once:
            task.require_fit(schema)
        else:
            self._answers.check(schema, max_new)

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens of answers for each run of the graph so far; None before the first."""
        return self._cache.tokens_per_pass

    @property
    def position(self) -> int:
        """How far the kv_cache is filled: it moves while the model works. May be read from any thread."""
        return self.backend.position

    def close(self) -> None:
        """Give back memory."""
        self.backend.close()

    def __enter__(self) -> LanguageModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
