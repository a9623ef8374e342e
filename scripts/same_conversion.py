"""Does the converter still write the same bytes as an earlier commit of it?

    python scripts/same_conversion.py [--base COMMIT] [--keep FOLDER] [--only NAME] [--profile pi|micro]

Converts the small checkpoints of tests/data in both profiles, with the sources of COMMIT (in a git worktree of their
own) and with those of this working tree, and compares `model.tflite` and `prefix.npz` byte by byte. Both run on this
machine with one thread for BLAS: calibration depends on the order of float32 sums, so bytes of two machines differ and
a hash in a test would hold nothing. Exit code 1 where a byte differs, with the place.

`--keep FOLDER` keeps what the base commit wrote, for the next run. Takes two minutes on two cores, the second time one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASE = "17b76af"  # the last commit before the network was described by blocks
CHECKPOINTS = ROOT / "tests" / "data" / "checkpoints"
PROFILES = ("pi", "micro")
FILES = ("model.tflite", "prefix.npz")


def main() -> int:
    """Convert, compare, print a line for each file."""
    parser = argparse.ArgumentParser(description="compare what two versions of the converter write")
    parser.add_argument("--base", default=BASE, metavar="COMMIT")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the base's bundles there, or use them")
    parser.add_argument("--only", metavar="NAME", help="one checkpoint of tests/data/checkpoints")
    parser.add_argument("--profile", choices=PROFILES)
    args = parser.parse_args()
    names = [args.only] if args.only else sorted(path.name for path in CHECKPOINTS.iterdir() if path.is_dir())
    cases = [(name, profile) for name in names for profile in ([args.profile] if args.profile else PROFILES)]
    with tempfile.TemporaryDirectory(prefix="stonechat-") as folder:
        before, after = args.keep or Path(folder) / "before", Path(folder) / "after"
        missing = [case for case in cases if not all((bundle(before, case) / name).is_file() for name in FILES)]
        if missing:
            with sources_of(args.base) as tree:
                convert_all(tree, missing, before)
        convert_all(ROOT, cases, after)
        results = [compare(bundle(before, case), bundle(after, case), name) for case in cases for name in FILES]
    return 0 if all(results) else 1


def bundle(folder: Path, case: tuple[str, str]) -> Path:
    """Where the bundle of (checkpoint, profile) lies."""
    return folder / "-".join(case)


@contextmanager
def sources_of(commit: str) -> Iterator[Path]:
    """A worktree of a commit, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="stonechat-base-") as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def convert_all(tree: Path, cases: list[tuple[str, str]], folder: Path) -> None:
    """Convert with the sources in `tree`, by their command line: the one interface that both have."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(tree), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

    def convert(case: tuple[str, str]) -> None:
        name, profile = case
        command = [sys.executable, "-m", "toolkit", "convert", str(CHECKPOINTS / name), "--profile", profile]
        command += ["-o", str(bundle(folder, case))]
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{tree}: {name} in {profile} could not be converted:\n{done.stderr}")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(convert, cases))


def compare(before: Path, after: Path, name: str) -> bool:
    """Print whether a file is the same in both bundles."""
    old, new = (before / name).read_bytes(), (after / name).read_bytes()
    if old == new:
        print(f"{after.name:28} {name:14} same, {len(old):,} bytes")
        return True
    first = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    print(f"{after.name:28} {name:14} DIFFERS from byte {first:,}; {len(old):,} bytes before, {len(new):,} now")
    return False


if __name__ == "__main__":
    sys.exit(main())
