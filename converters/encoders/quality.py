"""The report of an encoder or a translator: the graph against the float network, on the same held-out sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from converters.encoders.checkpoint import EncoderCheckpoint
from converters.encoders.network import TranslatorConfig
from converters.encoders.ops_numpy import reference_logits, reference_sentence
from converters.network.weights import FloatArray, ReadTensor
from converters.texts import text_kinds
from device_runtime.bundle.folder import Bundle
from device_runtime.engine.encoder.encoder_model import EncoderModel
from device_runtime.engine.encoder.translator import Translator
from device_runtime.engine.encoder.vocabulary import Vocabulary
from device_runtime.tasks.classify import Heads
from device_runtime.tasks.file import typed_fields

__all__ = ["encoder_quality", "kept", "sentences_of"]

_SENTENCES = 50  # of a report; `stonechat eval` takes more
_TRANSLATED = 8  # sentences whose translation is compared, token by token
_LONGEST = 24  # tokens of a translation


def sentences_of(which: Literal["calibration", "heldout"], count: int) -> list[str]:
    """Sentences spread evenly over the texts that come with stonechat; none is in both."""
    text = " ".join(text_kinds(which).values())
    found = [s.strip() for s in re.split(r"(?<=[.!?])\s+|\n\s*\n", text)]
    kept = list(dict.fromkeys(" ".join(s.split()) for s in found if 20 <= len(s) <= 400))
    step = max(1, len(kept) // count)
    return kept[::step][:count]


def encoder_quality(
    bundle: Bundle,
    checkpoint: EncoderCheckpoint,
    progress: Callable[[float], None] = lambda share: None,
    sentences: Sequence[str] | None = None,
    *,
    name: str = "held-out texts",
    backend: str | None = None,
) -> dict[str, Any]:
    """Figures for the manifest.

    Args:
        sentences: to read; None takes some of the held-out texts.
        name: what they are called.
        backend: see `EncoderModel.open`; a translator has one only.
    """
    config = checkpoint.config
    texts = list(
        sentences or sentences_of("heldout", _TRANSLATED if isinstance(config, TranslatorConfig) else _SENTENCES)
    )
    read = kept(checkpoint.read)
    if isinstance(config, TranslatorConfig):
        return _translations(bundle, config, read, texts, progress)
    vocabulary = Vocabulary(bundle)
    cosines, agree, far = [], 0, 0.0
    heads = None if checkpoint.answer is None else Heads.in_order(typed_fields(checkpoint.answer), config.head.labels)
    with EncoderModel.open(bundle.path, backend=backend) as model:
        for i, text in enumerate(texts):
            tokens = vocabulary.encode(text, truncate=True).tokens
            wanted = reference_sentence(config, read, tokens)
            found = model.read(tokens)
            cosines.append(float(wanted @ found / (np.linalg.norm(wanted) * np.linalg.norm(found))))
            agree += heads is not None and heads.decide(wanted)[0] == heads.decide(found)[0]
            far = max(far, float(np.abs(wanted - found).max()))
            progress((i + 1) / len(texts))
    figures: dict[str, Any] = {"sentences": len(texts), "text": name}
    if checkpoint.task == "embed":
        return figures | {"cosine": round(float(np.mean(cosines)), 6), "least_cosine": round(min(cosines), 6)}
    return figures | {"same_label": round(agree / len(texts), 4), "largest_logit_error": round(far, 4)}


def _translations(
    bundle: Bundle,
    config: TranslatorConfig,
    read: ReadTensor,
    texts: Sequence[str],
    progress: Callable[[float], None],
) -> dict[str, Any]:
    """The same token is the likeliest, after the same beginning: that of the graph's own translation."""
    same = total = 0
    with Translator.open(bundle.path) as model:
        languages = model.vocabulary.languages
        to = languages[0][2:-2] if len(languages) > 1 else None
        for i, text in enumerate(texts):
            source = model.vocabulary.encode(text, to=to, truncate=True).tokens
            written = [token for token in model.steps(source, _LONGEST) if token is not None]
            target = [config.start_id, *written]
            found, wanted = model.force(source, target), reference_logits(config, read, source, target)
            same += int((found.argmax(axis=1) == wanted.argmax(axis=1)).sum())
            total += len(target)
            progress((i + 1) / len(texts))
    return {"sentences": len(texts), "text": "held-out texts", "tokens": total, "same_token": round(same / total, 4)}


def kept(read: ReadTensor) -> ReadTensor:
    """`read`, each tensor once: the reference reads all of them for every sentence."""
    kept: dict[str, FloatArray] = {}

    def reading(name: str) -> FloatArray:
        if name not in kept:
            kept[name] = read(name)
        return kept[name]

    return reading
