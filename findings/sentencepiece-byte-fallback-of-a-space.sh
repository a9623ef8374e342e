#!/bin/sh
# sentencepiece 0.2.3 (PyPI), byte_fallback, a vocabulary without a piece that has U+2581
#
# With byte_fallback, what no piece has is encoded as the bytes of its UTF-8, and decoding gives the text again. So one
# expects the piece <0x20> for a space that the vocabulary lacks, and a space back. But spaces become U+2581 before pieces
# are looked for: what falls back is U+2581, in three pieces, and these are decoded to U+2581, which becomes a space again
# in pieces of text alone. <0x20> itself is decoded to a space. (A vocabulary that was trained on texts with spaces has U+2581;
# one that a program has written or cut may lack it.) With escape_whitespaces off, the text comes back.
#
# Seen:
#   "a b" is: a <0xE2> <0x96> <0x81> b
#   and back: 'a\u2581b'
#   a <0x20> b decoded: 'a b'
#   without escape_whitespaces, "a b" is: a <0x20> b
#   and back: 'a b'
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install sentencepiece==0.2.3 protobuf==7.36.2
cat > seen.py <<'PYTHON'
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as schema

Piece = schema.ModelProto.SentencePiece


def processor(escaped):
    model = schema.ModelProto()
    model.pieces.add(piece="<unk>", type=Piece.UNKNOWN)
    for byte in range(256):
        model.pieces.add(piece=f"<0x{byte:02X}>", type=Piece.BYTE)
    for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz"):
        model.pieces.add(piece=letter, score=-index, type=Piece.NORMAL)
    model.trainer_spec.model_type = schema.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(model.pieces)
    model.trainer_spec.bos_id = model.trainer_spec.eos_id = model.trainer_spec.pad_id = -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = escaped
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


escaped, plain = processor(True), processor(False)
print('"a b" is:', *escaped.encode("a b", out_type=str))
print("and back:", ascii(escaped.decode(escaped.encode("a b"))))
print("a <0x20> b decoded:", ascii(escaped.decode([escaped.piece_to_id(piece) for piece in ("a", "<0x20>", "b")])))
print('without escape_whitespaces, "a b" is:', *plain.encode("a b", out_type=str))
print("and back:", ascii(plain.decode(plain.encode("a b"))))
PYTHON
venv/bin/python seen.py > seen
cat seen
diff - seen <<'SEEN'
"a b" is: a <0xE2> <0x96> <0x81> b
and back: 'a\u2581b'
a <0x20> b decoded: 'a b'
without escape_whitespaces, "a b" is: a <0x20> b
and back: 'a b'
SEEN
