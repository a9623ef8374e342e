"""`tokenizer.model` (SentencePiece, BPE or unigram) into the table of the C engine."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

import numpy as np
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from converters.emit.c.tokenizer import Cut, Flag, Kind, TokenizerTable, refuse

__all__ = ["sentencepiece_table"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # ModelProto.SentencePiece.Type
_SPACE = "\u2581"


def sentencepiece_table(content: bytes, names: Collection[str] = (), *, own_space: bool = False) -> TokenizerTable:
    """The table of a `tokenizer.model`.

    Args:
        names: spellings of pieces that are markup although they are not control pieces: no text becomes one of them.
        own_space: a text that begins with a space gets no other one before it.

    Raises:
        ConfigurationError: it uses something that the C engine does not do; the message names it.
    """
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at run time
    model.ParseFromString(content)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    kinds = {trainer.BPE: Kind.SENTENCEPIECE_BPE, trainer.UNIGRAM: Kind.UNIGRAM}
    if trainer.model_type not in kinds:
        raise refuse("a SentencePiece model of words or characters", "BPE or unigram")
    kind = kinds[trainer.model_type]
    if trainer.treat_whitespace_as_suffix:
        raise refuse("a SentencePiece model with spaces at the ends of words", "treat_whitespace_as_suffix: false")
    if not normalizer.escape_whitespaces:
        raise refuse("a SentencePiece model with plain spaces", "escape_whitespaces: true")
    flags = Flag(0)
    if normalizer.add_dummy_prefix:
        flags |= Flag.DUMMY_PREFIX | (Flag.OWN_SPACE if own_space else Flag(0))
    if normalizer.remove_extra_whitespaces:
        flags |= Flag.FEWER_SPACES
    if trainer.byte_fallback:
        flags |= Flag.BYTE_FALLBACK

    types = [piece.type for piece in model.pieces]
    pieces = [piece.piece for piece in model.pieces]
    of_type = {kind: [i for i, t in enumerate(types) if t == kind] for kind in range(1, 7)}
    unknown = next(iter(of_type[_UNKNOWN]), None)  # files that were GGUF may have none: with bytes nothing is unknown
    if unknown is None and not trainer.byte_fallback:
        raise refuse("a SentencePiece model without an unknown piece", "one, or byte_fallback: true")
    surface = trainer.unk_surface if trainer.HasField("unk_surface") else " \u2047 "
    texts = [piece.encode() for piece in pieces]
    for i in of_type[_CONTROL]:
        texts[i] = b""
    for i in of_type[_UNKNOWN]:
        texts[i] = surface.encode()
    for i in of_type[_BYTE]:
        texts[i] = b""
    users = [i for i in of_type[_USER_DEFINED] if pieces[i].replace(_SPACE, " ") not in names]
    matched = of_type[_NORMAL] + users
    by_byte = {pieces[i]: i for i in of_type[_BYTE]}
    _check_unused(kind, pieces, matched, of_type[_UNUSED])
    _check_user_pieces(content, [pieces[i] for i in users], bool(normalizer.precompiled_charsmap))
    scores = [float(piece.score) for piece in model.pieces]
    normal = [scores[i] for i in of_type[_NORMAL]]
    joined = any(b == _SPACE != a for i in matched for a, b in pairwise(pieces[i]))
    return TokenizerTable(
        kind=kind,
        cut=Cut.NOWHERE if joined else Cut.BEFORE_SPACES,
        flags=flags,
        texts=texts,
        matched=matched,
        controls=of_type[_CONTROL],
        users=users,
        byte_ids=[by_byte[f"<0x{byte:02X}>"] for byte in range(256)] if trainer.byte_fallback else (),
        unknown=unknown,
        ranks=_ranks(scores, matched) if kind is Kind.SENTENCEPIECE_BPE else None,
        scores=scores if kind is Kind.UNIGRAM else None,
        # SentencePiece starts its search for the greatest score at the least positive number.
        score_range=(min(normal, default=0.0), max([float(np.finfo(np.float32).tiny), *normal])),
        charsmap=normalizer.precompiled_charsmap,
    )


def _ranks(scores: list[float], matched: list[int]) -> list[int] | None:
    """Better scores first, equal ones alike; None where that is the order of the ids."""
    ordered = sorted(matched)
    if all(scores[a] > scores[b] for a, b in pairwise(ordered)):
        return None
    places = {score: place for place, score in enumerate(sorted({scores[i] for i in matched}, reverse=True))}
    return [places.get(score, 0) for score in scores]


def _check_unused(kind: Kind, pieces: list[str], matched: list[int], unused: list[int]) -> None:
    """SentencePiece merges to an unused piece and takes it apart again: not followed here."""
    if kind is not Kind.SENTENCEPIECE_BPE or not unused:
        return
    known = {pieces[i] for i in [*matched, *unused]} | {c for i in matched for c in pieces[i]}
    for i in unused:
        piece = pieces[i]
        if any(piece[:cut] in known and piece[cut:] in known for cut in range(1, len(piece))):
            raise refuse(f"the unused piece {piece!r}, which text can become", "no unused pieces")


def _check_user_pieces(content: bytes, pieces: list[str], has_map: bool) -> None:
    """With a normalization map, a user-defined piece must be what the map makes of it."""
    if not has_map or not pieces:
        return
    library = SentencePieceProcessor(model_proto=content)
    for piece in pieces:
        if library.normalize(piece.replace(_SPACE, " ")).strip(_SPACE) != piece.strip(_SPACE):
            raise refuse(f"the user-defined piece {piece!r}, which the normalization would change", "plain pieces")
