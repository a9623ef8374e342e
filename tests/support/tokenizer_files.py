"""Small tokenizers and their GGUF files (tests only)."""

from __future__ import annotations

import io
from pathlib import Path

import gguf
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from tests.support.gguf_files import add_tokenizer

__all__ = ["MORE_PRE", "PRE_OF", "TEXTS", "small_sentencepiece", "write_bpe_gguf", "write_sentencepiece_gguf"]

# folder in tests/data/checkpoints -> tokenizer.ggml.pre
PRE_OF = {"gqa-tied": "smollm", "mha-untied-sharded": "gpt-2", "llama3-rope": "llama-bpe", "yarn-biases": "qwen2"}

# further names of tokenizer.ggml.pre -> the folder whose vocabulary they are tried with
MORE_PRE = {
    "stablelm2": "yarn-biases", "olmo": "mha-untied-sharded", "exaone4": "mha-untied-sharded", "refact": "gqa-tied",
    "dbrx": "llama3-rope", "smaug-bpe": "llama3-rope", "falcon3": "llama3-rope", "gpt-4o": "llama3-rope",
    "tekken": "yarn-biases",
}  # fmt: skip

TEXTS = [
    "The pump in hall 3 runs at 81.5 °C; it's hotter than yesterday's 72 °C.",
    "I'll, WE'RE, don't, you'Ve: 1234567 readings, 42 alarms, 0 answers (12,345.678)",
    "Überdruck im Kessel, près de la chaudière, 温度が高い, температура растёт, ٣٤٥ درجة",
    '{"temp_c": 81.5}\n\n\tif bar > 2:\r\n        close(valve)  # now   \n\n\n end',
    "  two  spaces   and tabs\t\tthen an end   ",
    "emoji 🙂👩‍🔧 é ligature ﬁ zero​width",
    "<|im_start|>user\nWhat is <tool> for?<|im_end|>\n<|im_start|>assistant\n",
    "<|begin_of_text|>Hi<|eot_id|><|endoftext|>",
    "",
    "a",
    "____----====////....",
]


def write_bpe_gguf(path: Path, folder: Path, pre: str | None = None) -> None:
    """The tokenizer of one of the folders in `PRE_OF`, without weights."""
    writer = gguf.GGUFWriter(path, "llama")
    add_tokenizer(writer, folder / "tokenizer.json", pre or PRE_OF[folder.name], {"bos": 0, "eos": 0})
    _finish(writer)


def small_sentencepiece(path: Path) -> bytes:
    """A BPE model with byte fallback, as Llama 2's: made once, then read from `path`."""
    if not path.exists():
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS[:6] * 20),
            model_writer=model,
            model_type="bpe",
            vocab_size=420,
            byte_fallback=True,
            character_coverage=0.98,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["<tool>"],
            control_symbols=["<|im_start|>", "<|im_end|>"],
            minloglevel=2,
        )
        path.write_bytes(model.getvalue())
    return path.read_bytes()


def write_sentencepiece_gguf(path: Path, content: bytes) -> None:
    """A SentencePiece model as llama.cpp's converter writes it, without weights."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(content)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.piece for piece in model.pieces])
    writer.add_token_scores([piece.score for piece in model.pieces])
    writer.add_token_types([piece.type for piece in model.pieces])
    writer.add_add_space_prefix(model.normalizer_spec.add_dummy_prefix)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    _finish(writer)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
