"""Versions of a small bundle (tests only)."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from device_runtime.update.slots import Slots
from device_runtime.update.staging import peek
from device_runtime.update.state import Last

__all__ = ["confirm", "contents", "tiny_bundle", "variant"]

FILES = ("model.tflite", "prefix.npz", "tokenizer.json")


def variant(source: Path, target: Path, version: str, files: dict[str, bytes] | None = None, **fields: Any) -> Path:
    """A bundle as `source`, with other files and manifest fields. Its tokenizer.json differs, so one file travels."""
    shutil.copytree(source, target)
    padding = int(hashlib.sha256(version.encode()).hexdigest()[:3], 16) + 1  # blanks, which mean nothing in JSON
    tokenizer = (source / "tokenizer.json").read_bytes() + b" " * padding
    manifest = json.loads((target / "manifest.json").read_text())
    for name, content in ({"tokenizer.json": tokenizer} | (files or {})).items():
        (target / name).write_bytes(content)
        manifest["files"][name] = _entry(content)
    manifest |= {"version": version, **fields}
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def tiny_bundle(like: Path, target: Path, version: str, same: bytes = b"weights", **fields: Any) -> Path:
    """A bundle of a few bytes, which opens but does not run; two of them differ in all but the model's file."""
    files = {name: f"{name} of {version}".encode() * 20 for name in FILES} | {"model.tflite": same * 40}
    return variant(like, target, version, files, **fields)


def confirm(slots: Slots) -> None:
    """As if the bundle that waits had passed its trial."""
    trial = slots.state.trial
    manifest = peek(slots.path(trial.slot)) if trial else None
    assert manifest is not None
    slots.attempt()
    slots.confirm(manifest.security_counter, Last("confirmed", manifest.name, manifest.version))


def contents(folder: Path) -> dict[str, bytes]:
    """name -> what it holds, for every file under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _entry(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
