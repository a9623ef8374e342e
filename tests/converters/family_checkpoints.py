"""Small random checkpoints of every family, whose weights follow from their names (tests only).

tests/data/families.json has the configurations and the shapes of all tensors, as transformers saves them, and
tests/data/families.npz the logits that transformers computed with these weights: `make_families.py` writes both.
"""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.support.random_checkpoint import CHECKPOINTS

__all__ = ["COLUMNS", "VARIANTS", "golden", "weights_of", "write_folder"]

DATA = Path(__file__).parents[1] / "data"
COLUMNS = 4  # every so many columns of the logits are kept
VARIANTS: dict[str, dict[str, Any]] = (
    json.loads((DATA / "families.json").read_text()) if (DATA / "families.json").exists() else {}
)


def weights_of(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Weights that keep activations of order 1, by the names of a Hugging Face checkpoint."""
    return {name: _weight(name, shape) for name, shape in shapes.items()}


def _weight(name: str, shape: list[int]) -> np.ndarray:
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 1:
        gain = name.endswith("weight")
        return (0.2 * noise + gain if gain else 0.3 * noise).astype(np.float32)
    scale = 0.5 if "emb" in name or "wte" in name or "wpe" in name or "lm_head" in name else shape[-1] ** -0.5
    if "q_proj" in name or "k_proj" in name or "qkv" in name:
        scale *= 2  # attention that is not flat
    return np.asarray(scale * noise, np.float32)


def write_folder(folder: Path, name: str, *, tokenizer: str = "gqa-tied") -> Path:
    """One of VARIANTS as a Hugging Face folder, with a tokenizer of as many tokens."""
    variant = VARIANTS[name]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(variant["config"]))
    save_file(weights_of(variant["shapes"]), folder / "model.safetensors")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINTS / tokenizer / file, folder)
    return folder


def golden(name: str) -> tuple[list[int], np.ndarray]:
    """Tokens, and transformers' logits after each of them in every fourth column: (tokens, vocabulary / COLUMNS)."""
    with np.load(DATA / "families.npz") as file:
        return file["tokens"].tolist(), file[VARIANTS[name].get("logits_of", name)]
