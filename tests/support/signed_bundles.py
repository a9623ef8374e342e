"""Small bundles of random bytes, keys, and what an attacker makes of them (tests only)."""

from __future__ import annotations

import hashlib
import random
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from device_runtime.bundle.archive import head_of, pack
from device_runtime.bundle.folder import Bundle
from device_runtime.bundle.manifest import (
    MANIFEST,
    ActivationPeak,
    FileEntry,
    GraphCounts,
    GraphShape,
    Manifest,
    TokenizerInfo,
)
from device_runtime.bundle.trust import TrustStore
from toolkit.signing.bundles import sign_bundle
from toolkit.signing.keys import SigningKey, new_key

__all__ = ["COUNTS", "FILES", "Workshop", "entry_span", "plain_bundle"]

# Of no graph: the manifest of a bundle whose graph is never run has to have some.
COUNTS = GraphCounts(1, 10, 20, 100, 200, 100, 0, 8, 16, ((ActivationPeak(64, 4),),))

FILES = ["manifest.json", "manifest.sig", "model.tflite", "prefix.npz", "tokenizer.json"]


def plain_bundle(folder: Path, seed: int = 1, **changes: Any) -> Path:
    """An unsigned bundle that opens and does not run. Two of them have files of the same sizes."""
    folder.mkdir()
    noise = random.Random(seed)
    for name, size in (("model.tflite", 5000), ("prefix.npz", 300), ("tokenizer.json", 700)):
        (folder / name).write_bytes(noise.randbytes(size))
    files = {
        path.name: FileEntry(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
        for path in sorted(folder.iterdir())
    }
    manifest = Manifest(
        format=1, name="noise", version=str(seed), task="generate", architecture="llama", weight_bits=8,
        profile="pi", context=64, graph=GraphShape(1, 1, 2, 100, (64,), 0, 4, 200, False), counts={"pi": COUNTS},
        tokenizer=TokenizerInfo("tokenizer.json", None, (0,), False, {}),
        chat_template="{{ messages[0].content }} – ü", prefix_tokens=(1,), quality={}, source={}, converter="test",
        security_counter=3, files=files,
    )  # fmt: skip
    (folder / MANIFEST).write_text(replace(manifest, **changes).to_json(), encoding="utf-8")
    return folder


class Workshop:
    """A folder where one key is trusted, one is retired, and one belongs to a stranger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys"
        (self.keys / "retired").mkdir(parents=True)
        self.trusted, self.retired, self.stranger = (
            new_key(name, folder / "secret", None) for name in ("plant-2026", "plant-2025", "stranger")
        )
        (self.keys / "plant-2026.pub").write_text(self.trusted.public.to_text())
        (self.keys / "retired" / "plant-2025.pub").write_text(self.retired.public.to_text())

    @property
    def trust(self) -> TrustStore:
        """Whom the device trusts."""
        return TrustStore.load(self.keys)

    def signed(self, name: str = "bundle", *keys: SigningKey, seed: int = 1, **changes: Any) -> Path:
        """A bundle folder, signed by these keys or by the trusted one."""
        folder = plain_bundle(self.folder / name, seed, **changes)
        sign_bundle(folder, {}, keys or (self.trusted,))
        return folder

    def packed(self, folder: Path) -> Path:
        """The same as a zip, with manifest and signature as they are."""
        bundle = Bundle.open(folder)
        head = head_of(bundle)
        target = folder.with_suffix(".zip")
        pack(bundle, target, manifest=head.manifest, signature=head.signature)
        return target

    def contents(self, folder: Path) -> dict[str, bytes]:
        """Every file, in the order of a packed bundle."""
        return {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}

    def zipped(self, name: str, contents: dict[str, bytes], **fields: Any) -> Path:
        """A zip by hand: anything goes. `fields` are set on the entry of the last file."""
        path = self.folder / name
        with zipfile.ZipFile(path, "w") as file:
            for i, (entry, content) in enumerate(contents.items()):
                info = zipfile.ZipInfo(entry)
                info.create_system, info.external_attr = 3, 0o100644 << 16
                if i == len(contents) - 1:
                    for field, value in fields.items():
                        setattr(info, field, value)
                file.writestr(info, content)
        return path


def entry_span(packed: bytes, name: str) -> tuple[int, int]:
    """Where the bytes of a file begin and end in a zip, told by its headers."""
    at = packed.index(b"PK\3\4")
    while packed[at : at + 4] == b"PK\3\4":
        size, name_bytes, extra_bytes = struct.unpack_from("<I2H", packed, at + 22)
        begin = at + 30 + name_bytes + extra_bytes
        if packed[at + 30 : at + 30 + name_bytes] == name.encode():
            return begin, begin + size
        at = begin + size
    raise KeyError(name)
