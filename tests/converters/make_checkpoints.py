"""Make the small checkpoints of tests/data/checkpoints, and their golden logits, with transformers and torch.

Run by hand, in an environment with torch 2.13, transformers 5, safetensors, tokenizers and gguf:

    PYTHONPATH=. python tests/converters/make_checkpoints.py

Weights are random, scaled so that logits are of order 1 to 10 and attention is not flat. Each folder has
`logits.npz`: `tokens` (n,) int64 and `logits` (n, vocabulary) float32, computed by transformers in float32
from the stored weights. The tests themselves need neither torch nor transformers.
"""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from converters.checkpoints import open_checkpoint
from tests.support.gguf_files import add_tokenizer, write_gguf

DATA = Path(__file__).parent.parent / "data"
LENGTH = 96  # tokens of the golden logits: longer than the original context of the RoPE scalings
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = [
    "The pump in hall 3 runs at 81.5 °C; it's hotter than yesterday's 72 °C.",
    "Sensors don't sleep: 1234567 readings, 42 alarms, 0 answers.",
    "Überdruck im Kessel, près de la chaudière, 温度が高い, температура растёт.",
    '{"temp_c": 81.5, "bar": 2.25}\n\n\tif bar > 2:\n        close(valve)  # now\r\n',
]
SMALL: dict[str, Any] = dict(vocab_size=384, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                             num_attention_heads=4, max_position_embeddings=256, rms_norm_eps=1e-5)  # fmt: skip

# name -> (configuration, dtype, pre-tokenizer, special tokens (bos first, then the end of a turn), files)
CHECKPOINTS: dict[str, tuple[dict[str, Any], torch.dtype, str, tuple[str, ...], int]] = {
    "gqa-tied": (
        SMALL | dict(num_key_value_heads=2, tie_word_embeddings=True, rope_theta=10000.0),
        torch.float32, "smollm", ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), 1,
    ),
    "mha-untied-sharded": (
        SMALL | dict(num_key_value_heads=4, tie_word_embeddings=False, rope_theta=500.0),
        torch.bfloat16, "gpt-2", ("<|endoftext|>",), 2,
    ),
    "llama3-rope": (
        SMALL | dict(num_key_value_heads=1, tie_word_embeddings=False, rope_parameters=dict(
            rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=32)),
        torch.bfloat16, "llama-bpe", ("<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"), 1,
    ),
    "yarn-biases": (
        SMALL | dict(num_attention_heads=2, num_key_value_heads=1, head_dim=48, tie_word_embeddings=True,
                     attention_bias=True, mlp_bias=True, rope_parameters=dict(
                         rope_type="yarn", rope_theta=200.0, factor=8.0, original_max_position_embeddings=32)),
        torch.bfloat16, "qwen2", ("<|im_start|>", "<|im_end|>"), 1,
    ),
    "linear-rope": (
        SMALL | dict(num_key_value_heads=2, tie_word_embeddings=True, num_hidden_layers=3, intermediate_size=64,
                     rope_theta=1000.0, rope_scaling=dict(type="linear", factor=4.0)),
        torch.float16, "smollm", ("<|im_start|>", "<|im_end|>"), 1,
    ),
}  # fmt: skip

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 100000.0},
    "linear": {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.5}},
    "dynamic": {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "llama3": {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
    "yarn": {"rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, "rope_theta": 1000000.0},
    "yarn-mscale": {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 4096,
        "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 0.7, "truncate": False}},
    "yarn-attention-factor": {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "attention_factor": 1.25,
        "original_max_position_embeddings": 2048}},
}  # fmt: skip


def pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    """As in the models' own files; the regular expressions are transformers' copies of them."""
    regex = {
        "qwen2": PRETOKENIZE_REGEX,
        "llama-bpe": inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default,
    }
    if pre in regex:
        split = pre_tokenizers.Split(Regex(regex[pre]), "isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, byte_level]) if pre == "smollm" else byte_level


def make_tokenizer(path: Path, pre: str, special: tuple[str, ...], vocabulary: int) -> None:
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizer(pre)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    user = AddedToken("<tool>", special=False, normalized=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([user])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if pre == "llama-bpe":
        bos = special[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    assert tokenizer.get_vocab_size() == vocabulary, tokenizer.get_vocab_size()
    tokenizer.save(str(path))


def make_model(config: LlamaConfig, dtype: torch.dtype) -> LlamaForCausalLM:
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if "norm" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
            elif "embed" in name or "lm_head" in name:
                parameter.copy_(0.5 * torch.randn_like(parameter))
            else:
                gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
                parameter.copy_(gain * parameter.shape[1] ** -0.5 * torch.randn_like(parameter))
            parameter.copy_(parameter.to(dtype).float())
    return model.eval()


def make_checkpoint(name: str) -> None:
    keys, dtype, pre, special, files = CHECKPOINTS[name]
    folder = DATA / "checkpoints" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make_tokenizer(folder / "tokenizer.json", pre, special, keys["vocab_size"])
    token_ids = {token: i for i, token in enumerate(special)}
    eos = [token_ids[token] for token in special[1:]] or [0]
    shared = dict(bos_token_id=0, eos_token_id=eos[0] if len(eos) == 1 else eos, hidden_act="silu")
    model = make_model(LlamaConfig(**keys, **shared), dtype)

    written = dict(architectures=["LlamaForCausalLM"], model_type="llama", dtype=str(dtype)[6:]) | keys | shared
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": shared["eos_token_id"]}) + "\n")
    settings = dict(bos_token=special[0], eos_token=special[1 if len(special) > 1 else 0])
    if name == "yarn-biases":  # the newer place of a template
        (folder / "chat_template.jinja").write_text(CHATML)
    elif "<|im_end|>" in special:
        settings["chat_template"] = CHATML
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")

    tensors = {key: value.to(dtype).contiguous() for key, value in model.state_dict().items()}
    if keys["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    if files == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map = {}
        for part in range(files):
            file = f"model-{part + 1:05}-of-{files:05}.safetensors"
            names = sorted(tensors)[part::files]
            save_file({key: tensors[key] for key in names}, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")

    # What counts is what transformers reads back from the folder, not what was in memory.
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.randint(0, keys["vocab_size"], (1, LENGTH))
    with torch.no_grad():
        logits = model(tokens).logits[0].numpy().astype(np.float32)
    np.savez_compressed(folder / "logits.npz", tokens=tokens[0].numpy(), logits=logits)
    scale = np.sqrt((logits**2).mean())
    plain = LlamaForCausalLM(
        LlamaConfig(**{k: v for k, v in keys.items() if k not in ("rope_scaling", "rope_parameters")})
    )
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        change = np.abs(plain.eval()(tokens).logits[0].numpy() - logits).mean()
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: logits of order {scale:.1f}, mean change without RoPE scaling {change:.2f}, {size // 1024} KiB")


def mixed(name: str) -> Kind:
    """F32 norms, F16 embedding, Q8_0 or F32 elsewhere."""
    if "norm" in name:
        return Kind.F32
    if name == "embed.weight" or ".v." in name:
        return Kind.F16
    return Kind.F32 if ".o." in name else Kind.Q8_0


def make_ggufs() -> None:
    """Two of the folders as llama.cpp would have them: a mix of encodings, and Llama 3's divisors as a tensor."""
    for name, kind_of in [("gqa-tied", mixed), ("llama3-rope", lambda n: Kind.F32 if "norm" in n else Kind.BF16)]:
        folder = DATA / "checkpoints" / name
        checkpoint = open_checkpoint(folder)
        keys = CHECKPOINTS[name][0]
        parameters = keys.get("rope_parameters", keys)
        divisors = None
        if "factor" in parameters:
            scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**keys), "cpu")
            dim = checkpoint.config.head_dim
            divisors = (parameters["rope_theta"] ** -(torch.arange(0, dim, 2) / dim) / scaled).numpy()

        def tokenizer(writer: gguf.GGUFWriter, name: str = name, folder: Path = folder) -> None:
            add_tokenizer(writer, folder / "tokenizer.json", CHECKPOINTS[name][2], {"bos": 0, "eos": 1})
            if name == "gqa-tied":
                writer.add_add_bos_token(False)
                writer.add_chat_template(CHATML)

        path = DATA / "checkpoints" / f"{name}.gguf"
        write_gguf(path, checkpoint, kind_of, base=parameters["rope_theta"], tokenizer=tokenizer, divisors=divisors)
        print(f"{path.name}: {path.stat().st_size // 1024} KiB")


def make_ropes() -> None:
    golden = {}
    for name, keys in ROPES.items():
        keys = {"head_dim": 64, "max_position_embeddings": 131072} | keys
        config = LlamaConfig(hidden_size=512, num_attention_heads=8, **json.loads(json.dumps(keys)))
        kind = config.rope_parameters["rope_type"]
        if kind == "default":
            frequencies, magnitude = keys["rope_theta"] ** -(torch.arange(0, 64, 2) / 64), 1.0
        else:
            frequencies, magnitude = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
        golden[name] = {"config": keys, "frequencies": frequencies.tolist(), "magnitude": magnitude}
    (DATA / "rope.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    torch.manual_seed(20240)
    for checkpoint_name in CHECKPOINTS:
        make_checkpoint(checkpoint_name)
    make_ggufs()
    make_ropes()
