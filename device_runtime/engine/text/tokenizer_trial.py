"""Tries a tokenizer file in a process of its own before this one reads it: some damaged files end the process, or raise
what is no Exception. What was tried once is remembered, by its content."""

from __future__ import annotations

import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Literal

from device_runtime.engine.trial_process import TrialProcess, serve_trials

__all__ = ["try_tokenizer", "try_tokenizer_content"]

_CPU_S, _MEMORY_MIB = 60, 1536
_MODULE = "device_runtime.engine.text.tokenizer_trial"
_outcomes: dict[str, str] = {}  # sha256 of a file -> what is wrong with it
_SAMPLES = (
    "The pump in hall 3 runs at 81.5 °C; it's hot.", "  two  spaces\t\n\n", "<|im_start|>user\n</s><unk>[PAD]", "",
    "温度が高い 🙂👩‍🔧 é ﬁ \u200b\ufffd\x00\x7f",
)  # fmt: skip


def try_tokenizer(path: Path, record: Path | None = None) -> str:
    """What is wrong with a tokenizer.json or a tokenizer.model; nothing if it can be read.

    Args:
        record: a file that remembers a good outcome.
    """
    import hashlib  # with OpenSSL's library, which a bundle without trials does without

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    mark = f"{digest} {_versions()}"
    with suppress(OSError):
        if record is not None and record.read_text() == mark:
            return ""
    wrong = _tried(digest, str(path))
    if not wrong and record is not None:
        with suppress(OSError):
            record.write_text(mark)
    return wrong


def try_tokenizer_content(content: bytes, file_name: Literal["tokenizer.json", "tokenizer.model"]) -> str:
    """The same for a file that is not on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file_name
        path.write_bytes(content)
        return try_tokenizer(path)


def _tried(digest: str, path: str) -> str:
    if digest not in _outcomes:
        process = TrialProcess(_MODULE)
        try:
            _outcomes[digest] = process.run(path)
        finally:
            process.close()
    return _outcomes[digest]


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("tokenizers", "sentencepiece"):
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)


def _main() -> None:
    from device_runtime.engine.tokenizer import read_tokenizer

    def trial(path: str) -> str:
        tokenizer = read_tokenizer(Path(path))
        for text in _SAMPLES:
            tokenizer.decode(tokenizer.encode(text))
        if path.endswith(".json"):  # what goes around a text is read by the conversion alone
            from tokenizers import Tokenizer

            Tokenizer.from_file(path).encode("", add_special_tokens=True)
        tokens = [*range(2000), *range(2000, 300_000, 97)]
        for start in range(0, len(tokens), 50):
            tokenizer.decode(tokens[start : start + 50])
        return ""

    serve_trials(trial, cpu_s=_CPU_S, memory_mib=_MEMORY_MIB)


if __name__ == "__main__":
    _main()
    sys.exit(0)
