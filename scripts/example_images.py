"""Write the model images of the examples' bundles from their graphs again, after a change of the image's format.

    python scripts/example_images.py

tests/device_runtime/micro/test_image.py says when it is time to.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from converters.emit.c.bundle import renew_image  # noqa: E402
from device_runtime.bundle.folder import Bundle  # noqa: E402
from device_runtime.bundle.manifest import IMAGE, MANIFEST  # noqa: E402


def main() -> None:
    """Write each, and its hash into the manifest."""
    for path in sorted(ROOT.glob(f"examples/*/bundle/{IMAGE}")):
        manifest = renew_image(Bundle.open(path.parent))
        (path.parent / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {manifest.files[IMAGE].size_bytes:,} bytes")


if __name__ == "__main__":
    main()
