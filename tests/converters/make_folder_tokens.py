"""Write tests/data/folder_tokens.json: the tokens that transformers makes with each folder of tokenizer_folders.py.

pip install transformers==5.24.0 sentencepiece protobuf
PYTHONPATH=. python tests/converters/make_folder_tokens.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from tests.converters.tokenizer_folders import CASES, DATA, TEXTS, write_folder


def main() -> None:
    """Write the file."""
    expected = {}
    with tempfile.TemporaryDirectory() as root:
        for i, name in enumerate(CASES):
            folder = Path(root) / str(i)
            write_folder(folder, name)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            expected[name] = {
                "texts": [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS],
                "with_bos": tokenizer.encode("pump"),
            }
    (DATA / "folder_tokens.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
