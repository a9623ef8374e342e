"""Draw random configurations of every family, and hold the readers against transformers: logits to 1e-3.

Run by hand, in an environment with torch 2.13 and transformers 5.24; 20 draws of each family take about a minute:

    PYTHONPATH=.:tests:tests/converters python tests/converters/draw_families.py [--family NAME] [--count 20] [--seed 0]
        [--graphs pi,micro]

Each checkpoint is written as transformers writes it (in float32, bfloat16 or float16, in one file or in shards, the
configuration in today's spelling or in the older one) and opened from there. A refusal by name is printed, and is no
fault; another exception or other logits are.
"""

from __future__ import annotations

import argparse
import collections
import json
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from family_checkpoints import weights_of

from converters.checkpoints import open_checkpoint
from converters.convert import Options, convert
from converters.network.decoder import decoder
from converters.network.weights import CanonicalWeights
from converters.ops.numpy import NumpyOps
from device_runtime.engine.backends import open_backend
from device_runtime.errors import ArchitectureError
from tests.support.random_checkpoint import CHECKPOINTS

MOST = {"pi": 0.15, "micro": 0.2}  # see test_families.py; layers of width 8 have few values to average over
Draw = np.random.Generator
Keys = dict[str, Any]


def pick(draw: Draw, *options: Any) -> Any:
    return options[draw.integers(len(options))]


def flag(draw: Draw) -> bool:
    return bool(draw.integers(2))


def sizes(draw: Draw, *, own_head_dim: bool = True) -> Keys:
    heads = int(pick(draw, 1, 2, 4, 6, 8))
    head_dim = int(pick(draw, 4, 8, 12, 16))
    divisors = [n for n in range(1, heads + 1) if heads % n == 0]
    keys: Keys = dict(
        vocab_size=int(draw.integers(384, 460)), hidden_size=heads * head_dim,
        intermediate_size=int(draw.integers(20, 120)), num_hidden_layers=int(draw.integers(1, 6)),
        num_attention_heads=heads, num_key_value_heads=int(pick(draw, *divisors)),
        max_position_embeddings=int(pick(draw, 40, 64, 100, 2048)), bos_token_id=0, eos_token_id=pick(draw, 1, [1, 2]),
        pad_token_id=None, tie_word_embeddings=flag(draw),
    )  # fmt: skip
    if own_head_dim:
        keys["head_dim"] = int(pick(draw, head_dim, 8, 20, 32))
        if flag(draw):
            keys["hidden_size"] = int(pick(draw, 24, 36, 50, 64))
    return keys


def rms(draw: Draw) -> Keys:
    return dict(rms_norm_eps=pick(draw, 1e-5, 1e-6, 1e-2))


def rope(draw: Draw, keys: Keys, *, kinds: tuple[str, ...] = (), partial: bool = False, head_dim: int = 0) -> Keys:
    head_dim = head_dim or keys.get("head_dim") or keys["hidden_size"] // keys["num_attention_heads"]
    kind = pick(draw, *(kinds or ("default", "default", "linear", "dynamic", "yarn", "llama3", "longrope")))
    found: Keys = dict(rope_type=kind, rope_theta=float(pick(draw, 100.0, 10000.0, 500000.0)))
    turned = head_dim
    if partial:
        options = [f for f in (0.25, 0.5, 0.75, 1.0) if int(head_dim * f) % 2 == 0 and int(head_dim * f) >= 2]
        found["partial_rotary_factor"] = pick(draw, *options)
        turned = int(head_dim * found["partial_rotary_factor"])
    if kind in ("linear", "dynamic"):
        found["factor"] = pick(draw, 2.0, 4.0, 1.5)
    if kind == "yarn":
        found |= dict(factor=pick(draw, 2.0, 4.0, 1.0), original_max_position_embeddings=pick(draw, 16, 32))
        found |= pick(draw, {}, dict(beta_fast=16.0, beta_slow=2.0), dict(attention_factor=0.8), dict(truncate=False),
                      dict(mscale=1.0, mscale_all_dim=0.7))  # fmt: skip
    if kind == "llama3":
        found |= dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=pick(draw, 2.0, 4.0),
                      original_max_position_embeddings=pick(draw, 16, 32))  # fmt: skip
    if kind == "longrope":
        half = turned // 2
        found |= dict(
            short_factor=[1.0 + 0.1 * i for i in range(half)], long_factor=[1.0 + 0.7 * i for i in range(half)],
        )  # fmt: skip
        keys["original_max_position_embeddings"] = pick(draw, 16, 32, 40)
        found |= pick(draw, {}, dict(attention_factor=1.2))
        found["original_max_position_embeddings"] = keys["original_max_position_embeddings"]
    return found


def layer_types(draw: Draw, layers: int) -> list[str]:
    return [pick(draw, "full_attention", "sliding_attention") for _ in range(layers)]


def llama(draw: Draw) -> tuple[str, Keys]:
    keys = sizes(draw) | rms(draw)
    return "Llama", keys | dict(attention_bias=flag(draw), mlp_bias=flag(draw), rope_parameters=rope(draw, keys))


def mistral(draw: Draw) -> tuple[str, Keys]:
    keys = sizes(draw) | rms(draw)
    return "Mistral", keys | dict(sliding_window=pick(draw, None, 3, 7, 4096), rope_parameters=rope(draw, keys))


def smollm3(draw: Draw) -> tuple[str, Keys]:
    keys = sizes(draw, own_head_dim=False) | rms(draw)
    layers = keys["num_hidden_layers"]
    more: Keys = dict(attention_bias=flag(draw), rope_parameters=rope(draw, keys))
    if flag(draw):
        more["no_rope_layers"] = [int(draw.integers(2)) for _ in range(layers)]
    else:
        more["no_rope_layer_interval"] = int(pick(draw, 2, 3, 4))
    if flag(draw):
        more |= dict(use_sliding_window=True, sliding_window=5)
    return "SmolLM3", keys | more


def stablelm(draw: Draw) -> tuple[str, Keys]:
    keys = sizes(draw, own_head_dim=False) | dict(layer_norm_eps=pick(draw, 1e-5, 1e-3))
    partial = rope(draw, keys, partial=True)
    return "StableLm", keys | dict(
        use_qkv_bias=flag(draw), use_parallel_residual=flag(draw), rope_parameters=partial,
        qk_layernorm=bool(draw.integers(6) == 0),
    )  # fmt: skip


def multipliers(draw: Draw) -> Keys:
    return dict(
        embedding_multiplier=pick(draw, 1.0, 6.0, 12.0), residual_multiplier=pick(draw, 1.0, 0.22, 0.4),
        logits_scaling=pick(draw, 1.0, 2.0, 8.0), attention_multiplier=pick(draw, 1.0, 0.2, 0.0625),
    )  # fmt: skip


def granite(draw: Draw) -> tuple[str, Keys]:
    keys = sizes(draw, own_head_dim=False) | rms(draw) | multipliers(draw)
    return "Granite", keys | dict(attention_bias=flag(draw), mlp_bias=flag(draw), rope_parameters=rope(draw, keys))


def granite4(draw: Draw) -> tuple[str, Keys]:
    keys = sizes(draw, own_head_dim=False) | rms(draw) | multipliers(draw)
    heads = keys["num_attention_heads"]
    return "GraniteMoeHybrid", keys | dict(
        num_local_experts=0, num_experts_per_tok=0, shared_intermediate_size=int(draw.integers(20, 120)),
        position_embedding_type=pick(draw, "rope", None, "nope"),
        layer_types=["full_attention"] * keys["num_hidden_layers"],
        attention_bias=flag(draw), rope_parameters=rope(draw, keys), mamba_n_heads=2 * heads, mamba_expand=2,
        mamba_d_head=keys["hidden_size"] // heads,
    )  # fmt: skip


def qwen2(draw: Draw) -> tuple[str, Keys]:
    keys = sizes(draw, own_head_dim=False) | rms(draw)
    more: Keys = dict(rope_parameters=rope(draw, keys))
    if flag(draw):
        more |= dict(use_sliding_window=True, sliding_window=5)
        more |= pick(draw, dict(max_window_layers=1), dict(layer_types=layer_types(draw, keys["num_hidden_layers"])))
    return "Qwen2", keys | more


def qwen3(draw: Draw) -> tuple[str, Keys]:
    _, keys = qwen2(draw)
    keys |= dict(head_dim=int(pick(draw, 8, 16, 32)), attention_bias=flag(draw))
    return "Qwen3", keys | dict(rope_parameters=rope(draw, keys))


def phi3(draw: Draw) -> tuple[str, Keys]:
    keys = sizes(draw, own_head_dim=False) | rms(draw)
    keys["original_max_position_embeddings"] = pick(draw, 16, 32)
    partial = flag(draw)
    found = rope(draw, keys, kinds=("default", "longrope", "longrope"), partial=partial)
    more = dict(partial_rotary_factor=found["partial_rotary_factor"]) if partial else {}
    return "Phi3", keys | more | dict(sliding_window=pick(draw, None, 4, 7, 9999), rope_parameters=found)


def phi(draw: Draw) -> tuple[str, Keys]:
    keys = sizes(draw, own_head_dim=False)
    return "Phi", keys | dict(
        rope_parameters=rope(draw, keys, partial=True), hidden_act=pick(draw, "gelu_new", "gelu"),
        layer_norm_eps=pick(draw, 1e-5, 1e-3), tie_word_embeddings=False,
    )  # fmt: skip


def gemma(draw: Draw) -> tuple[str, Keys]:
    keys = sizes(draw) | rms(draw)
    return "Gemma", keys | dict(
        attention_bias=flag(draw), rope_parameters=rope(draw, keys),
        hidden_act=pick(draw, "gelu_pytorch_tanh", "gelu"),
    )  # fmt: skip


def gemma2(draw: Draw) -> tuple[str, Keys]:
    keys = sizes(draw) | rms(draw)
    return "Gemma2", keys | dict(
        attention_bias=flag(draw), rope_parameters=rope(draw, keys), sliding_window=5,
        query_pre_attn_scalar=pick(draw, 16, 12, 256), attn_logit_softcapping=pick(draw, None, 5.0, 50.0),
        final_logit_softcapping=pick(draw, None, 8.0, 30.0),
        **pick(draw, {}, dict(layer_types=layer_types(draw, keys["num_hidden_layers"]))),
    )  # fmt: skip


def gemma3(draw: Draw) -> tuple[str, Keys]:
    keys = sizes(draw) | rms(draw)
    keys["num_hidden_layers"] = int(draw.integers(1, 8))
    found = dict(full_attention=rope(draw, keys), sliding_attention=rope(draw, keys, kinds=("default",)))
    return "Gemma3", keys | dict(
        attention_bias=flag(draw), rope_parameters=found, sliding_window=pick(draw, 3, 5),
        query_pre_attn_scalar=pick(draw, 16, 12, 256), final_logit_softcapping=pick(draw, None, None, 8.0),
        attn_logit_softcapping=pick(draw, None, None, 5.0),
        **pick(draw, {}, dict(layer_types=layer_types(draw, keys["num_hidden_layers"]))),
    )  # fmt: skip


def exaone4(draw: Draw) -> tuple[str, Keys]:
    keys = sizes(draw) | rms(draw)
    layers = keys["num_hidden_layers"]
    more: Keys = pick(draw, dict(sliding_window=None, layer_types=["full_attention"] * layers),
                      dict(sliding_window=5, sliding_window_pattern=pick(draw, 2, 3, 4)),
                      dict(sliding_window=5, layer_types=layer_types(draw, layers)))  # fmt: skip
    return "Exaone4", keys | more | dict(rope_parameters=rope(draw, keys))


def gpt2(draw: Draw) -> tuple[str, Keys]:
    heads = int(pick(draw, 1, 2, 4, 6))
    return "GPT2", dict(
        vocab_size=int(draw.integers(384, 460)), n_embd=heads * int(pick(draw, 8, 12, 9)), n_head=heads,
        n_layer=int(draw.integers(1, 5)), n_positions=64, n_inner=pick(draw, None, 70, 33), bos_token_id=0,
        eos_token_id=1,
        activation_function=pick(draw, "gelu_new", "gelu", "relu", "gelu_pytorch_tanh"),
        tie_word_embeddings=pick(draw, True, True, False), layer_norm_epsilon=pick(draw, 1e-5, 1e-3),
        scale_attn_weights=pick(draw, True, True, False),
        scale_attn_by_inverse_layer_idx=pick(draw, False, False, True),
    )  # fmt: skip


def gpt_neox(draw: Draw) -> tuple[str, Keys]:
    keys = sizes(draw, own_head_dim=False)
    del keys["num_key_value_heads"]
    return "GPTNeoX", keys | dict(
        rope_parameters=rope(draw, keys, partial=True), use_parallel_residual=flag(draw), attention_bias=flag(draw),
        hidden_act=pick(draw, "gelu", "gelu_new", "relu", "gelu_fast"), layer_norm_eps=pick(draw, 1e-5, 1e-3),
    )  # fmt: skip


def opt(draw: Draw) -> tuple[str, Keys]:
    heads = int(pick(draw, 1, 2, 4, 6))
    width = heads * int(pick(draw, 8, 12, 9))
    return "OPT", dict(
        vocab_size=int(draw.integers(384, 460)), hidden_size=width, ffn_dim=int(draw.integers(20, 120)),
        num_hidden_layers=int(draw.integers(1, 5)), num_attention_heads=heads, max_position_embeddings=64,
        word_embed_proj_dim=pick(draw, width, width, width, 16), bos_token_id=0, eos_token_id=1, pad_token_id=None,
        activation_function=pick(draw, "relu", "gelu"), enable_bias=pick(draw, True, True, False),
        do_layer_norm_before=pick(draw, True, True, False), tie_word_embeddings=pick(draw, True, True, False),
        layer_norm_elementwise_affine=pick(draw, True, True, False),
    )  # fmt: skip


FAMILIES = {f.__name__: f for f in (llama, mistral, smollm3, stablelm, granite, granite4, qwen2, qwen3, phi3, phi,
                                    gemma, gemma2, gemma3, exaone4, gpt2, gpt_neox, opt)}  # fmt: skip


def older(config: Keys) -> Keys:
    """The spelling of transformers 4: `rope_theta`, `rope_scaling` and `torch_dtype`."""
    config = dict(config)
    config["torch_dtype"] = config.pop("dtype")
    found = config.get("rope_parameters")
    if not found or "rope_type" not in found:
        return config
    found = dict(config.pop("rope_parameters"))
    config["rope_theta"] = found.pop("rope_theta")
    if "partial_rotary_factor" in found:
        config["partial_rotary_factor"] = found.pop("partial_rotary_factor")
    if found["rope_type"] == "default":
        config["rope_scaling"] = None
        return config
    found["type"] = found.pop("rope_type")
    config["rope_scaling"] = found
    return config


def write(folder: Path, draw: Draw, model_name: str, keys: Keys) -> tuple[list[int], np.ndarray, str]:
    """The checkpoint; returns tokens, transformers' logits, and how it was written."""
    config_class = getattr(transformers, f"{model_name}{'TextConfig' if model_name == 'Gemma3' else 'Config'}")
    head = {"GPT2": "GPT2LMHeadModel"}.get(model_name, f"{model_name}ForCausalLM")
    config = config_class(**keys)
    config._attn_implementation = "eager"  # sdpa leaves out Gemma 2's caps
    model = getattr(transformers, head)(config).eval().float()
    dtype = pick(draw, "float32", "bfloat16", "float16")
    state = {k: v for k, v in model.state_dict().items() if v.is_floating_point() and "inv_freq" not in k}
    made = weights_of({k: list(v.shape) for k, v in state.items()})
    rounded = {k: torch.from_numpy(v).to(getattr(torch, dtype)).float() for k, v in made.items()}
    model.load_state_dict(rounded, strict=False)
    model.tie_weights()
    if dtype != "float32":  # buffers of RoPE must not be rounded, only what is saved
        saved = getattr(transformers, head)(config).eval()
        saved.load_state_dict(rounded, strict=False)
        saved.tie_weights()
        saved.to(getattr(torch, dtype))
    else:
        saved = model
    most = min(keys.get("max_position_embeddings", keys.get("n_positions", 64)), 48)
    tokens = [int(t) for t in draw.integers(2, 384, int(draw.integers(8, most)))]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].numpy().astype(np.float32)
    how = dtype
    if flag(draw):
        saved.save_pretrained(folder, max_shard_size=20_000)
        how += ", shards"
    else:
        saved.save_pretrained(folder)
    if flag(draw):
        how += ", older spelling"
        path = folder / "config.json"
        path.write_text(json.dumps(older(json.loads(path.read_text()))))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINTS / "gqa-tied" / file, folder)
    return tokens, logits, how


def float_logits(folder: Path, tokens: list[int], context: int | None = None) -> np.ndarray:
    """The float reference's, (tokens, vocabulary)."""
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config.for_context(context or len(tokens))
    read = CanonicalWeights(config, checkpoint.read)
    return decoder(NumpyOps(config, read, np.array([tokens])), config)


def graph_error(folder: Path, tokens: list[int], profile: str) -> float:
    """Relative root mean square of the graph's logits."""
    checkpoint = open_checkpoint(folder / "model")
    tokens = (tokens * 3)[: max(20, len(tokens))]
    context = min(len(tokens) + 1, checkpoint.config.max_context)
    bundle = convert(checkpoint, folder / profile, Options(profile, context, fast=True))  # type: ignore[arg-type]
    prefix = list(bundle.manifest.prefix_tokens)
    tokens = tokens[: context - len(prefix)]
    backend = open_backend(bundle)
    found = np.stack([backend.decode(token).copy() for token in tokens])
    backend.close()
    expected = float_logits(folder / "model", prefix + tokens, context)[len(prefix) :]
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


def tried(name: str, number: int, seed: int, graphs: list[str]) -> str:
    """One draw: what came of it, printed where it is more than equal logits."""
    draw = np.random.default_rng([seed, number, *name.encode()])
    model_name, keys = FAMILIES[name](draw)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            tokens, expected, how = write(folder / "model", draw, model_name, keys)
        except Exception as error:  # what transformers itself refuses
            print(f"{name} {number}: transformers: {type(error).__name__} {str(error)[:100]}", flush=True)
            return "not made"
        try:
            found = float_logits(folder / "model", tokens)
            size, far = float(np.sqrt((expected**2).mean())), float(np.abs(found - expected).max())
            if not far < 1e-3 * max(1.0, size):
                print(f"{name} {number}: LOGITS {far:.4f} off, of order {size:.2f}; {how}; {keys}", flush=True)
                return "LOGITS"
            for profile in graphs:
                if (error := graph_error(folder, tokens, profile)) > MOST[profile]:
                    print(f"{name} {number}: GRAPH {profile} {error:.3f}; {keys}", flush=True)
                    return "GRAPH"
        except ArchitectureError as error:
            print(f"{name} {number}: refused: {str(error).replace(str(folder), '')[:170]}", flush=True)
            return "refused"
        except Exception as error:
            print(f"{name} {number}: ERROR {type(error).__name__} {str(error)[:300]}; {how}; {keys}", flush=True)
            traceback.print_exc(limit=-2)
            return "ERROR"
    return "same"


def main() -> int:
    parser = argparse.ArgumentParser(description="random configurations of every family against transformers")
    parser.add_argument("--family", help="some alone, with commas between them")
    parser.add_argument("--count", type=int, default=20, help="draws of each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--graphs", default="", help="profiles whose graphs are compared too: pi,micro")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names = args.family.split(",") if args.family else list(FAMILIES)
    graphs = [profile for profile in args.graphs.split(",") if profile]
    results = collections.Counter(tried(n, i, args.seed, graphs) for n in names for i in range(args.count))
    print(dict(results))
    return 1 if results["LOGITS"] + results["ERROR"] + results["GRAPH"] else 0


if __name__ == "__main__":
    sys.exit(main())
