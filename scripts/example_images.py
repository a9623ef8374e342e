"""Write the model images of the examples' bundles from their graphs again, after a change of the image's format.

    python scripts/example_images.py

tests/device_runtime/micro/test_image.py says when it is time to.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from converters.emit.c.bundle import write_bundle_image  # noqa: E402
from device_runtime.bundle.folder import Bundle  # noqa: E402
from device_runtime.bundle.manifest import IMAGE, MANIFEST, EngineMemory, FileEntry  # noqa: E402


def main() -> None:
    """Write each, and its hash into the manifest."""
    for path in sorted(ROOT.glob(f"examples/*/bundle/{IMAGE}")):
        bundle = Bundle.open(path.parent)
        image = write_bundle_image(bundle)
        data = path.read_bytes()
        entry = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
        engine = EngineMemory(image.arena_bytes, image.kv_bytes)
        manifest = replace(bundle.manifest, files={**bundle.manifest.files, IMAGE: entry}, engine=engine)
        (bundle.path / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
