"""The tokenizer.bin of llama2.c, rebuilt as the SentencePiece model that it was exported from.

{longest token}, then for each token {score, bytes, text}. Spaces stand for ▁, and the two controls have line breaks
around them.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from converters.checkpoints import TokenizerFile
from device_runtime.errors import CheckpointError

__all__ = ["read_tokenizer"]

_ENTRY = struct.Struct("<fi")
_UNKNOWN, _BOS, _EOS = range(3)  # as Llama 2 numbers them, which llama2.c has in its code
_NORMAL, _UNKNOWN_TYPE, _CONTROL, _BYTE = 1, 2, 3, 6
_BYTE_TOKEN = re.compile(rb"<0x[0-9A-F]{2}>")


def read_tokenizer(model: Path, vocabulary: int) -> TokenizerFile:
    """Find and read the tokenizer beside a checkpoint: tokenizer.bin, or tok512.bin for a vocabulary of 512.

    Raises:
        CheckpointError: there is none, or it is damaged, or it is of another vocabulary.
    """
    tried = [model.with_name("tokenizer.bin"), model.with_name(f"tok{vocabulary}.bin")]
    path = next((p for p in tried if p.is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{model}: its tokenizer is missing; expected {tried[0].name} or {tried[1].name} in the same folder."
        )
    tokens = _read(path, vocabulary)
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at run time
    for i, (score, text) in enumerate(tokens):
        kind = _UNKNOWN_TYPE if i == _UNKNOWN else _CONTROL if i in (_BOS, _EOS) else _NORMAL
        if kind == _NORMAL and _BYTE_TOKEN.fullmatch(text):
            kind = _BYTE
        piece = text.strip(b"\n") if kind == _CONTROL else text
        try:
            proto.pieces.add(piece=piece.decode().replace(" ", "▁"), score=score, type=kind)
        except UnicodeDecodeError:
            raise CheckpointError(f"{path}: token {i} is {text!r}, which is no UTF-8. Fetch the file again.") from None
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.vocab_size = trainer.BPE, len(tokens)
    trainer.byte_fallback = any(piece.type == _BYTE for piece in proto.pieces)
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = _UNKNOWN, _BOS, _EOS, -1
    normalizer.name, normalizer.add_dummy_prefix = "identity", True
    normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces = False, True
    content: bytes = proto.SerializeToString(deterministic=True)
    try:
        SentencePieceProcessor(model_proto=content)
    except Exception as error:  # RuntimeError today; nothing of the package may escape
        raise CheckpointError(f"{path}: SentencePiece refuses its pieces: {error}. Fetch the file again.") from error
    pieces = proto.pieces
    return TokenizerFile(
        file_name="tokenizer.model",
        content=content,
        bos_id=_BOS,
        eos_ids=(_EOS,),
        adds_bos=True,
        chat_template=None,
        special_tokens={"bos_token": pieces[_BOS].piece, "eos_token": pieces[_EOS].piece},
    )


def _read(path: Path, vocabulary: int) -> list[tuple[float, bytes]]:
    data, at, tokens = path.read_bytes(), 4, list[tuple[float, bytes]]()
    while at < len(data):
        if len(data) - at < _ENTRY.size:
            break
        score, length = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        if not 0 <= length <= len(data) - at:
            break
        tokens.append((score, data[at : at + length]))
        at += length
    if at != len(data) or len(tokens) != vocabulary or vocabulary <= _EOS:
        raise CheckpointError(
            f"{path}: has {len(tokens)} whole tokens, and the checkpoint has {vocabulary}. It is damaged, "
            "or of another model: fetch it again."
        )
    return tokens
