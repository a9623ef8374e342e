"""LoRA adapters of PEFT, merged into the checkpoint that they were trained on (Hu et al. 2021; PEFT's saved form).

A module's weight W (out, in) becomes W + scaling * B A, with scaling alpha / r, or alpha / sqrt(r) for rsLoRA; DoRA
(Liu et al. 2024) then gives each row the length that it learned. Merging is done in float32, when a tensor is read, and
by canonical tensor: an adapter fits a GGUF file of its model as well as the folder.

What is merged is what the adapter was trained as. Where an adapter changes the embedding, or a head that shares the
embedding's rows, the other keeps its own: the merged network has both.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from converters.architectures import FAMILIES
from converters.architectures.family import HuggingFaceFormat, Source
from converters.checkpoints import Checkpoint
from converters.checkpoints.fields import Fields, read_json
from converters.checkpoints.huggingface import read_safetensors
from converters.checkpoints.tensors import FloatArray, StoredTensor, sha256_of
from converters.network.config import NetworkConfig
from converters.network.tensors import Tensor
from converters.network.tensors import tensors as tensors_of
from device_runtime.errors import ArchitectureError, CheckpointError, ConfigurationError

__all__ = ["merge_adapter"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(\.default)?(\.weight)?"
)
# Keys of adapter_config.json that change what is computed, and the values that do not.
_CHANGES: Mapping[str, tuple[object, ...]] = {
    "alora_invocation_tokens": (),
    "arrow_config": (),
    "bias": ("none",),
    "kasa_config": (),
    "layer_replication": (),
    "lora_bias": (False,),
    "monteclora_config": (),
    "peft_type": ("LORA",),
    "target_parameters": ([],),
    "trainable_token_indices": (),
    "use_bdlora": (False,),
    "use_qalora": (False,),
}
_BY_PEFT = "Merge the adapter with PEFT (merge_and_unload in float32), and convert the result."
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # others take something out of the base's weights first


@dataclass(frozen=True)
class _Module:
    """What an adapter has for one module; either a pair of factors, or a tensor that replaces the module's."""

    scaling: float = 1.0
    embedding: bool = False
    down: StoredTensor | None = None  # lora_A: (r, in); of an embedding (r, vocabulary)
    up: StoredTensor | None = None  # lora_B: (out, r); of an embedding (width, r)
    magnitude: StoredTensor | None = None  # DoRA: (out,)

    def delta(self, transposed: bool) -> FloatArray:
        """What is added to the module's tensor, as it is stored.

        Args:
            transposed: the module keeps (in, out).
        """
        assert self.down is not None and self.up is not None
        product = self.up.read() @ self.down.read() * np.float32(self.scaling)
        return product.T if transposed or self.embedding else product


def merge_adapter(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint with an adapter of PEFT in its weights.

    Raises:
        ConfigurationError: `folder` has no adapter.
        CheckpointError: it is damaged, or of a model of another size.
        ArchitectureError: it changes what is not merged here, or modules that the network does not have.
    """
    if not (folder / _CONFIG).is_file():
        raise ConfigurationError(f"{folder}: has no {_CONFIG}; expected the folder of an adapter that PEFT saved.")
    if not (folder / _WEIGHTS).is_file():
        raise ConfigurationError(
            f"{folder}: has no {_WEIGHTS}. An adapter_model.bin has to be saved again with "
            "save_pretrained(…, safe_serialization=True)."
        )
    fields = Fields(read_json(folder / _CONFIG), str(folder / _CONFIG))
    form = FAMILIES[checkpoint.architecture].huggingface
    if form is None:
        raise ArchitectureError(
            f"{folder}: adapters of PEFT are for models in Hugging Face form; {checkpoint.name} is not."
        )
    _check(fields)
    modules, saved = _read(folder / _WEIGHTS, fields, form)
    return _Merge(checkpoint, folder, form, modules, saved, fields).checkpoint()


def _check(fields: Fields) -> None:
    for key, values in _CHANGES.items():
        value = fields.values.get(key)
        if value is not None and value not in values:
            expected = " or ".join(map(repr, values)) or "none"
            raise ArchitectureError(
                f"{fields.where}: {key} is {str(value)[:80]!r}; adapters are merged with {expected} only. {_BY_PEFT}"
            )
    start = fields.values.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise ArchitectureError(
            f"{fields.where}: init_lora_weights is {start!r}, which changes the base model's weights as well; expected "
            f"{', '.join(map(str, _PLAIN_STARTS))}. Convert it to a plain adapter with PEFT "
            "(save_pretrained with path_initial_model_for_weight_conversion)."
        )


def _read(path: Path, fields: Fields, form: HuggingFaceFormat) -> tuple[dict[str, _Module], dict[str, StoredTensor]]:
    """Factors by module, and the tensors that replace a module's, by the family's names."""
    parts: dict[str, dict[str, StoredTensor]] = {}
    saved: dict[str, StoredTensor] = {}
    for tensor in read_safetensors(path):
        name = tensor.name.removeprefix(_PREFIX).removeprefix(form.prefix)
        if match := _PART.fullmatch(name):
            parts.setdefault(match["module"], {})[match["part"]] = tensor
        elif "lora_" in name:
            raise ArchitectureError(f"{path}: tensor {tensor.name} is of a kind that is not merged here. {_BY_PEFT}")
        else:
            saved[name.replace(".modules_to_save.default", "").replace(".base_layer", "")] = tensor
    return {module: _module(path, fields, module, found, form) for module, found in parts.items()}, saved


def _module(
    path: Path, fields: Fields, name: str, parts: Mapping[str, StoredTensor], form: HuggingFaceFormat
) -> _Module:
    embedding = "lora_embedding_A" in parts
    down, up = (parts.get(f"lora_embedding_{side}" if embedding else f"lora_{side}") for side in "AB")
    if down is None or up is None or len(down.shape) != 2 or len(up.shape) != 2 or up.shape[1] != down.shape[0]:
        found = {part: tensor.shape for part, tensor in parts.items()}
        raise CheckpointError(
            f"{path}: module {name} has {found}; expected lora_A (r, in) and lora_B (out, r). Save it again."
        )
    rank = down.shape[0]
    full = form.prefix + name
    declared = _by_pattern(fields, "rank_pattern", full, fields.integer("r", 8))
    if declared != rank:
        raise CheckpointError(
            f"{path}: module {name} has factors of rank {rank}, and {_CONFIG} says {declared}. "
            "The two files are of different adapters: use those of one."
        )
    alpha = _by_pattern(fields, "alpha_pattern", full, fields.number("lora_alpha", 8.0, least=-1e9))
    scaling = alpha / math.sqrt(rank) if fields.flag("use_rslora", False) else alpha / rank
    magnitude = parts.get("lora_magnitude_vector")
    if fields.flag("use_dora", False) != (magnitude is not None) or (embedding and magnitude is not None):
        raise ArchitectureError(
            f"{fields.where}: use_dora is {fields.flag('use_dora', False)}, and module {name} has "
            f"{'a' if magnitude else 'no'} magnitude; DoRA is merged in linear modules only. "
            f"{_BY_PEFT}"
        )
    return _Module(scaling, embedding, down, up, magnitude)


def _by_pattern(fields: Fields, key: str, module: str, default: float) -> float:
    """As PEFT has it: the first pattern that matches the end of the module's name."""
    for pattern, value in fields.section(key).values.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise CheckpointError(f"{fields.where}: {key} has {value!r} for {pattern}; expected a number.")
            return value
    return default


def _keeps_columns(source: Source) -> bool:
    """Whether a family stores a matrix as (in, out), as GPT-2 does.

    adapter_config.json has one `fan_in_fan_out` for all modules, that of the last one that PEFT came by.
    """
    if source.part is None or source.shape is None or len(source.shape) != 2:
        return False
    places = source.part(np.arange(np.prod(source.shape), dtype=np.float32).reshape(source.shape))
    return bool(places[0, 1] - places[0, 0] != 1)


class _Merge:
    """One adapter and one checkpoint."""

    def __init__(
        self,
        base: Checkpoint,
        folder: Path,
        form: HuggingFaceFormat,
        modules: dict[str, _Module],
        saved: dict[str, StoredTensor],
        fields: Fields,
    ) -> None:
        self._base, self._folder, self._form = base, folder, form
        self._modules, self._saved = modules, saved
        self._stored = {f"{module}.weight" for module in modules} | saved.keys()
        self._config: NetworkConfig = base.config
        if base.config.head.tied and any(self._touches(stem) for stem in ("embed", "head")):
            if fields.flag("ensure_weight_tying", False):
                raise ArchitectureError(
                    f"{fields.where}: ensure_weight_tying is true, with a head that shares the embedding's rows; it is "
                    f"not merged here. {_BY_PEFT}"
                )
            self._config = replace(base.config, head=replace(base.config.head, tied=False))
        self._tensors = {tensor.name: tensor for tensor in tensors_of(self._config)}
        self._check_modules()

    def checkpoint(self) -> Checkpoint:
        """The merged one."""
        digest = hashlib.sha256(f"{self._base.sha256} {sha256_of([self._folder / _WEIGHTS])}".encode()).hexdigest()
        name = f"{self._base.name}+{self._folder.resolve().name}"
        return replace(self._base, name=name, config=self._config, sha256=digest, read=self._read)

    def _touches(self, stem: str) -> bool:
        name = f"{self._form.names[stem]}.weight" if stem in self._form.names else ""
        return name in self._stored

    def _source(self, tensor: Tensor) -> Source:
        return self._form.source(tensor, self._config, self._stored)

    def _check_modules(self) -> None:
        used = {self._source(tensor).name for tensor in self._tensors.values()}
        if strange := sorted(self._stored - used):
            more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
            raise ArchitectureError(
                f"{self._folder}: the adapter changes what the network of {self._base.name} does not have: "
                f"{', '.join(strange[:3])}{more}. It is of another model, or of a variant that is not supported."
            )

    def _read(self, name: str) -> FloatArray:
        tensor = self._tensors.get(name)
        if tensor is None:
            return self._base.read(name)
        source = self._source(tensor)
        if source.name in self._saved:
            return self._part(self._saved[source.name].read(), source, tensor)
        tied = name == "head.weight" and self._base.config.head.tied
        values = self._base.read("embed.weight" if tied else name)
        module = self._modules.get(source.name.removesuffix(".weight")) if tensor.part == "weight" else None
        if module is None:
            return values
        values = values + self._part(module.delta(_keeps_columns(source)), source, tensor)
        return values if module.magnitude is None else self._directed(values, module.magnitude, tensor)

    def _part(self, stored: FloatArray, source: Source, tensor: Tensor) -> FloatArray:
        """The canonical tensor out of one that is shaped as the module's."""
        shape = tensor.shape if source.shape is None else source.shape
        if stored.shape != shape:
            raise CheckpointError(
                f"{self._folder}: for {source.name} the adapter has shape {stored.shape}, and {self._base.name} has "
                f"{shape}. It is of a model of another size, or with more tokens: save the merged model with PEFT."
            )
        stored = stored if source.rows is None else stored[source.rows]
        return np.ascontiguousarray(stored if source.part is None else source.part(stored), np.float32)

    def _directed(self, values: FloatArray, magnitude: StoredTensor, tensor: Tensor) -> FloatArray:
        """DoRA: each row with the length that was learned for it. Lengths lie as a bias of the module would."""
        lengths = np.linalg.norm(values, axis=1)
        if not lengths.all():
            raise CheckpointError(
                f"{self._folder}: row {int(np.argmin(lengths))} of {tensor.name} is zero, and DoRA has no direction "
                "for it. Use another adapter of this model."
            )
        as_bias = Tensor(tensor.stem, "bias", tensor.shape[:1], "bias", tensor.layer, tensor.matmul)
        wanted = self._part(magnitude.read().reshape(-1), self._source(as_bias), as_bias)
        return np.asarray(values * (wanted / lengths)[:, None])
