"""The vocabulary of a small model: a SentencePiece model of the task's own words.

Byte pair encoding on one thread, so that the same texts give the same vocabulary. Digits are tokens of their own. What
an answer is made of (`{"severity": `, `"alarm"`, a sentence that a rule gives) is one token each: a field is decided in
one step, whose probability is the answer's confidence. The texts are taken as they are, without SentencePiece's own
normalizer, which other readers of its files leave out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from sentencepiece import SentencePieceTrainer

from device_runtime.errors import ConfigurationError
from device_runtime.records.printable import counted
from device_runtime.tasks.classify import head_label
from device_runtime.tasks.file import Task

__all__ = ["BOS", "EOS", "SAMPLE", "answer_text", "symbols", "train_vocabulary"]

BOS, EOS = "<s>", "</s>"
SAMPLE = 40_000  # that the vocabulary is learnt from
_SPACE = "\u2581"  # as SentencePiece writes it
_BYTES_AND_SPECIAL = 256 + 3


def answer_text(answer: Mapping[str, Any], task: Task) -> str:
    """An answer as the model learns to write it: JSON with the spaces that JSON has in ordinary text."""
    return json.dumps({name: answer[name] for name in task.fields}, ensure_ascii=False)


def symbols(task: Task) -> list[str]:
    """Texts that are one token each."""
    found: list[str] = ["\n"]
    if task.network.embeddings:  # whose texts are common English, in which no part of an answer is a symbol
        return [*found, *(head_label(name, value) for name, values in task.fields.items() for value in values or [])]
    for number, (name, values) in enumerate(task.fields.items()):
        found.append((", " if number else "{") + json.dumps(name) + ": ")
        found += [json.dumps(value, ensure_ascii=False) for value in values or []]
        if values is None:
            found += [json.dumps(rule.answer[name], ensure_ascii=False) for rule in task.truth]
            kinds = task.answer["properties"][name].get("type", [])
            found += ["null"] if "null" in kinds else []
    if task.kind == "classify":
        found += [head_label(name, value) for name, values in task.fields.items() for value in values or []]
    found += [] if task.inputs.fields is None else ["+", "-", ".", "?"]
    for number, name in enumerate([*(task.inputs.fields or {}), *(task.inputs.features or {})]):
        found.append((" " if number else "") + f"{name} ")
    found += [word for field in (task.inputs.fields or {}).values() for word in field.one_of]
    return list(dict.fromkeys(found))


def train_vocabulary(task: Task, texts: Iterable[str]) -> bytes:
    """A SentencePiece model.

    Raises:
        ConfigurationError: the task's vocabulary is too small for its own answers.
    """
    own = symbols(task)
    user_defined = [symbol.replace(" ", _SPACE) for symbol in own]
    sample = [text for _, text in zip(range(SAMPLE), texts, strict=False)]
    characters = {character for text in sample for character in text}
    least = _BYTES_AND_SPECIAL + len(own) + len(characters) + 1
    if task.inputs.text is not None and task.network.vocabulary < least:
        raise ConfigurationError(
            f"network: vocabulary is {task.network.vocabulary}; {task.name} needs at least {least} pieces, for bytes, "
            f"{counted(len(own), 'part')} of its answers and {counted(len(characters), 'character')}."
        )
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(sample),
        model_writer=written,
        model_type="bpe",
        vocab_size=max(task.network.vocabulary, least) if task.inputs.text is not None else least + 16,
        user_defined_symbols=user_defined,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        byte_fallback=True,
        character_coverage=1.0,
        hard_vocab_limit=False,
        num_threads=1,
        bos_id=1,
        eos_id=2,
        unk_id=0,
        pad_id=-1,
        minloglevel=2,
    )
    return written.getvalue()
