"""Makes tests/data/encoders: small random checkpoints of encoders and translators, and what transformers makes of them.

Run by hand: `pip install torch transformers sentencepiece`, then `python tests/encoders/make_encoders.py [MINILM]`.

Weights are stored as float16 and read as float32 by both sides. They are drawn wide, so that attention, positions and
norms matter to the result.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import transformers as hf
from tokenizers import ByteLevelBPETokenizer, SentencePieceUnigramTokenizer, Tokenizer
from tokenizers.processors import RobertaProcessing, TemplateProcessing

ROOT = Path(__file__).parent.parent / "data" / "encoders"
TEXTS = [
    "The pump in hall 3 runs at 81.5 °C; it's hot.",
    "pump",
    "Über den Dächern: Ärger mit der Heizung, 温度が高い 🙂",
    "valve closed valve open pressure low pressure high temperature normal alarm",
    "[CLS] and </s> are words here",
]
WORDS = (
    "the pump in hall runs at it is hot valve closed open pressure low high temperature normal alarm and are words here"
)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def main() -> None:
    """Make all of them."""
    shutil.rmtree(ROOT, ignore_errors=True)
    labels = {"id2label": {0: "calm", 1: "odd", 2: "alarm"}, "label2id": {"calm": 0, "odd": 1, "alarm": 2}}
    pieces = word_pieces()
    bert = {**SMALL, "vocab_size": len(pieces), "max_position_embeddings": 96, "pad_token_id": 0}
    embedding("bert-embed", hf.BertModel(hf.BertConfig(**bert)), pieces)
    classifier("bert-classify", hf.BertForSequenceClassification(hf.BertConfig(**bert, **labels)), pieces)
    several = {"problem_type": "multi_label_classification"}
    classifier("bert-several", hf.BertForSequenceClassification(hf.BertConfig(**bert, **labels, **several)), pieces)
    distil = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": len(pieces)}
    distil["max_position_embeddings"] = 96
    classifier("distilbert", hf.DistilBertForSequenceClassification(hf.DistilBertConfig(**distil, **labels)), pieces)
    roberta = {**SMALL, "vocab_size": 300, "max_position_embeddings": 130, "pad_token_id": 1, "type_vocab_size": 1}
    classifier("roberta", hf.RobertaForSequenceClassification(hf.RobertaConfig(**roberta, **labels)), None)
    mpnet = {**SMALL, "vocab_size": len(pieces), "max_position_embeddings": 98}
    own = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", *pieces[5:]]  # transformers takes token 1 for padding
    embedding("mpnet", hf.MPNetModel(hf.MPNetConfig(**mpnet)), own)
    classifier("mpnet-classify", hf.MPNetForSequenceClassification(hf.MPNetConfig(**mpnet, **labels)), own)
    embedding("xlm-roberta", hf.XLMRobertaModel(hf.XLMRobertaConfig(**{**roberta, "vocab_size": 120})), None)
    marian()
    for name, more in {"t5": {}, "flan-t5": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}}.items():
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 120}
        buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "n_positions": 96}
        t5(name, hf.T5ForConditionalGeneration(hf.T5Config(**sizes, **buckets, decoder_start_token_id=0, **more)))


def word_pieces() -> list[str]:
    """A vocabulary for BERT: words, letters, and letters within words."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,;:'°[]<>/-"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    return list(dict.fromkeys([*tokens, *WORDS.split(), "##er", "##ing", "heiz", "温", "度"]))


def saved(name: str, model: torch.nn.Module) -> Path:
    """Wider weights, as float16, on the disk; the model keeps what was stored."""
    torch.manual_seed(len(name))
    spread = 0.15 if "t5" in name else 0.25  # T5 does not scale its scores: wider weights only choose by chance
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "positions" in key or key.endswith("embed_positions.weight"):
                continue
            gain = "norm" in key.lower() and key.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * spread + (1.0 if gain else 0.0))
            parameter.copy_(parameter.half().float())
    folder = ROOT / name
    model.half().save_pretrained(folder)
    model.float().eval()
    return folder


def tokenizer_of(folder: Path, pieces: list[str] | None, vocabulary: int) -> Tokenizer:
    """Writes a tokenizer, and reads it back as transformers does."""
    if pieces is not None:
        (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
        kind = hf.MPNetTokenizerFast if folder.name.startswith("mpnet") else hf.BertTokenizerFast
        settings = {"tokenizer_class": kind.__name__.removesuffix("Fast"), "do_lower_case": True, "strip_accents": None}
        if kind is hf.MPNetTokenizerFast:
            settings |= {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "[UNK]"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return kind(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    if folder.name == "roberta":
        bpe = ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        bpe.train_from_iterator([WORDS, *TEXTS], vocab_size=vocabulary, special_tokens=special, show_progress=False)
        bpe._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
        library = bpe._tokenizer
    else:
        library = unigram([WORDS, *TEXTS], ["<s>", "<pad>", "</s>", "<unk>"], vocabulary)
        library.post_processor = TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    library.save(str(folder / "tokenizer.json"))
    return hf.PreTrainedTokenizerFast(tokenizer_object=library)


def unigram(texts: list[str], special: list[str], vocabulary: int) -> Tokenizer:
    """A SentencePiece-like tokenizer.json."""
    made = SentencePieceUnigramTokenizer()
    made.train_from_iterator(
        texts * 4, vocab_size=vocabulary, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    return made._tokenizer


def encoded(tokenizer: object, text: str) -> list[int]:
    """As transformers does, in which the name of a control token is that token: such texts are left to our tests."""
    return list(tokenizer(text, add_special_tokens=True)["input_ids"])  # type: ignore[operator]


def embedding(name: str, model: torch.nn.Module, pieces: list[str] | None) -> None:
    """Mean of all tokens, normalized."""
    folder = saved(name, model)
    tokenizer = tokenizer_of(folder, pieces, model.config.vocab_size)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [{"idx": i, "path": "1_Pooling" if i == 1 else "", "type": f"x.{k}"} for i, k in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "query: "}}))
    rows = []
    for text in TEXTS[:4]:
        ids = encoded(tokenizer, text)
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        mean = hidden.mean(dim=0)
        rows.append({"text": text, "tokens": ids, "result": rounded(mean / mean.norm())})
    golden(folder, rows)


def classifier(name: str, model: torch.nn.Module, pieces: list[str] | None) -> None:
    """Logits of labels."""
    folder = saved(name, model)
    tokenizer = tokenizer_of(folder, pieces, model.config.vocab_size)
    rows = []
    for text in TEXTS[:4]:
        ids = encoded(tokenizer, text)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        rows.append({"text": text, "tokens": ids, "result": rounded(logits)})
    golden(folder, rows)


def marian() -> None:
    """Two SentencePiece models, and one vocabulary."""
    folder = ROOT / "marian"
    folder.mkdir(parents=True)
    for side, texts in {"source": [*TEXTS, WORDS], "target": [*(t.upper() for t in TEXTS), WORDS]}.items():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts * 4), model_prefix=str(folder / side), vocab_size=90, model_type="unigram",
            hard_vocab_limit=False, minloglevel=2, num_threads=1, normalization_rule_name="identity",
        )  # fmt: skip
        (folder / f"{side}.vocab").unlink()
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
    ids = {"</s>": 0, "<unk>": 1}
    for side in ("source", "target"):
        library = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{side}.spm"))
        for i in range(library.vocab_size()):
            ids.setdefault(library.id_to_piece(i), len(ids))
    ids["<pad>"] = len(ids)
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    pad = ids["<pad>"]
    config = hf.MarianConfig(
        vocab_size=len(ids), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=96,
        activation_function="swish", scale_embedding=True, pad_token_id=pad, decoder_start_token_id=pad, eos_token_id=0,
        forced_eos_token_id=None,
    )  # fmt: skip
    model = hf.MarianMTModel(config)
    model.generation_config.bad_words_ids = [[pad]]
    model.generation_config.forced_eos_token_id = None
    with torch.no_grad():
        model.final_logits_bias.copy_(torch.randn_like(model.final_logits_bias).half().float())
    saved("marian", model)
    tokenizer = hf.MarianTokenizer.from_pretrained(folder)
    rows = []
    for text in TEXTS[:4]:
        ids = tokenizer(text)["input_ids"]
        rows.append({"text": text, **translated(model, ids, pad, [pad])})
        rows[-1]["translation"] = tokenizer.decode(rows[-1]["target"], skip_special_tokens=True)
    for file in ("tokenizer.json",):
        (folder / file).unlink(missing_ok=True)
    golden(folder, rows)


def t5(name: str, model: torch.nn.Module) -> None:
    """Relative positions."""
    folder = saved(name, model)
    library = unigram([WORDS, *TEXTS], ["<pad>", "</s>", "<unk>"], model.config.vocab_size)
    library.post_processor = TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    library.save(str(folder / "tokenizer.json"))
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=library)
    rows = [{"text": text, **translated(model, encoded(tokenizer, text), 0, [])} for text in TEXTS[:4]]
    golden(folder, rows)


def translated(model: torch.nn.Module, ids: list[int], start: int, banned: list[int]) -> dict[str, object]:
    """The greedy translation, and the logits after each of its tokens."""
    options = {"bad_words_ids": [[i] for i in banned]} if banned else {}
    with torch.no_grad():
        made = model.generate(
            torch.tensor([ids]), max_new_tokens=12, num_beams=1, do_sample=False, **options
        )[0].tolist()  # fmt: skip
        assert made[0] == start
        logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([made[:6]])).logits[0]
    return {"tokens": ids, "target": made[1:], "logits": [rounded(row) for row in logits]}


def rounded(values: torch.Tensor) -> list[float]:
    """Six digits are plenty for a tolerance of 1e-3."""
    return [float(np.float64(f"{value:.6g}")) for value in values.tolist()]


def golden(folder: Path, rows: list[dict[str, object]]) -> None:
    """What transformers makes of the texts."""
    text = json.dumps({"transformers": hf.__version__, "rows": rows}, ensure_ascii=False)
    (folder / "golden.json").write_text(text + "\n", encoding="utf-8")


def minilm(folder: Path) -> None:
    """Vectors of the real all-MiniLM-L6-v2, as `stonechat get all-minilm-l6-v2` fetches it."""
    tokenizer, model = hf.AutoTokenizer.from_pretrained(folder), hf.AutoModel.from_pretrained(folder).float().eval()
    rows = []
    for text in TEXTS[:4]:
        ids = encoded(tokenizer, text)
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
        vector = [round(value, 5) for value in (mean / mean.norm()).tolist()]
        rows.append({"text": text, "tokens": ids, "result": vector})
    (ROOT / "minilm").mkdir(exist_ok=True)
    golden(ROOT / "minilm", rows)


if __name__ == "__main__":
    import sys

    main()
    if len(sys.argv) == 2:
        minilm(Path(sys.argv[1]))
