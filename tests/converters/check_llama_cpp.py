"""Hold the GGUF files of family_gguf.py against llama.cpp itself: it must give the logits that transformers gave.

Run by hand, in an environment with llama-cpp-python:

    PYTHONPATH=.:tests:tests/converters python tests/converters/check_llama_cpp.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
from family_checkpoints import COLUMNS, VARIANTS, golden
from family_gguf import NOT_IN_GGUF, write_family_gguf


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in VARIANTS:
            if name in NOT_IN_GGUF:
                continue
            tokens, expected = golden(name)
            path = write_family_gguf(Path(folder) / "model.gguf", name)
            try:
                model = llama_cpp.Llama(
                    str(path), n_ctx=32, logits_all=True, verbose=False, n_threads=1, flash_attn=False,
                    type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, swa_full=True,
                )  # fmt: skip
                model.eval(tokens)
            except (ValueError, RuntimeError) as error:
                print(f"{name}: {error}")
                continue
            found = np.array(model.scores[: len(tokens), ::COLUMNS])
            model.close()
            print(f"{name}: largest difference {np.abs(found - expected).max():.4f}", flush=True)


if __name__ == "__main__":
    main()
