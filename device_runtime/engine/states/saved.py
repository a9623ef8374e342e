"""Conversations on the disk: what was said, its tokens, and their keys and values, in one .npz file for each name.

They lie in the bundle's folder of the cache, since another graph could not use them.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from device_runtime.bundle.work_place import naming, whole_stream
from device_runtime.engine.backends import Backend
from device_runtime.engine.states.snapshot import Snapshot
from device_runtime.errors import BackendError, ConfigurationError

if TYPE_CHECKING:
    from device_runtime.bundle.folder import Bundle
    from device_runtime.engine.kv_cache import KvCache

__all__ = ["has_conversation", "load_conversation", "save_conversation"]

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


def save_conversation(
    bundle: Bundle, cache: KvCache, backend: Backend, name: str, messages: Sequence[Mapping[str, str]]
) -> Path:
    """See `LanguageModel.save_conversation`."""
    path = _path(bundle, name)
    if not backend.position_bytes:
        raise BackendError("The state of this backend cannot be copied; choose another with --backend.")
    arrays: dict[str, Any] = {f"state_{number}": array for number, array in enumerate(cache.snapshot().arrays)}
    try:
        said = np.frombuffer(json.dumps(list(messages), ensure_ascii=False).encode(), np.uint8)
    except UnicodeEncodeError:
        raise ConfigurationError(
            "A message holds half of a surrogate pair, which is no character, so the conversation cannot be kept; "
            "leave it out."
        ) from None
    arrays |= {"tokens": np.array(cache.tokens, np.int64), "messages": said}
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_stream(path, mode=0o600) as stream:  # it is nobody else's
        np.savez(stream, backend=_kind(backend), **arrays)
    return path


def has_conversation(bundle: Bundle, name: str) -> bool:
    """See `LanguageModel.has_conversation`."""
    return _path(bundle, name).exists()


def load_conversation(bundle: Bundle, cache: KvCache, backend: Backend, name: str) -> list[Mapping[str, str]]:
    """See `LanguageModel.load_conversation`."""
    path = _path(bundle, name)
    if not path.exists():
        known = sorted(file.stem for file in path.parent.glob("*.npz"))
        raise ConfigurationError(
            f"There is no conversation {name!r} with {bundle.manifest.name}; there are: {', '.join(known) or 'none'}."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            tokens = [int(token) for token in file["tokens"]]
            messages: list[Mapping[str, str]] = json.loads(file["messages"].tobytes())
            arrays = tuple(file[f"state_{number}"] for number in range(len(file.files) - 3))
            kind = str(file["backend"])
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile):
        # numpy's own advice is to load it unsafely
        raise ConfigurationError(f"{path} is damaged; delete it and begin again.") from None
    state = Snapshot(len(tokens), arrays)
    if kind == _kind(backend):  # for another one, what was said is enough: it is computed again
        try:
            cache.put_back(tokens, state)
        except BackendError as error:
            raise BackendError(f"{path}: {error}") from None
    return messages


def _path(bundle: Bundle, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{name!r} is no name for a conversation; expected a-z, 0-9 and -, such as garden-2.")
    folder = bundle.cache_path
    if folder is None:
        raise ConfigurationError("This machine has no folder for caches; set XDG_CACHE_HOME, or HOME, to one.")
    return folder / "conversations" / f"{name}.npz"


def _kind(backend: Backend) -> str:
    return type(backend).__name__
