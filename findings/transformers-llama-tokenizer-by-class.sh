#!/bin/sh
# transformers 5.24.0 with tokenizers 0.23.3 (PyPI): tokenizer_class beside a tokenizer.json
#
# A tokenizer.json describes a tokenizer whole: normalizer, pre-tokenizer, model, decoder. Beside it, tokenizer_config.json
# names a class, and one expects that the class adds methods and leaves the tokens alone. LlamaTokenizer, however (and
# LlamaTokenizerFast, which is the same here), takes only the vocabulary and the merges of such a BPE tokenizer and has a
# normalizer and a pre-tokenizer of its own. The same file then gives other tokens, without a word, and save_pretrained()
# writes a tokenizer.json that gives these to everyone. So a program that reads a checkpoint's tokenizer.json with the
# tokenizers package has to look at the class, too, if it wants the tokens of transformers.
#
# Seen ("_" stands for U+2581):
#   tokenizers: pump _on
#   no class: pump _on, saved again: pump _on
#   PreTrainedTokenizerFast: pump _on, saved again: pump _on
#   LlamaTokenizer: _ u mp _on, saved again: _ u mp _on
#   LlamaTokenizerFast: _ u mp _on, saved again: _ u mp _on
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install transformers==5.24.0 tokenizers==0.23.3
cat > seen.py <<'PYTHON'
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

TEXT = "Pump on"

tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
tokenizer.normalizer = normalizers.Lowercase()
tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
special = ["<unk>", "<s>", "</s>"]
tokenizer.train_from_iterator(
    ["pump on"] * 9, trainers.BpeTrainer(vocab_size=60, special_tokens=special, show_progress=False)
)


def tokens(found):
    return " ".join(found.encode(TEXT).tokens).replace("\u2581", "_")


print("tokenizers:", tokens(tokenizer))
for name in ("", "PreTrainedTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast"):
    folder = Path(name or "none")
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name} if name else {}))
    loaded = AutoTokenizer.from_pretrained(folder)
    loaded.save_pretrained(folder / "again")
    again = Tokenizer.from_file(str(folder / "again" / "tokenizer.json"))
    print(f"{name or 'no class'}: {tokens(loaded.backend_tokenizer)}, saved again: {tokens(again)}")
PYTHON
HF_HUB_OFFLINE=1 venv/bin/python seen.py > seen 2> log || { cat log >&2; exit 1; }
cat seen
diff - seen <<'SEEN'
tokenizers: pump _on
no class: pump _on, saved again: pump _on
PreTrainedTokenizerFast: pump _on, saved again: pump _on
LlamaTokenizer: _ u mp _on, saved again: _ u mp _on
LlamaTokenizerFast: _ u mp _on, saved again: _ u mp _on
SEEN
