"""Make tests/data/llama_cpp_tokens.json: what llama.cpp's tokenizer makes of varied text.

Run by hand, in an environment with llama-cpp-python, gguf, tokenizers and sentencepiece:

    PYTHONPATH=. python tests/converters/make_llama_cpp_tokens.py

The tokenizers are those of tests/data/checkpoints and one small SentencePiece model, each as a GGUF file.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from llama_cpp import Llama

from tests.support.tokenizer_files import (
    MORE_PRE,
    PRE_OF,
    TEXTS,
    small_sentencepiece,
    write_bpe_gguf,
    write_sentencepiece_gguf,
)

DATA = Path(__file__).parent.parent / "data"


def tokens_of(path: Path) -> list[list[int]]:
    model = Llama(str(path), vocab_only=True, verbose=False)
    return [model.tokenize(text.encode(), add_bos=False, special=True) for text in TEXTS]


def main() -> None:
    golden = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        for name in PRE_OF:
            write_bpe_gguf(path, DATA / "checkpoints" / name)
            golden[name] = tokens_of(path)
        for pre, name in MORE_PRE.items():
            write_bpe_gguf(path, DATA / "checkpoints" / name, pre)
            golden[f"{name} as {pre}"] = tokens_of(path)
        content = small_sentencepiece(DATA / "sentencepiece.model")
        write_sentencepiece_gguf(path, content)
        golden["sentencepiece"] = tokens_of(path)
    lines = [f' "{name}": [\n  ' + ",\n  ".join(map(json.dumps, ids)) + "\n ]" for name, ids in golden.items()]
    (DATA / "llama_cpp_tokens.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
