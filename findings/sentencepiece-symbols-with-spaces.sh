#!/bin/sh
# sentencepiece 0.2.1 (PyPI), user_defined_symbols
#
# A user-defined symbol is "always treated as one token", whatever the context. One that has a plain space in it is taken by
# the trainer without a word, has an id, and is never found in a text: the normalizer turns the text's spaces into U+2581
# before symbols are looked for. Spelt with U+2581 instead of the space it is found. (GGUF files of llama.cpp's converter
# spell such pieces with plain spaces, so a program that hands them to SentencePiece has to respell them.)
#
# Seen:
#   "pump on" has an id: True
#   "the pump on" has it: False
#   "pump_on" with U+2581 for the space is found: True
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install sentencepiece==0.2.1
cat > seen.py <<'PYTHON'
import io

import sentencepiece

LINES = ["the pump is on and the fan is off", "valve open, valve closed", "on and on it went"] * 50


def trained(symbol):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, model_type="bpe", vocab_size=60, hard_vocab_limit=False,
        user_defined_symbols=[symbol], minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


plain, marked = trained("pump on"), trained("pump\u2581on")
print('"pump on" has an id:', plain.piece_to_id("pump on") != plain.unk_id())
print('"the pump on" has it:', "pump on" in plain.encode("the pump on", out_type=str))
print('"pump_on" with U+2581 for the space is found:', "pump\u2581on" in marked.encode("the pump on", out_type=str))
PYTHON
venv/bin/python seen.py > seen
cat seen
diff - seen <<'SEEN'
"pump on" has an id: True
"the pump on" has it: False
"pump_on" with U+2581 for the space is found: True
SEEN
